"""Names of embedding spaces: the same for runs whose candidates are the same, whatever does not change them."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import tiny_store
import tiny_targets

from offline.data.store import Prepared
from offline.experiment import fit, open_run
from offline.methods.registry import method
from offline.space import origin, space
from offline.targets.store import Targets, TargetsMeta

SHORT = {"schedule": {"n_epochs_train": 1}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return tiny_store.make(tmp_path_factory.mktemp("space") / "store", n_train=20, n_test=4, repetitions=1)


def named(store: Prepared, out: Path, name: str, targets: dict[str, Targets], seed: int = 0) -> str:
    """Fit, and name the space."""
    chosen = method(name)
    run = fit(chosen, chosen.configured({} if name == "ridge" else SHORT, "test"), [store], targets, out, seed=seed)
    _, meta, _, encoder = open_run(out)
    return space(run.encoder, meta, encoder, targets)


def told_otherwise(targets: Targets, path: Path, provenance: dict[str, object]) -> Targets:
    """The same features, by another encoder."""
    shutil.copytree(targets.path, path)
    meta = msgspec.json.decode((path / "targets.json").read_bytes(), type=TargetsMeta)
    (path / "targets.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(meta, provenance=provenance)))
    return Targets(path)


def test_untouched_features_name_their_encoder(store: Prepared, tmp_path: Path) -> None:
    known, other = tiny_targets.make(store, {"known", "turned"}).values()
    first = named(store, tmp_path / "a", "nice", {"image": known})
    assert first.startswith("sha256:")
    assert named(store, tmp_path / "b", "nice", {"image": known}, seed=1) == first
    assert named(store, tmp_path / "c", "atm", {"image": known, "text": other}) == first, "texts leave no trace"
    stranger = told_otherwise(known, tmp_path / "stranger", {"seed": 1})
    assert named(store, tmp_path / "d", "nice", {"image": stranger}) != first


def test_changed_features_name_the_change(store: Prepared, tmp_path: Path) -> None:
    known = tiny_targets.make(store, {"known"})["known"]
    plain = named(store, tmp_path / "a", "nice", {"image": known})
    scaled = named(store, tmp_path / "b", "ridge", {"image": known})
    assert scaled == named(store, tmp_path / "c", "ridge", {"image": known}, seed=1)
    noisy = tiny_store.make(tmp_path / "noisy", n_train=20, n_test=4, repetitions=1, noise=2.0)
    assert scaled == named(noisy, tmp_path / "d", "ridge", {"image": known}), "other epochs, the same candidates"
    learnt = [named(store, tmp_path / f"hvf{seed}", "hvf", {"known": known}, seed=seed) for seed in range(2)]
    assert len({plain, scaled, *learnt}) == 4


def test_origin() -> None:
    folder = {"model": "/here/clip", "weights": "sha256:12", "class": "CLIPModel", "transformers": "5.0"}
    assert origin(folder) == origin(folder | {"model": "/there/clip", "transformers": "5.1", "images": ["blurred"]})
    assert origin(folder) != origin(folder | {"weights": "sha256:13"})
    tagged = {"model": "ViT-B-32", "weights": "laion2b", "open_clip": "3.3"}
    assert origin(tagged) == {"model": "ViT-B-32", "weights": "laion2b"}
    assert origin({"parts": {"a": tagged}}) == {"parts": {"a": origin(tagged)}}
