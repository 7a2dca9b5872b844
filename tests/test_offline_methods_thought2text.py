"""Thought2Text, stage 1: its loss spelt out, the published sizes and settings, and what a held-out concept means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from offline.data.store import Item
from offline.learner import Batch
from offline.methods.base import Training
from offline.methods.network import Shapes
from offline.methods.thought2text import THOUGHT2TEXT, Thought2TextLearner, Thought2TextSettings

CONCEPTS = ("pear", "apple", "pear", "fig")


def training(held: tuple[int, ...] = ()) -> Training:
    rng = np.random.default_rng(0)
    item = np.array([0, 1, 2, 3, 1, 2], np.int64)
    return Training(
        rng.standard_normal((6, 9, 16)).astype(np.float32),
        item,
        np.zeros(6, np.int64),
        {"image": rng.standard_normal((4, 5)).astype(np.float32)},
        np.isin(item, held),
        item,
        tuple(Item(f"i{i}", f"i{i}", concept) for i, concept in enumerate(CONCEPTS)),
        ("one",),
        "stimulus",
    )


def learner(given: Training) -> Thought2TextLearner:
    torch.manual_seed(0)
    shapes = Shapes(epochs=given.shape, targets={"image": (5,)}, subjects=("one",), n_concepts=3, kind="stimulus")
    made = Thought2TextLearner(Thought2TextSettings(), shapes)
    made.begin(given)
    return made


def batch(given: Training, rows: list[int]) -> Batch:
    items, place = np.unique(given.item[rows], return_inverse=True)
    return Batch(
        torch.from_numpy(given.epochs[rows]),
        {"image": torch.from_numpy(given.targets["image"][items])},
        torch.from_numpy(place),
        torch.from_numpy(items),
        torch.from_numpy(given.subject[rows]),
        torch.from_numpy(np.array(rows)),
    )


def paper(made: Thought2TextLearner, given: Training, rows: list[int], label: list[int | None]) -> Tensor:
    """Mean squared error over samples and features, plus mean -log of the class' softmax."""
    embedding = made.network.projector(made.network.encoder(torch.from_numpy(given.epochs[rows])))
    target = torch.from_numpy(given.targets["image"][given.item[rows]])
    logits = embedding @ made.network.classifier.weight.T + made.network.classifier.bias
    loss = ((embedding - target) ** 2).sum() / target.numel()
    known = [(row, k) for row, k in enumerate(label) if k is not None]
    return loss - sum((logits[row].exp()[k] / logits[row].exp().sum()).log() for row, k in known) / max(len(known), 1)


@pytest.mark.parametrize(
    ("held", "rows", "label"),
    [
        ((), [0, 1, 2, 3, 4, 5], [2, 0, 2, 1, 0, 2]),  # in alphabetical order: apple, fig, pear
        ((3,), [0, 1, 2, 3, 4, 5], [2, 0, 2, None, 0, 2]),  # nobody trains on figs
        ((0,), [0, 1, 2, 3], [2, 0, 2, 1]),  # the other pear is trained on
        ((3,), [3, 3], [None, None]),
    ],
)
def test_loss_and_gradient_are_the_papers(held: tuple[int, ...], rows: list[int], label: list[int | None]) -> None:
    given = training(held)
    made = learner(given).eval()
    gradients = []
    for loss in (made.loss(batch(given, rows)), paper(made, given, rows, label)):
        made.zero_grad()
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None})
    torch.testing.assert_close(made.loss(batch(given, rows)), paper(made, given, rows, label), rtol=1e-4, atol=1e-5)
    ours, theirs = gradients
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


def test_settings_and_sizes_are_published() -> None:
    """Adam's betas are the trainer's default; 128 channels x 440 samples -> 512, 40 classes."""
    schedule = Thought2TextSettings().schedule
    assert (schedule.n_epochs_train, schedule.batch_size, schedule.learning_rate) == (100, 16, 2e-5)
    assert (schedule.weight_decay, schedule.warm_up, schedule.clip, schedule.betas) == (1e-3, 0.3, 0.3, (0.9, 0.999))
    assert THOUGHT2TEXT.roles == ("image",)
    shapes = Shapes(epochs=(128, 440), targets={"image": (512,)}, subjects=("a",), n_concepts=40, kind="stimulus")
    with torch.device("meta"):
        made = Thought2TextLearner(Thought2TextSettings(), shapes)
        epochs, subject = torch.empty(2, 128, 440), torch.zeros(2, dtype=torch.int64)
        embeddings = made.encode(epochs, subject)
        assert embeddings.shape == (2, 512)
        assert made.network.classifier(embeddings).shape == (2, 40)
    assert sum(p.numel() for p in made.network.projector.parameters()) == 500 * 512 + 512
    assert sum(p.numel() for p in made.network.classifier.parameters()) == 512 * 40 + 40


def test_folded_layers_make_the_embedding() -> None:
    given = training()
    made = learner(given).eval()
    epochs, subject = torch.from_numpy(given.epochs), torch.from_numpy(given.subject)
    torch.testing.assert_close(made.folded(0)(epochs), made.encode(epochs, subject), rtol=1e-4, atol=1e-5)
