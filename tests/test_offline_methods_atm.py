"""ATM: its loss and gradient against the formula written out, its options, its subjects."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from textbook import without_dropout
from torch import Tensor

from offline.learner import Batch
from offline.methods.atm import AtmLearner, AtmSettings
from offline.methods.network import Shapes
from streamdec.errors import ConfigError

N, N_CHANS, N_TIMES, DIM = 7, 4, 80, 5
THETA = np.log(1 / 0.07)


def learner(roles: tuple[str, ...] = ("image", "text"), **settings: float | bool) -> AtmLearner:
    torch.manual_seed(1)
    shapes = Shapes(
        epochs=(N_CHANS, N_TIMES),
        targets=dict.fromkeys(roles, (DIM,)),
        subjects=("one", "two"),
        n_concepts=4,
        kind="stimulus",
    )
    made = AtmLearner(AtmSettings(**({"hidden": 0.0} | settings)), shapes).double()
    without_dropout(made)
    return made


def batch(roles: tuple[str, ...] = ("image", "text")) -> Batch:
    """Five items, two of them twice; a subject that is not known among the others."""
    torch.manual_seed(2)
    return Batch(
        epochs=torch.randn(N, N_CHANS, N_TIMES, dtype=torch.float64),
        targets={role: torch.randn(5, DIM, dtype=torch.float64) for role in roles},
        place=torch.tensor([0, 1, 2, 3, 4, 1, 0]),
        items=torch.tensor([3, 8, 9, 11, 20]),
        subject=torch.tensor([0, 1, 1, 0, -1, 0, 1]),
        sample=torch.arange(N),
    )


def contrast(queries: Tensor, targets: Tensor, place: Tensor, theta: Tensor) -> Tensor:
    """Symmetric contrastive loss of queries that are not normalised, theta itself the scale; sums over positives."""
    own = targets[place] / targets[place].norm(dim=1, keepdim=True)
    weights = torch.exp(theta * queries @ own.T)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(N):
        same = [j for j in range(N) if place[j] == place[i]]
        for j in same:
            total = total - torch.log(weights[i, j] / weights[i].sum()) / len(same)
            total = total - torch.log(weights[j, i] / weights[:, i].sum()) / len(same)
    return total / (2 * N)


def gradients(made: AtmLearner, loss: Tensor) -> dict[str, Tensor]:
    made.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("settings", "roles"),
    [
        ({}, ("image", "text")),
        ({"image_share": 0.6}, ("image", "text")),
        ({}, ("image",)),
        ({"mse_share": 0.9}, ("image",)),
    ],
)
def test_loss_and_gradient(settings: dict[str, float], roles: tuple[str, ...]) -> None:
    made, given = learner(roles, **settings), batch(roles)
    found = made.loss(given)
    queries, theta = made.network(given.epochs, given.subject), made.logit_scale.theta
    image = contrast(queries, given.targets["image"], given.place, theta)
    if "mse_share" in settings:
        squares = ((queries - given.targets["image"][given.place]) ** 2).sum() / (N * DIM)
        expected = 10 * (0.9 * squares + 0.1 * image)
    elif "text" in roles:
        share = settings.get("image_share", 0.99)
        expected = share * image + (1 - share) * contrast(queries, given.targets["text"], given.place, theta)
    else:
        expected = image
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    # Running statistics of the batch norms do not enter in training mode, so that both passes see the same network.
    got, wanted = gradients(made, made.loss(given)), gradients(made, expected)
    assert got.keys() == wanted.keys()
    assert {"logit_scale.theta", "network.subjects.weight", "network.encoder.temporal.weight"} <= got.keys()
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name in got:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-7, atol=1e-10 * scale, msg=name)


def test_published_sizes() -> None:
    shapes = Shapes(
        epochs=(63, 250),
        targets={"image": (1024,), "text": (1024,)},
        subjects=tuple("abcdefghij"),
        n_concepts=1654,
        kind="stimulus",
    )
    made = AtmLearner(AtmSettings(), shapes)
    assert made.encode(torch.zeros(2, 63, 250), torch.tensor([9, -1])).shape == (2, 1024)
    assert sum(p.numel() for p in made.parameters()) == 3_075_412 + 1
    assert learner().logit_scale.theta.item() == pytest.approx(THETA)


def test_a_subject_that_is_not_known_has_the_shared_token() -> None:
    made, given = learner().eval(), batch()
    unknown = made.encode(given.epochs, torch.full((N,), -1))
    assert not torch.allclose(unknown, made.encode(given.epochs, torch.zeros(N, dtype=torch.int64)))
    for subject in (-1, 1):
        expected = made.encode(given.epochs, torch.full((N,), subject))
        torch.testing.assert_close(made.folded(subject).double()(given.epochs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("option", [{"shares_batch": True}, {"hidden": 1.0}])
def test_options_that_hide_subjects(option: dict[str, bool | float]) -> None:
    """One unknown subject makes all unknown, or all of them are hidden; a batch of known ones is decoded as ever."""
    given = batch()
    unknown = dataclasses.replace(given, subject=torch.full((N,), -1))
    whole = learner().loss(unknown)
    assert not torch.allclose(learner().loss(given), whole)
    torch.testing.assert_close(learner(**option).loss(given), whole)
    known = torch.tensor([0, 1, 1, 0, 1, 0, 1])
    torch.testing.assert_close(
        learner(**option).eval().encode(given.epochs, known), learner().eval().encode(given.epochs, known)
    )


def test_last_channel_is_dropped_as_published() -> None:
    """The same parameters, another function; what it does is tested with the network."""
    plain, changed, given = learner().eval(), learner(drops_last_channel=True).eval(), batch()
    changed.load_state_dict(plain.state_dict())
    assert not torch.allclose(*(made.encode(given.epochs, given.subject) for made in (plain, changed)))


@pytest.mark.parametrize(
    ("settings", "targets", "allowed"),
    [
        ({}, {"image": (5,), "text": (6,)}, "of the same width"),
        ({}, {"image": (5,), "caption": (5,)}, "image, and text"),
        ({"mse_share": 0.9}, {"image": (5,), "text": (5,)}, "image alone"),
    ],
)
def test_features_that_do_not_fit(settings: dict[str, float], targets: dict[str, tuple[int]], allowed: str) -> None:
    shapes = Shapes(epochs=(4, 80), targets=targets, subjects=("one",), n_concepts=2, kind="stimulus")
    with pytest.raises(ConfigError, match=allowed):
        AtmLearner(AtmSettings(**settings), shapes)
    with pytest.raises(ConfigError, match="0 to 1"):
        AtmSettings(image_share=1.5)
