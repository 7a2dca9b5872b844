"""From a prepared store and target features to a fitted run, and from a run to its evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from streamdec.decode.evidence import calibrate
from streamdec.decode.gallery import Gallery, unit
from streamdec.decode.manifest import Calibration
from streamdec.errors import ConfigError
from streamdec.types import Bool, Float32

from . import evaluate
from .checkpoint import FittedMeta, RunFolder, RunMeta, commit, versions
from .data import splits
from .data.store import Int64, Part, PartName, Prepared
from .evaluate import Evaluation
from .methods.base import Encoder, Method, MethodSettings, Training
from .methods.registry import method as method_named
from .progress import Report, silent
from .targets.store import Targets

_CALIBRATION_CANDIDATES = 200
_MAX_SCALE = 1000.0


def fit(
    method: Method,
    settings: MethodSettings,
    prepared: Prepared,
    targets: Targets,
    out: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    report: Report = silent,
) -> RunFolder:
    """Fit a method on the training part, calibrate its probabilities on what it never saw, and keep both.

    A call that was killed is repeated as it was, and goes on after the last finished pass.

    Raises
    ------
    ConfigError
        ``out`` holds another run, or a setting is wrong.
    DataError
        Store or features do not fit each other.
    """
    run = RunFolder(out)
    run.start(
        RunMeta(
            method=method.name,
            settings=msgspec.json.decode(msgspec.json.encode(settings)),
            seed=seed,
            prepared=str(prepared.path.resolve()),
            data=prepared.meta.fingerprint,
            targets=str(targets.path.resolve()),
            features=targets.meta.fingerprint,
            commit=commit(),
            versions=versions(),
        )
    )
    if (out / "fitted.json").exists():
        report("already fitted")
        return run
    part = prepared.part("train")
    features = targets.of(part.items)
    held = splits.hold_out(
        part, "time" if prepared.meta.kind == "class" else settings.validation.by, settings.validation.share, seed
    )
    training = samples(part, features, held, prepared.meta.kind, settings.average)
    fitted = method.fit(training, settings, seed, device, run, report)
    calibration = _calibrate(fitted.held_out, part, features, held, prepared.meta.kind, seed)
    fitted.encoder.save(run.encoder)
    run.write("fitted.json", FittedMeta(calibration, fitted.notes))
    return run


def samples(part: Part, features: Float32, held: Bool, kind: Literal["stimulus", "class"], average: bool) -> Training:
    """Make what a method is given: mean epochs of stimuli, or single epochs; classes are never averaged."""
    group = splits.groups(part, kind)
    if kind == "class" or not average:
        return Training(np.array(part.epochs), features[part.rows.item], held, group, kind)
    of_item = [indices for indices in part.of_item() if len(indices)]
    first = np.array([indices[0] for indices in of_item])
    return Training(part.means(of_item), features[part.rows.item[first]], held[first], group[first], kind)


def _calibrate(
    encoder: Encoder, part: Part, features: Float32, held: Bool, kind: Literal["stimulus", "class"], seed: int
) -> Calibration:
    """Fit similarity -> probability on held-out epochs, for each number of repetitions there is.

    Each stimulus competes with one image of each of up to 199 other concepts, as it will in a gallery of stimuli.
    """
    candidates = unit(encoder.candidates(features))
    if kind == "class":
        queries = unit(encoder(np.asarray(part.epochs[held])))
        scale = calibrate(queries @ candidates.T, part.rows.item[held], _MAX_SCALE)
        return Calibration((1,), (scale,))
    epochs_of = part.of_item()
    shown = [i for i, indices in enumerate(epochs_of) if len(indices) and held[indices[0]]]
    rng = np.random.default_rng([seed, 1])
    choices = np.stack([_competitors(part, i, rng) for i in shown])
    counts, scales = [], []
    for n, indices in evaluate.nested([epochs_of[i] for i in shown]).items():
        queries = unit(encoder(part.means(indices)))
        similarities = np.einsum("nd,ngd->ng", queries, candidates[choices])
        counts.append(n)
        scales.append(calibrate(similarities, np.zeros(len(shown), np.int64), _MAX_SCALE))
    return Calibration(tuple(counts), tuple(scales))


def _competitors(part: Part, own: int, rng: np.random.Generator) -> Int64:
    """Item ``own`` first, then one random item of each of up to 199 other concepts."""
    by_concept: dict[str, list[int]] = {}
    for i in rng.permutation(len(part.items)):
        by_concept.setdefault(part.items[i].concept, []).append(int(i))
    by_concept.pop(part.items[own].concept)
    others = [members[0] for members in by_concept.values()][: _CALIBRATION_CANDIDATES - 1]
    return np.array([own, *others], np.int64)


def open_run(path: Path) -> tuple[RunFolder, RunMeta, FittedMeta, Encoder]:
    """Open a fitted run.

    Raises
    ------
    DataError
        It is none.
    """
    run = RunFolder(path)
    meta, fitted = run.read("run.json", RunMeta), run.read("fitted.json", FittedMeta)
    return run, meta, fitted, method_named(meta.method).load(run.encoder)


def gallery(encoder: Encoder, prepared: Prepared, targets: Targets, part: PartName = "test") -> Gallery:
    """Make the gallery of a part's items: what evaluation scores against and what a bundle holds."""
    if part not in prepared.meta.items:
        part = "train"
    items = prepared.meta.items[part]
    features = encoder.candidates(targets.of(items))
    return Gallery(features, [item.id for item in items], [item.label for item in items], prepared.meta.kind)


def evaluate_run(path: Path, prepared: Prepared | None = None, targets: Targets | None = None) -> Evaluation:
    """Evaluate a run on the test part of its own store, or of another.

    Raises
    ------
    ConfigError
        The other store's epochs have another shape.
    DataError
        There is no test part.
    """
    _, meta, _, encoder = open_run(path)
    prepared = prepared or Prepared(Path(meta.prepared))
    targets = targets or Targets(Path(meta.targets))
    if prepared.meta.shape != encoder.shape:
        raise ConfigError(f"epochs of {prepared.path}", got=prepared.meta.shape, allowed=encoder.shape)
    part = prepared.part("test")
    shelf = gallery(encoder, prepared, targets)
    single = evaluate.scores(encoder(part.epochs), shelf)
    stimuli = prepared.meta.kind == "stimulus"
    curve = evaluate.curve(encoder, part, shelf, np.arange(len(part.items))) if stimuli else ()
    return Evaluation(
        method=meta.method,
        dataset=prepared.meta.dataset,
        subject=prepared.meta.subject,
        simulated=prepared.meta.simulated,
        offline_only=prepared.meta.offline_only,
        seed=meta.seed,
        data=meta.data,
        test_data=prepared.meta.fingerprint,
        single=evaluate.from_scores(single, part.rows.item, prepared.meta.kind, 1),
        averaged=curve[-1] if curve else None,
        curve=curve,
        auc={} if stimuli else evaluate.class_auc(single, part.rows.item, [item.id for item in part.items]),
    )
