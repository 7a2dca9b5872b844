"""CLIP-MUSED: its loss spelt out from the paper, every switch, labels, and a new subject by tokens alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny_store
import tiny_targets
import torch
from torch import Tensor, nn

from offline.checkpoint import load
from offline.data.store import Item, Prepared
from offline.experiment import evaluate_run, fit, open_run
from offline.learner import Batch
from offline.methods.base import Training
from offline.methods.mused import MUSED, MusedLearner, MusedSettings
from offline.methods.network import Shapes
from offline.methods.ridge import RIDGE
from offline.targets.store import Targets
from streamdec.config import convert
from streamdec.errors import ConfigError

N_ITEMS, N, N_LABELS = 5, 12, 4
SMALL: dict[str, Any] = {"width": 8, "n_layers": 2, "n_heads": 2, "n_hidden": 12, "patch": (2, 5)}
WIDTHS = {"image": (6,), "high": (7,), "low": (3, 2), "labels": (N_LABELS,)}


def training(*, held: tuple[int, ...] = (), roles: tuple[str, ...] = tuple(WIDTHS)) -> Training:
    rng = np.random.default_rng(2)
    targets = {role: rng.standard_normal((N_ITEMS, *WIDTHS[role])).astype(np.float32) for role in roles}
    if "labels" in targets:
        targets["labels"] = (targets["labels"] > 0).astype(np.float32)
    item = np.arange(N, dtype=np.int64) % N_ITEMS
    return Training(
        rng.standard_normal((N, 3, 10)).astype(np.float32),
        item,
        np.arange(N, dtype=np.int64) % 2,
        targets,
        np.isin(item, held),
        item,
        tuple(Item(f"i{i}", f"i{i}", "ab"[i % 2] if i < 4 else "c") for i in range(N_ITEMS)),
        ("one", "two"),
        "stimulus",
    )


def learner(given: Training, seed: int = 0, **settings: Any) -> MusedLearner:
    torch.manual_seed(seed)
    shapes = Shapes(
        epochs=given.shape,
        targets={role: array.shape[1:] for role, array in given.targets.items()},
        subjects=given.subjects,
        n_concepts=3,
        kind=given.kind,
    )
    made = MusedLearner(MusedSettings(**(SMALL | settings)), shapes)
    made.begin(given)
    return made.eval()


def batch(given: Training, rows: np.ndarray | None = None) -> Batch:
    rows = np.arange(N) if rows is None else rows
    items, place = np.unique(given.item[rows], return_inverse=True)
    return Batch(
        torch.from_numpy(given.epochs[rows]),
        {role: torch.from_numpy(array[items]) for role, array in given.targets.items()},
        torch.from_numpy(place),
        torch.from_numpy(items),
        torch.from_numpy(given.subject[rows]),
        torch.from_numpy(rows),
    )


def cosines(rows: Tensor) -> Tensor:
    return torch.stack([torch.stack([a @ b / (a.norm() * b.norm()) for b in rows]) for a in rows])


def similarity_loss(tokens: Tensor, features: Tensor) -> Tensor:
    one, other = cosines(tokens), cosines(features.flatten(1))
    n = len(tokens)
    return sum((one[i, j] - other[i, j]) ** 2 for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


def contrast(queries: Tensor, targets: Tensor, item: np.ndarray, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE whose positives are all rows of the same item, in equal shares."""
    logits = scale * torch.stack([torch.stack([q @ t / (q.norm() * t.norm()) for t in targets]) for q in queries])
    total = torch.zeros(())
    for each in (logits, logits.T):
        chance = each.exp() / each.exp().sum(1, keepdim=True)
        for i in range(len(item)):
            same = np.flatnonzero(item == item[i])
            total = total - sum(chance[i, j].log() for j in same) / len(same)
    return total / (2 * len(item))


def paper(made: MusedLearner, given: Training, weights: tuple[float, float, float, float, float]) -> Tensor:
    """Labels, orthogonality, RSA of high and low tokens as in arXiv 2402.08994, and the retrieval head."""
    of_labels, across, of_high, of_low, of_retrieval = weights
    epochs, subject = torch.from_numpy(given.epochs), torch.from_numpy(given.subject)
    high, low = made.network(epochs, subject)
    targets = {role: torch.from_numpy(array[given.item]) for role, array in given.targets.items()}
    chance = torch.sigmoid(torch.cat([high, low], 1) @ made.network.labels.weight.T + made.network.labels.bias)
    y = targets["labels"]
    cross_entropy = -(y * chance.log() + (1 - y) * (1 - chance).log()).mean()
    frobenius = ((high @ low.T) ** 2).sum().sqrt()
    queries = made.network.head(torch.cat([high, low], 1))
    return (
        of_labels * cross_entropy
        + across * frobenius
        + of_high * similarity_loss(high, targets["high"])
        + of_low * similarity_loss(low, targets["low"])
        + of_retrieval * contrast(queries, targets["image"], given.item, made.logit_scale.theta.exp())
    )


def gradients(made: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    made.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


PUBLISHED = {"label_weight": 1.0, "orthogonality": 1e-3, "rsa_high": 1e-3, "rsa_low": 1e-1, "retrieval": 1.0}


@pytest.mark.parametrize(
    "weights", [PUBLISHED, *({key: 2.0 if key == on else 0.0 for key in PUBLISHED} for on in PUBLISHED)]
)
def test_loss_and_gradient_are_the_papers(weights: dict[str, float]) -> None:
    """As published, and each term alone: a switched-off term adds nothing."""
    given = training()
    made = learner(given, **weights)
    ours, theirs = made.loss(batch(given)), paper(made, given, tuple(weights.values()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    mine = gradients(made, made.loss(batch(given)))
    expected = gradients(made, paper(made, given, tuple(weights.values())))
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_defaults_are_published() -> None:
    settings = MusedSettings()
    assert {key: getattr(settings, key) for key in PUBLISHED} == PUBLISHED
    schedule = settings.schedule
    assert (schedule.n_epochs_train, schedule.batch_size, schedule.learning_rate) == (500, 64, 1e-3)
    assert (settings.n_heads, settings.width // settings.n_heads, settings.n_hidden) == (4, 64, 512)


def test_rsa_is_off_without_features() -> None:
    given = training(roles=("image", "labels"))
    made = learner(given)
    weighty = learner(given, rsa_high=5.0, rsa_low=5.0)
    assert torch.equal(made.loss(batch(given)), weighty.loss(batch(given)))


def test_one_token_has_no_orthogonality() -> None:
    given = training()
    made = learner(given, n_tokens=1)
    assert torch.equal(made.loss(batch(given)), learner(given, n_tokens=1, orthogonality=9.0).loss(batch(given)))
    assert [tokens.shape for tokens in made.network.tokens] == [(1, 8)] * 2


def test_concepts_are_labels_where_none_are_given() -> None:
    """Held-out concepts count as none: validating on them says nothing of labels."""
    given = training(held=(4,), roles=("image",))
    made = learner(given, retrieval=0.0, orthogonality=0.0)
    rows = np.array([0, 1, 2, 3, 4, 9])  # items 0 1 2 3 4 4; concepts a b a b c c
    logits = made.classify(*(torch.from_numpy(array[rows]) for array in (given.epochs, given.subject)))[:4]
    one_hot = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]])
    chance = torch.sigmoid(logits)
    expected = -(one_hot * chance.log() + (1 - one_hot) * (1 - chance).log()).mean()
    torch.testing.assert_close(made.loss(batch(given, rows)), expected)
    assert made.loss(batch(given, np.array([4, 9]))) == 0


def test_rates_and_decay() -> None:
    """The transformer's layers at a tenth of the rate; tokens, positions, vectors without decay."""
    made = learner(training())
    of = {id(p): name for name, p in made.named_parameters()}
    rows = {of[id(p)]: (group.learning_rate, group.weight_decay) for group in made.groups() for p in group.parameters}
    assert rows.keys() == dict(made.named_parameters()).keys()
    assert rows["network.blocks.0.out.weight"] == (0.1, 1.0)
    assert rows["network.blocks.0.out.bias"] == (0.1, 0.0)
    assert rows["network.embedding.weight"] == (1.0, 1.0)
    assert rows["network.tokens.1"] == rows["network.position"] == rows["logit_scale.theta"] == (1.0, 0.0)


def test_wrong_settings_and_roles() -> None:
    with pytest.raises(ConfigError, match="0 or more, one above 0"):
        MusedSettings(label_weight=0, orthogonality=0, rsa_high=0, rsa_low=0, retrieval=0)
    with pytest.raises(ConfigError, match="a multiple of n_heads, 3"):
        MusedSettings(n_heads=3)
    with pytest.raises(ConfigError, match="allowed: image, high, low, labels"):
        learner(msgspec.structs.replace(training(), targets=training().targets | {"text": np.zeros((5, 2))}))


# -- a new subject -----------------------------------------------------------------------------------------------------

SCHEDULE = {"n_epochs_train": 12, "batch_size": 32, "learning_rate": 3e-3}


def settings_of(**given: Any) -> MusedSettings:
    base = {"width": 32, "n_layers": 1, "n_hidden": 32, "patch": [4, 10], "attention_rate": 1.0, "schedule": SCHEDULE}
    return convert(base | given, MusedSettings, "test")


def roles(store: Prepared) -> dict[str, Targets]:
    made = tiny_targets.make(store, {"known", "turned"})
    return {"image": made["known"], "high": made["turned"]}


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[Prepared]:
    folder = tmp_path_factory.mktemp("stores")
    return [tiny_store.make(folder / who, noise=1.0, subject=who) for who in ("first", "second", "third")]


@pytest.fixture(scope="module")
def base(stores: list[Prepared]) -> Path:
    out = stores[0].path.parent / "base"
    fit(MUSED, settings_of(standardise=True), stores[:2], roles(stores[0]), out)
    return out


def test_new_subject_adds_tokens_only(base: Path, stores: list[Prepared]) -> None:
    out = base.with_name("joined")
    fit(MUSED, settings_of(standardise=True, base=str(base)), stores[2:], roles(stores[0]), out)
    _, _, _, encoder = open_run(out)
    assert encoder.subjects == ("first", "second", "third")
    before, _ = load(base / "encoder.safetensors")
    after, _ = load(out / "encoder.safetensors")
    assert after.keys() - before.keys() == {"learner.network.tokens.2"}
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    mean = (before["learner.network.tokens.0"] + before["learner.network.tokens.1"]) / 2
    assert np.abs(after["learner.network.tokens.2"] - mean).max() > 1e-3
    _, _, _, old = open_run(base)
    epochs = np.asarray(stores[0].part("test").epochs[:6])
    np.testing.assert_array_equal(encoder(epochs, "first"), old(epochs, "first"))
    assert not np.allclose(encoder(epochs, "third"), old(epochs, "third"))
    assert encoder.folded("third")(torch.from_numpy(epochs.copy())).shape == (6, 6)
    for store in stores:
        found = evaluate_run(out, store).averaged
        assert found is not None
        assert found.top1_interval[0] > found.chance


def test_labels_are_scored(stores: list[Prepared], tmp_path: Path) -> None:
    """Six labels of each stimulus, several at once; RSA, InfoNCE and standardising leave them as they are."""
    made = tiny_targets.make(stores[0], {"known", "signs"})
    known = {"image": made["known"], "labels": made["signs"]}
    fit(MUSED, settings_of(standardise=True), stores[:1], known, tmp_path / "run")
    found = evaluate_run(tmp_path / "run").multi_label
    assert found is not None
    assert found.n_labels == 6
    assert found.auc > 0.7
    _, _, _, encoder = open_run(tmp_path / "run")
    part = stores[0].part("test")
    means = part.means(part.of_item())
    true = made["signs"].of(part.items) > 0
    chance = torch.sigmoid(encoder.learner.classify(torch.from_numpy(means), torch.zeros(12, dtype=torch.int64)))
    assert found.hamming == pytest.approx(np.mean((chance.detach().numpy() >= 0.5) != true))
    fit(MUSED, settings_of(label_weight=0.0), stores[:1], known, tmp_path / "none")
    assert evaluate_run(tmp_path / "none").multi_label is None


def test_base_must_fit(base: Path, stores: list[Prepared], tmp_path: Path) -> None:
    known = roles(stores[0])
    for settings, store, said in (
        (settings_of(base=str(base), standardise=True), stores[1], "new subjects; got second"),
        (settings_of(base=str(base)), stores[2], "standardise of a run on base"),
        (settings_of(base=str(base), standardise=True, width=64), stores[2], "width of a run on base"),
    ):
        with pytest.raises(ConfigError, match=said):
            fit(MUSED, settings, [store], known, tmp_path / said[:5])
    with pytest.raises(ConfigError, match="targets of a run on base"):
        fit(MUSED, settings_of(base=str(base), standardise=True), stores[2:], {"image": known["image"]}, tmp_path / "r")


def test_base_of_other_concepts(base: Path, stores: list[Prepared], tmp_path: Path) -> None:
    """As many concepts under other names would be other labels."""
    renamed = tmp_path / "renamed"
    shutil.copytree(stores[2].path, renamed)
    meta = (renamed / "meta.json").read_text()
    (renamed / "meta.json").write_text(meta.replace('"train/', '"other/'))
    with pytest.raises(ConfigError, match="concepts; got others"):
        fit(
            MUSED,
            settings_of(base=str(base), standardise=True),
            [Prepared(renamed)],
            roles(stores[0]),
            tmp_path / "run",
        )


def test_base_must_be_a_run_of_mused(stores: list[Prepared], tmp_path: Path) -> None:
    fit(RIDGE, RIDGE.settings(), stores[:1], {"image": roles(stores[0])["image"]}, tmp_path / "ridge")
    with pytest.raises(ConfigError, match="a run of mused"):
        fit(MUSED, settings_of(base=str(tmp_path / "ridge")), stores[2:], roles(stores[0]), tmp_path / "run")
