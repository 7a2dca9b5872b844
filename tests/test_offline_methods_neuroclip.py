"""NeuroCLIP: its loss written out, what is frozen and stored, rates and decays, ablations, wrong features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from textbook import without_dropout
from torch import Tensor

from offline.fit import load_weights, weights
from offline.learner import Batch
from offline.methods.network import Shapes
from offline.methods.neuroclip import NeuroClipLearner, NeuroClipSettings
from offline.targets.openclip import load
from streamdec.errors import ConfigError

N, U = 6, 4
TINY: dict[str, Any] = {"model": "tiny/random", "encoder": "tsconv", "n_prompts": 2}
TARGETS: dict[str, tuple[int, ...]] = {}


@pytest.fixture(scope="module", autouse=True)
def sizes() -> Any:
    """Shapes of the tiny transformer's tokens and features."""
    visual = load("tiny", "random").network.visual
    n_patches = visual.positional_embedding.shape[0] - 1
    width, dim = visual.proj.shape
    TARGETS.update(tokens=(4, n_patches, width), thumbnails=(3, 56, 56), image=(dim,))


def learner(roles: tuple[str, ...] = ("tokens", "thumbnails", "image"), **settings: Any) -> NeuroClipLearner:
    torch.manual_seed(1)
    shapes = Shapes(
        epochs=(4, 80),
        targets={role: TARGETS[role] for role in roles},
        subjects=("one",),
        n_concepts=3,
        kind="stimulus",
    )
    made = NeuroClipLearner(NeuroClipSettings(**(TINY | settings)), shapes)
    without_dropout(made)
    return made


def batch() -> Batch:
    torch.manual_seed(2)
    return Batch(
        epochs=torch.randn(N, 4, 80),
        targets={
            "tokens": torch.randn(U, *TARGETS["tokens"]),
            "thumbnails": torch.rand(U, *TARGETS["thumbnails"]),
            "image": torch.randn(U, *TARGETS["image"]),
        },
        place=torch.tensor([0, 1, 2, 3, 1, 0]),
        items=torch.tensor([2, 3, 5, 7]),
        subject=torch.zeros(N, dtype=torch.long),
        sample=torch.arange(N),
    )


def softened(queries: Tensor, images: Tensor, frozen: Tensor, place: Tensor, scale: float, alpha: float) -> Tensor:
    """Row by row: 1 - alpha over the rows of the same item, alpha over the others by their likeness."""
    queries, images, frozen = (x / x.norm(dim=1, keepdim=True) for x in (queries, images, frozen))
    total = torch.zeros(())
    for one, other in ((queries, images), (images, queries)):
        for i in range(N):
            same = [j for j in range(N) if place[j] == place[i]]
            rest = [j for j in range(N) if place[j] != place[i]]
            likeness = torch.softmax(torch.stack([frozen[i] @ frozen[j] for j in rest]) / 0.1, 0)
            log_p = torch.log_softmax(scale * other @ one[i], 0)
            total = total - sum((1 - alpha) / len(same) * log_p[j] for j in same)
            total = total - sum(alpha * share * log_p[j] for share, j in zip(likeness, rest, strict=True))
    return total / (2 * N)


@pytest.mark.parametrize(
    "settings", [{}, {"alpha": 0.0}, {"cached": True}, {"dynamic_filter": False, "instance": False}]
)
def test_loss_and_gradient(settings: dict[str, Any]) -> None:
    made, twin, given = learner(**settings), learner(**settings), batch()
    loss = made.loss(given)
    if settings.get("cached"):
        images = twin.vision(given.targets["image"])
    else:
        images = twin.vision(given.targets["tokens"], given.targets["thumbnails"])
    queries = twin.encoder(given.epochs)
    frozen = given.targets["image"][given.place]
    alpha = settings.get("alpha", 0.2)
    expected = softened(queries, images[given.place], frozen, given.place, twin.logit_scale().item(), alpha)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    theirs = dict(twin.named_parameters())
    for name, parameter in made.named_parameters():
        if parameter.requires_grad and not name.startswith("logit_scale"):
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-6, msg=name)


def test_transformer_is_frozen_and_found_again_by_name() -> None:
    made = learner()
    names = [name for name, parameter in made.named_parameters() if parameter.requires_grad]
    assert not any(name.startswith("vision.vit.") for name in names)
    assert {"vision.prompts", "vision.head.weight"} < set(names)
    stored = weights(made)
    assert not any(name.startswith("vision.vit.") for name in stored)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    again = learner()
    load_weights(again, weights(made))
    given = batch()
    torch.testing.assert_close(again.eval().embed(given.targets), made.eval().embed(given.targets))


def test_rates_and_decays() -> None:
    made = learner()
    found = {id(p): group for group in made.groups() for p in group.parameters}
    for name, parameter in made.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in found
            continue
        group = found[id(parameter)]
        assert group.learning_rate == (10 if name.startswith("vision.") else 1), name
        assert group.weight_decay == (0 if parameter.ndim < 2 or name == "vision.prompts" else 1), name


@pytest.mark.parametrize(
    ("settings", "gone"),
    [
        ({"dynamic_filter": False}, ("filter", "fusion")),
        ({"dynamic_filter": False, "instance": False}, ("filter", "fusion", "instance")),
        ({"n_prompts": 0}, ("prompts",)),
    ],
)
def test_ablation_takes_a_part_away(settings: dict[str, Any], gone: tuple[str, ...]) -> None:
    whole, less = (dict(learner(**chosen).named_parameters()) for chosen in ({}, settings))
    assert set(whole) - set(less) == {name for name in whole if name.split(".")[1] in gone}
    assert not set(less) - set(whole)


def test_wrong_features_are_said() -> None:
    with pytest.raises(ConfigError, match=r"tokens, thumbnails.*cached = true"):
        learner(roles=("image",))
    assert learner(roles=("image",), cached=True).dim == TARGETS["image"][0]
    with pytest.raises(ConfigError, match="nothing sees it"):
        NeuroClipSettings(instance=False)
    TARGETS["image"], right = (3,), TARGETS["image"]
    try:
        with pytest.raises(ConfigError, match="widths of tokens and image features"):
            learner()
    finally:
        TARGETS["image"] = right
