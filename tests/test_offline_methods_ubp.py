"""UBP: its loss, gradient and choice of blur against the formula written out; its options."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from textbook import without_dropout
from torch import Tensor

from offline.data.store import Item
from offline.experiment import check_roles
from offline.fit import weights
from offline.learner import Batch
from offline.methods.base import Training
from offline.methods.network import Shapes
from offline.methods.ubp import UBP, UbpLearner, UbpSettings
from streamdec.errors import ConfigError

N, N_CHANS, N_TIMES, DIM, N_SAMPLES = 12, 3, 20, 5, 30
LEVELS = ("low", "medium", "high")


def learner(roles: tuple[str, ...] = LEVELS, **settings: str | float | bool) -> UbpLearner:
    """In training mode, begun."""
    torch.manual_seed(1)
    shapes = Shapes(
        epochs=(N_CHANS, N_TIMES),
        targets=dict.fromkeys(roles, (DIM,)),
        subjects=("one",),
        n_concepts=4,
        kind="stimulus",
    )
    made = UbpLearner(UbpSettings(**settings), shapes)
    made.begin(training(roles))
    without_dropout(made)
    return made.double()


def training(roles: tuple[str, ...]) -> Training:
    nothing = np.zeros(N_SAMPLES, np.int64)
    return Training(
        epochs=np.zeros((N_SAMPLES, N_CHANS, N_TIMES), np.float32),
        item=np.arange(N_SAMPLES),
        subject=nothing,
        targets={role: np.zeros((N_SAMPLES, DIM), np.float32) for role in roles},
        held=nothing > 0,
        group=nothing,
        items=tuple(Item(str(i), str(i), str(i)) for i in range(N_SAMPLES)),
        subjects=("one",),
        kind="stimulus",
    )


def batch(roles: tuple[str, ...] = LEVELS, seed: int = 2) -> Batch:
    """Ten items, two of them twice; samples out of order."""
    torch.manual_seed(seed)
    place = torch.tensor([*range(10), 1, 0])
    return Batch(
        epochs=torch.randn(N, N_CHANS, N_TIMES, dtype=torch.float64),
        targets={role: torch.randn(10, DIM, dtype=torch.float64) for role in roles},
        place=place,
        items=torch.arange(10) * 2,
        subject=torch.zeros(N, dtype=torch.int64),
        sample=torch.randperm(N_SAMPLES)[:N],
    )


def written_out(queries: Tensor, images: Tensor, scale: Tensor, item: list[int]) -> Tensor:
    """Symmetric contrastive loss of (B, D), (B, D), images normalised here; sums over positives."""
    exponents = torch.exp(scale * queries @ (images / images.norm(dim=1, keepdim=True)).T)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(N):
        same = [j for j in range(N) if item[j] == item[i]]
        for j in same:
            total = total - torch.log(exponents[i, j] / exponents[i].sum()) / len(same)
            total = total - torch.log(exponents[j, i] / exponents[:, i].sum()) / len(same)
    return total / (2 * N)


def gradients(made: UbpLearner, loss: Tensor) -> dict[str, Tensor]:
    made.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in made.named_parameters()}


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("scale", ["softplus", "exp", "raw"])
def test_loss_gradient_and_blur(normalised: bool, scale: str) -> None:
    """Four passes over the same two batches, the blur of each sample kept by hand."""
    made = learner(scale=scale, normalise_queries=normalised, interval=1.0)
    running: dict[int, float] = {}
    level = [1] * N_SAMPLES
    for _ in range(4):
        for given in (batch(seed=2), batch(seed=5)):
            queries = made.network(given.epochs)
            if normalised:
                queries = queries / queries.norm(dim=1, keepdim=True)
            theta = made.logit_scale.theta
            multiplier = {"softplus": torch.log(1 + torch.exp(theta)), "exp": torch.exp(theta), "raw": theta}[scale]
            samples, places = given.sample.tolist(), given.place.tolist()
            images = torch.stack(
                [given.targets[LEVELS[level[s]]][place] for s, place in zip(samples, places, strict=True)]
            )
            expected = written_out(queries, images, multiplier, places)
            wanted = gradients(made, expected)
            found = made.loss(given)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
            got = gradients(made, found)
            for name, gradient in wanted.items():
                torch.testing.assert_close(got[name], gradient, rtol=1e-6, atol=1e-12, msg=name)
            units = images / images.norm(dim=1, keepdim=True)
            logits = (multiplier * (queries * units).sum(1)).tolist()
            for s, logit in zip(samples, logits, strict=True):
                running[s] = 0.3 * logit + 0.7 * running[s] if s in running else logit
            of_batch = np.array([running[s] for s in samples])
            for s, logit in zip(samples, logits, strict=True):
                level[s] = 0 if logit > of_batch.mean() + of_batch.std() else 1
                level[s] = 2 if logit < of_batch.mean() - of_batch.std() else level[s]
            assert made.choice is not None
            assert made.choice.level.tolist() == level
        with torch.no_grad():
            made.network.head.first.weight.mul_(1.1)  # another pass, other logits
    assert set(level) == {0, 1, 2}
    assert made.notes() == {
        "low_blur": pytest.approx(level.count(0) / N_SAMPLES),
        "high_blur": pytest.approx(level.count(2) / N_SAMPLES),
    }


def test_validation_sees_and_changes_no_choice() -> None:
    made, given = learner(), batch()
    made.loss(given)
    before = {name: tensor.nan_to_num() for name, tensor in made.state_dict().items()}
    made.eval()
    unseen = dataclasses.replace(given, sample=torch.arange(N_SAMPLES - N, N_SAMPLES))
    made.loss(unseen)
    assert all(torch.equal(tensor.nan_to_num(), before[name]) for name, tensor in made.state_dict().items())
    assert torch.equal(made.embed(given.targets), given.targets["medium"])


def test_medium_alone_is_a_fixed_prior() -> None:
    fixed, chosen, given = learner(("medium",)), learner(), batch()
    alone = dataclasses.replace(given, targets={"medium": given.targets["medium"]})
    torch.testing.assert_close(fixed.loss(alone), chosen.loss(given))
    assert fixed.notes() == {}
    assert fixed.choice is None
    fixed.loss(alone)


def test_what_is_remembered_is_not_kept_with_the_encoder() -> None:
    made = learner()
    assert {"choice.level", "choice.similarity"} <= weights(made).keys()
    assert not any(name.startswith("choice") for name in weights(made, trained=True))


@pytest.mark.parametrize(
    ("encoder", "shape", "count"),
    [
        ("eegproject", (17, 250), (4250 * 1024 + 1024) + (1024 * 1024 + 1024) + 2 * 1024),
        # TSConv without its last convolution, and the head.
        (
            "tsconv",
            (63, 250),
            (40 * 25 + 40 + 40 * 40 * 63 + 40 + 160) + (1440 * 1024 + 1024) + (1024 * 1024 + 1024) + 2 * 1024,
        ),
    ],
)
def test_published_sizes(encoder: str, shape: tuple[int, int], count: int) -> None:
    shapes = Shapes(
        epochs=shape, targets=dict.fromkeys(LEVELS, (1024,)), subjects=("one",), n_concepts=1654, kind="stimulus"
    )
    made = UbpLearner(UbpSettings(encoder=encoder), shapes)
    assert sum(p.numel() for p in made.parameters()) == count + 1
    assert made.encode(torch.zeros(2, *shape), torch.zeros(2)).shape == (2, 1024)
    assert made.logit_scale().item() == pytest.approx(math.log(1 + 1 / 0.07))


@pytest.mark.parametrize(
    "targets", [{"low": (5,), "high": (5,)}, {"medium": (5,), "low": (5,)}, {"low": (5,), "medium": (5,), "high": (6,)}]
)
def test_features_that_do_not_fit(targets: dict[str, tuple[int]]) -> None:
    shapes = Shapes(epochs=(4, 80), targets=targets, subjects=("one",), n_concepts=2, kind="stimulus")
    with pytest.raises(ConfigError, match="low, medium and high, of the same width"):
        UbpLearner(UbpSettings(), shapes)
    with pytest.raises(ConfigError, match="interval above 0"):
        UbpSettings(interval=0.0)


def test_roles_are_named_where_one_is_wrong() -> None:
    with pytest.raises(ConfigError, match="target features of ubp; got image; allowed: medium, optionally low, high"):
        check_roles(UBP, ("image",))
    check_roles(UBP, ("medium", "low", "high"))
