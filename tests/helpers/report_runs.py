"""Runs of tiny stores to report on: subjects with electrodes and images, two methods, seeds, an ablation, left out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import tiny_store
from PIL import Image

from offline.checkpoint import RunFolder
from offline.data.store import Meta, Prepared
from offline.evaluate import Evaluation
from offline.experiment import evaluate_run, fit, open_test
from offline.methods.registry import method
from offline.targets.store import Targets
from offline.transductive import transductive
from offline.windows import time_windows

CH_NAMES = ("O1", "Oz", "O2", "Fz")
KINDS = ("animal", "tool", "food")


def store(folder: Path, subject: str, noise: float = 2.0) -> Prepared:
    """Make a tiny store whose channels are electrodes and whose test items have images and labels that repeat."""
    tiny_store.make(folder / subject, subject=subject, noise=noise)
    meta = msgspec.json.decode((folder / subject / "meta.json").read_bytes(), type=Meta)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    items = []
    for i, item in enumerate(meta.items["test"]):
        name, label = f"{i:02d}.png", f"{KINDS[i % 3]} {i}"
        pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(images / name)
        items.append(msgspec.structs.replace(item, image=name, label=label))
    signal = msgspec.structs.replace(meta.signal, ch_names=CH_NAMES)
    meta = msgspec.structs.replace(meta, signal=signal, images=str(images), items=meta.items | {"test": tuple(items)})
    (folder / subject / "meta.json").write_bytes(msgspec.json.encode(meta))
    return Prepared(folder / subject)


def run(out: Path, name: str, settings: dict, stores: list[Prepared], test: Prepared, seed: int = 0) -> Evaluation:
    """Fit and evaluate."""
    chosen = method(name)
    targets = {"image": Targets(stores[0].path.with_name(f"{stores[0].path.name}-targets"))}
    fit(chosen, msgspec.convert(settings, chosen.settings), stores, targets, out, seed=seed)
    evaluation = evaluate_run(out, test)
    RunFolder(out).keep_evaluation(evaluation.subject, evaluation)
    return evaluation


def make(folder: Path) -> Path:
    """Make a folder of run folders, nested."""
    a, b = (store(folder, subject) for subject in ("sub-01", "sub-02"))
    runs = folder / "runs"
    short = {"schedule": {"n_epochs_train": 2, "batch_size": 64}}
    for own, other in ((a, b), (b, a)):
        subject = own.meta.subject
        for seed in (0, 1):
            run(runs / "ridge" / "intra" / subject / f"seed-{seed}", "ridge", {}, [own], own, seed)
        run(runs / "nice" / "intra" / subject / "seed-0", "nice", short, [own], own)
        run(runs / "one-alpha" / "intra" / subject / "seed-0", "ridge", {"per_feature": False}, [own], own)
        run(runs / "ridge" / "left_out" / subject / "seed-0", "ridge", {}, [other], own)
        path = runs / "ridge" / "intra" / subject / "seed-0"
        RunFolder(path).keep_evaluation(f"{subject}-masked", time_windows(path), "time_windows")
        test = open_test(path)
        means, shown, repetitions = test.averaged()
        record = transductive(test.about, test.encode(means), test.gallery, shown, repetitions)
        RunFolder(path).keep_evaluation(subject, record, "transductive")
    table = "concept\tBottom-up Category\n" + "".join(f"{KINDS[i % 3]} {i}\t{KINDS[i % 3]}\n" for i in range(12))
    (folder / "categories.tsv").write_text(table)
    return runs
