"""NeuroAlign: Algorithm 1 written out, loss and gradient; its ablations; what the loss weights do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from textbook import without_dropout
from torch import Tensor

from offline.learner import Batch
from offline.methods.network import Shapes
from offline.methods.neuroalign import NeuroAlignLearner, NeuroAlignSettings
from streamdec.errors import ConfigError

N, N_CHANS, N_TIMES, N_IMAGE, N_TEXT = 6, 4, 80, 5, 7
SCALE = 1 / 0.07


def learner(**settings: Any) -> NeuroAlignLearner:
    torch.manual_seed(1)
    shapes = Shapes(
        epochs=(N_CHANS, N_TIMES),
        targets={"image": (N_IMAGE,), "text": (N_TEXT,)},
        subjects=("one",),
        n_concepts=N,
        kind="stimulus",
    )
    made = NeuroAlignLearner(NeuroAlignSettings(**({"n_dims": 8} | settings)), shapes).double()
    without_dropout(made)
    return made


def batch(seed: int = 2) -> Batch:
    torch.manual_seed(seed)
    return Batch(
        epochs=torch.randn(N, N_CHANS, N_TIMES, dtype=torch.float64),
        targets={
            "image": torch.randn(N, N_IMAGE, dtype=torch.float64),
            "text": torch.randn(N, N_TEXT, dtype=torch.float64),
        },
        place=torch.tensor([3, 0, 1, 2, 5, 4]),
        items=torch.arange(N) * 2,
        subject=torch.zeros(N, dtype=torch.long),
        sample=torch.arange(N),
    )


def unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum(1, keepdim=True).sqrt()


def info_nce(a: Tensor, b: Tensor) -> Tensor:
    logits = torch.exp(SCALE * unit(a) @ unit(b).T)
    p = torch.diagonal(logits)
    return -(torch.log(p / logits.sum(1)) + torch.log(p / logits.sum(0))).mean() / 2


def algorithm(made: NeuroAlignLearner, given: Batch) -> list[Tensor]:
    """The three losses as in Algorithm 1; row i of everything belongs together."""
    e = made.head(made.encoder(given.epochs))
    v = made.image_head(given.targets["image"])
    t = made.text_head(given.targets["text"])
    v_of, t_of = v[given.place], t[given.place]
    q = torch.softmax(SCALE * unit(e) @ unit(v_of).T, dim=1)
    p = torch.softmax(SCALE * unit(v_of) @ unit(t_of).T, dim=1).detach()
    guidance = (q * torch.log(q / p)).sum(1).mean()
    return [info_nce(e, v_of), info_nce(v, t), guidance]


def norms(made: NeuroAlignLearner, losses: list[Tensor]) -> np.ndarray:
    """Gradient norm of each loss over the heads it goes through."""
    heads = {"e": made.head, "v": made.image_head, "t": made.text_head}
    found = []
    for loss, names in zip(losses, ("ev", "vt", "ev"), strict=False):
        shared = [parameter for name in names for parameter in heads[name].parameters()]
        grads = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        found.append(math.sqrt(sum(float((g**2).sum()) for g in grads if g is not None)))
    return np.array(found)


@pytest.mark.parametrize("guidance", [True, False])
@pytest.mark.parametrize("adjustment", ["paper", "normalised", "fixed"])
def test_loss_and_gradient(guidance: bool, adjustment: str) -> None:
    made, twin = learner(guidance=guidance, adjustment=adjustment), learner(guidance=guidance)
    before: np.ndarray | None = None
    for seed in (2, 3):
        given = batch(seed)
        losses = algorithm(twin, given)[: 3 if guidance else 2]
        g = norms(twin, losses)
        r = np.zeros_like(g) if before is None else np.abs(g - before) / before
        before = g
        if adjustment == "fixed":
            weights = np.full(len(losses), 1 / len(losses))
        else:
            raised = (g / g.sum() if adjustment == "normalised" else g) * (1 + r) / 0.07
            weights = np.exp(raised - raised.max())
            weights /= weights.sum()
        expected = sum(float(w) * loss for w, loss in zip(weights, losses, strict=True))
        twin.zero_grad()
        expected.backward()
        made.zero_grad()
        loss = made.loss(given)
        loss.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-7)
        theirs = dict(twin.named_parameters())
        for name, parameter in made.named_parameters():
            if name.startswith("logit_scale"):
                continue  # the twin's is a number
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-7, msg=name)
    notes = made.notes()
    assert list(notes) == ["weight_image", "weight_text", "weight_guidance"][: 3 if guidance else 2]
    assert sum(notes.values()) == pytest.approx(1)
    assert made.adjustment.history == []


def test_validation_compares_passes_by_one_loss_and_changes_nothing() -> None:
    """EEG to image, however the weights of the last step in training were."""
    made = learner()
    for seed in (2, 3):
        made.train().loss(batch(seed))
        before = {name: tensor.clone() for name, tensor in made.eval().state_dict().items()}
        with torch.no_grad():
            found, expected = made.loss(batch()), algorithm(made, batch())[0]
        assert float(found) == pytest.approx(float(expected), rel=1e-6)
        assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_without_text_eeg_to_image_is_the_one_loss() -> None:
    """The ablation of table 5; whatever weighs several losses has nothing to weigh."""
    torch.manual_seed(1)
    shapes = Shapes(
        epochs=(N_CHANS, N_TIMES), targets={"image": (N_IMAGE,)}, subjects=("one",), n_concepts=N, kind="stimulus"
    )
    made = NeuroAlignLearner(NeuroAlignSettings(n_dims=8), shapes).double()
    without_dropout(made)
    given = batch()
    del given.targets["text"]
    for mode in (True, False):
        made.train(mode)
        with torch.no_grad():
            eeg, image = made.head(made.encoder(given.epochs)), made.image_head(given.targets["image"])
            assert float(made.loss(given)) == pytest.approx(float(info_nce(eeg, image[given.place])), rel=1e-6)
    made.train().loss(given).backward()
    grouped = {id(p) for group in made.groups() for p in group.parameters}
    assert grouped == {id(p) for p in made.parameters()}
    assert all(p.grad is not None for p in made.parameters())
    assert made.notes() == {"weight_image": 1.0}


def test_masked_diagonal_compares_what_does_not_match() -> None:
    plain, masked = learner(adjustment="fixed"), learner(adjustment="fixed", diagonal="masked")
    with torch.no_grad():
        losses, found, other = algorithm(plain, batch()), plain.loss(batch()), masked.loss(batch())
    assert float(found) == pytest.approx(float(sum(losses)) / 3, rel=1e-5)
    assert float(other) != pytest.approx(float(found), rel=1e-3)


def test_published_size() -> None:
    """TSConv, then 1440 -> 256; images and texts 512 -> 256."""
    shapes = Shapes(
        epochs=(63, 250), targets={"image": (512,), "text": (512,)}, subjects=(), n_concepts=1654, kind="stimulus"
    )
    made = NeuroAlignLearner(NeuroAlignSettings(), shapes)
    tsconv = (25 * 40 + 40) + 2 * 40 + (40 * 40 * 63 + 40) + 2 * 40 + (40 * 40 + 40)

    def head(n_in: int) -> int:
        return (n_in * 256 + 256) + (256 * 256 + 256) + 2 * 256

    n = sum(parameter.numel() for parameter in made.parameters())
    assert n == tsconv + head(1440) + 2 * head(512) + 1
    assert made.encode(torch.zeros(2, 63, 250), torch.zeros(2)).shape == (2, 256)


def test_images_and_texts_decay_five_times_as_fast() -> None:
    made = learner()
    factor = {id(p): group.weight_decay for group in made.groups() for p in group.parameters}
    names = dict(made.named_parameters())
    assert len(factor) == len(names)
    assert factor[id(names["head.first.weight"])] == 1
    assert factor[id(names["image_head.first.weight"])] == factor[id(names["text_head.first.weight"])] == 5
    assert {factor[id(p)] for p in names.values() if p.ndim < 2} == {0}


@pytest.mark.parametrize("wrong", [{"n_dims": 0}, {"adjustment_temperature": 0.0}])
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="neuroalign; got"):
        NeuroAlignSettings(**wrong)
