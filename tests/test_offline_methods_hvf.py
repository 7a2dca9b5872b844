"""HVF: its loss and gradient against the formula written out; its backbones; one, two and three target features."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from textbook import without_dropout
from torch import Tensor

from offline.generation.prior import FusionPrior, Prior, PriorMeta, PriorSettings, write
from offline.learner import Batch
from offline.methods.hvf import HvfLearner, HvfSettings
from offline.methods.network import Shapes
from streamdec.errors import ConfigError

N, N_CHANS, N_TIMES = 7, 3, 20
WIDTHS = {"rn50": (4,), "vit_b32": (3,), "vae": (2, 2, 2)}


def learner(names: tuple[str, ...] = tuple(WIDTHS), **settings: str | float | int) -> HvfLearner:
    torch.manual_seed(1)
    made = HvfLearner(HvfSettings(**({"n_dims": 6, "n_inner": 5} | settings)), shapes(names)).double()
    without_dropout(made)
    return made


def shapes(names: tuple[str, ...], epochs: tuple[int, int] = (N_CHANS, N_TIMES)) -> Shapes:
    targets = {name: WIDTHS[name] for name in names}
    return Shapes(epochs=epochs, targets=targets, subjects=("one",), n_concepts=4, kind="stimulus")


def batch(names: tuple[str, ...] = tuple(WIDTHS)) -> Batch:
    """Five items, two of them twice."""
    torch.manual_seed(2)
    return Batch(
        epochs=torch.randn(N, N_CHANS, N_TIMES, dtype=torch.float64),
        targets={name: torch.randn(5, *WIDTHS[name], dtype=torch.float64) for name in names},
        place=torch.tensor([0, 1, 2, 3, 4, 1, 0]),
        items=torch.tensor([3, 8, 9, 11, 20]),
        subject=torch.zeros(N, dtype=torch.int64),
        sample=torch.arange(N),
    )


def normed(x: Tensor, p: dict[str, Tensor], of: str) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    deviation = torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-6)
    return centred / deviation * p[f"{of}.norm.weight"] + p[f"{of}.norm.bias"]


def refined(x: Tensor, p: dict[str, Tensor], of: str) -> Tensor:
    """LN(x + W2 GELU(W1 x))."""
    hidden = x @ p[f"{of}.inner.weight"].T
    gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return normed(x + gelu @ p[f"{of}.outer.weight"].T, p, of)


@pytest.mark.parametrize("names", [("vae",), ("rn50", "vit_b32"), tuple(WIDTHS)])
def test_loss_and_gradient(names: tuple[str, ...]) -> None:
    """From epochs and features to the loss, everything by hand."""
    made, given = learner(names), batch(names)
    p = dict(made.named_parameters())
    with torch.no_grad():
        for name, parameter in p.items():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) / 3)
    rows = range(N)
    eeg = given.epochs.reshape(N, -1) @ p["network.first.weight"].T + p["network.first.bias"]
    fused = sum(
        given.targets[name].reshape(5, -1) @ p[f"fusion.align.{name}.weight"].T + p[f"fusion.align.{name}.bias"]
        for name in names
    )
    eeg, image = refined(eeg, p, "network"), refined(fused, p, "fusion")[given.place]
    eeg, image = (x / x.norm(dim=1, keepdim=True) for x in (eeg, image))
    exponents = torch.exp(torch.exp(p["logit_scale.theta"]) * eeg @ image.T)
    expected = torch.zeros((), dtype=torch.float64)
    for i in rows:
        same = [j for j in rows if given.place[j] == given.place[i]]
        for j in same:
            expected = expected - torch.log(exponents[i, j] / exponents[i].sum()) / len(same)
            expected = expected - torch.log(exponents[j, i] / exponents[:, i].sum()) / len(same)
    expected = expected / (2 * N)
    found = made.loss(given)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    parameters = list(p.values())
    for name, got, wanted in zip(
        p, torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-13, msg=name)


def test_published_sizes() -> None:
    brain = (4250 * 1024 + 1024) + 2 * 1024 * 1024 + 2 * 1024
    fusion = (1024 + 512 + 1024) * 1024 + 3 * 1024 + 2 * 1024 * 1024 + 2 * 1024
    published = Shapes(
        epochs=(17, 250),
        targets={"rn50": (1024,), "vit_b32": (512,), "vae": (4, 16, 16)},
        subjects=("one",),
        n_concepts=1654,
        kind="stimulus",
    )
    with torch.device("meta"):
        made = HvfLearner(HvfSettings(), published)
        assert made.encode(torch.empty(2, 17, 250), torch.zeros(2)).shape == (2, 1024)
        rows = {role: torch.empty(3, *shape) for role, shape in published.targets.items()}
        assert made.embed(rows).shape == (3, 1024)
    assert sum(p.numel() for p in made.parameters()) == brain + fusion + 1
    assert learner().logit_scale().item() == pytest.approx(1 / 0.07)


def test_every_target_counts() -> None:
    made, given = learner(), batch()
    whole = made.loss(given)
    for name in WIDTHS:
        other = given.targets | {name: given.targets[name].flip(0)}
        assert not torch.allclose(made.loss(dataclasses.replace(given, targets=other)), whole)


BACKBONES = get_type_hints(HvfSettings)["backbone"].__args__


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones(backbone: str) -> None:
    """Each learns, fuses the same way, and folds to what it is."""
    torch.manual_seed(1)
    made = HvfLearner(HvfSettings(backbone=backbone, n_dims=6, n_inner=5), shapes(("rn50",), (4, 160)))
    assert type(made.fusion) is type(learner().fusion)
    epochs, subject = torch.randn(6, 4, 160), torch.zeros(6, dtype=torch.int64)
    given = Batch(epochs, {"rn50": torch.randn(6, 4)}, torch.arange(6), torch.arange(6), subject, torch.arange(6))
    made.loss(given).backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    made.eval()
    with torch.no_grad():
        torch.testing.assert_close(made.folded(-1)(epochs), made.encode(epochs, subject), atol=1e-5, rtol=1e-5)


def test_wrong_features_and_settings() -> None:
    for targets in ({}, {"rn.50": (4,)}):
        wrong = Shapes(epochs=(4, 80), targets=targets, subjects=("one",), n_concepts=2, kind="stimulus")
        with pytest.raises(ConfigError, match="one or more"):
            HvfLearner(HvfSettings(), wrong)
    with pytest.raises(ConfigError, match="1 or more"):
        HvfSettings(n_inner=0)


def _prior(folder: Path, **changes: int) -> str:
    """A Fusion Prior of random weights."""
    torch.manual_seed(5)
    settings = PriorSettings(**({"n_dims": 6, "n_inner": 5, "n_projector": 4} | changes))
    widths = {name: math.prod(shape) for name, shape in WIDTHS.items()}
    network = FusionPrior(widths, settings)
    meta = PriorMeta(
        model="none",
        settings=settings,
        seed=0,
        encoders={name: name for name in WIDTHS},
        widths=widths,
        features={},
        latents="",
        n_images=0,
        loss=0.0,
        commit="",
        versions={},
    )
    write(folder, network, {}, {}, meta)
    return str(folder)


def test_frozen_prior(tmp_path: Path) -> None:
    """The prior's fusion is taken, never trained, and has no dropout; what is trained is the brain's side."""
    made = learner(prior=_prior(tmp_path)).float()
    made.begin(None)  # type: ignore[arg-type]
    wanted = Prior(tmp_path).network.fusion.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in made.fusion.state_dict().items())
    made.train()
    assert made.network.training
    assert not made.fusion.training
    given = batch()
    given = dataclasses.replace(
        given, epochs=given.epochs.float(), targets={name: array.float() for name, array in given.targets.items()}
    )
    torch.testing.assert_close(made.embed(given.targets), made.eval().embed(given.targets))
    made.train()
    made.loss(given).backward()
    assert all(parameter.grad is None for parameter in made.fusion.parameters())
    assert all(parameter.grad is not None for parameter in made.network.parameters())
    trained = {id(parameter) for group in made.groups() for parameter in group.parameters}
    assert not trained & {id(parameter) for parameter in made.fusion.parameters()}


def test_prior_of_another_size(tmp_path: Path) -> None:
    path = _prior(tmp_path, n_inner=9)
    with pytest.raises(ConfigError, match="n_inner"):
        learner(prior=path).begin(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="standardise"):
        HvfSettings(prior=path, standardise=True)
    with pytest.raises(ConfigError, match="features for the prior"):
        learner(("vae",), prior=path, n_inner=9).begin(None)  # type: ignore[arg-type]
