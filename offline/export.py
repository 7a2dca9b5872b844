"""Fitted runs -> a bundle, written only if each exported encoder agrees with the trained one on real epochs."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from streamdec.decode import bundle
from streamdec.decode.gallery import Gallery
from streamdec.decode.manifest import EvidenceMode, Head, Manifest, Parity
from streamdec.errors import ConfigError, DataError
from streamdec.signal.mvnn import condition_weights, noise_covariance
from streamdec.types import Float32, Float64

from . import parity
from .checkpoint import FittedMeta, RunMeta, without_folders, writing
from .data.store import Part, Prepared
from .experiment import check_signal, gallery, open_run, own_store, targets_of
from .methods.base import Encoder
from .methods.registry import method as method_named
from .space import space
from .targets.images import thumbnail

_PARITY_EPOCHS = 256  # also how many are taken at a time
_THUMBNAIL = 96  # pixels
_BUDGETS = {"retrieval": 0.05}


class _Run(NamedTuple):
    path: Path
    meta: RunMeta
    fitted: FittedMeta
    encoder: Encoder
    store: Prepared

    @property
    def horizon(self) -> float:
        return self.store.meta.signal.tmax


def export(paths: Sequence[Path], out: Path, prepared: Prepared | None = None) -> tuple[Parity, ...]:
    """Write the bundle of a run, or of several that answer at different times after the onset.

    Parameters
    ----------
    paths : sequence of Path
        Runs of one method and subject, fitted on stores that differ in the end of their window alone.
    out : Path
        New folder, or .zip.
    prepared : Prepared, optional
        Whose test stimuli are the gallery, and whose subject the bundle is for if the run has several; the run's own
        store when omitted.

    Returns
    -------
    tuple of Parity
        By rising horizon.

    Raises
    ------
    EngineError
        An exported encoder does not agree with the trained one.
    BundleError
        The path exists.
    ConfigError
        A run has several stores and none is named, or one that its encoder is not for.
    DataError
        The runs do not go together; the bundle cannot be written.
    """
    if prepared is not None and len(paths) > 1:
        raise ConfigError(
            "prepared", got=f"a store for {len(paths)} runs", do="export them one by one, or leave it out"
        )
    runs = sorted((_open(path, prepared) for path in paths), key=lambda run: run.horizon)
    last = runs[-1]
    shown = prepared or last.store
    shelf = gallery(last.encoder, shown, targets_of(last.meta))
    arrays = {**last.store.arrays, **_expected(last.store)}
    encoders: dict[str, bytes] = {}
    agreed = []
    for run in runs:
        _fits(run, last, shelf)
        name = f"encoder-{run.horizon:g}.onnx" if len(runs) > 1 else "encoder.onnx"
        head = _head(run, name)
        encoders[name] = run.encoder.to_onnx(run.store.meta.subject)
        encoders[head.weights] = (run.path / "encoder.safetensors").read_bytes()
        agreed.append(check_parity(run.encoder, encoders[name], run.store.part("train"), run.store.meta.subject, name))
        if run is not last:
            own = {**run.store.arrays, **_expected(run.store)}
            arrays |= {head.array(key): array for key, array in own.items()}
    items = {item.id: item for part in shown.meta.items.values() for item in part}
    thumbnails = {
        id_: thumbnail(Path(shown.meta.images) / items[id_].image, _THUMBNAIL) for id_ in shelf.ids if items[id_].image
    }
    with writing(out):
        bundle.write(out, _manifest(runs, agreed), arrays, shelf, encoders, thumbnails)
    return tuple(agreed)


def _open(path: Path, prepared: Prepared | None) -> _Run:
    _, meta, fitted, encoder = open_run(path)
    store = prepared if prepared is not None and len(meta.prepared) > 1 else own_store(meta)
    check_signal(store, meta, encoder)
    return _Run(path, meta, fitted, encoder, store)


def _fits(run: _Run, last: _Run, shelf: Gallery) -> None:
    """Refuse a run that cannot share a bundle with ``last``."""
    if run is last:
        return
    ours, theirs = run.store.meta, last.store.meta
    for what, got, allowed in (
        ("method", run.meta.method, last.meta.method),
        ("subject", ours.subject, theirs.subject),
        ("signal", ours.signal.until(theirs.signal.tmax), theirs.signal),
    ):
        if got != allowed:
            raise DataError(f"{run.path} and {last.path} have another {what}", got=got, allowed=allowed)
    if run.horizon == last.horizon:
        raise DataError(
            f"{run.path} and {last.path}", got=f"both end at {run.horizon:g} s", allowed="different windows"
        )
    own = gallery(run.encoder, run.store, targets_of(run.meta))
    if own.ids != shelf.ids or not np.allclose(own.features, shelf.features, atol=1e-5):
        raise DataError(
            f"{run.path} and {last.path}",
            got="different galleries",
            allowed="one: the same test stimuli, and a method that does not train its target side",
            do="export them one by one",
        )


def _expected(store: Prepared) -> dict[str, Float64]:
    """What calibration compares another person with: mean and noise covariance of the training epochs."""
    part = store.part("train")
    weights = condition_weights(part.rows.item)
    mean: Float64 = np.zeros(store.meta.shape)
    covariance: Float64 = np.zeros((store.meta.shape[0],) * 2)
    for start in range(0, len(part.epochs), _PARITY_EPOCHS):
        block = slice(start, start + _PARITY_EPOCHS)
        epochs = np.asarray(part.epochs[block])
        mean += np.tensordot(weights[block], epochs, 1)
        covariance += noise_covariance(epochs, weights[block])
    return {"evoked": mean.astype(np.float32), "covariance": covariance}


def _head(run: _Run, name: str) -> Head:
    return Head(run.horizon, name, run.encoder.shape, run.encoder.dim, run.fitted.calibration)


def _manifest(runs: Sequence[_Run], agreed: Sequence[Parity]) -> Manifest:
    last = runs[-1]
    meta, stored = last.meta, last.store.meta
    evidence: EvidenceMode = "none" if stored.kind == "class" else "mean"
    config: dict[str, Any] = {
        "settings": meta.settings,
        "notes": last.fitted.notes,
        "data": stored.config,
        "dataset": stored.dataset,
        "subject": stored.subject,
        "features": meta.features,
        "versions": meta.versions,
    }
    return Manifest(
        method=meta.method,
        citation=method_named(meta.method).citation,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=meta.commit,
        config=without_folders(config),
        seeds=tuple(run.meta.seed for run in runs),
        data=" ".join(fingerprint for run in runs for fingerprint in run.meta.data),
        simulated=stored.simulated,
        offline_only=stored.offline_only,
        signal=stored.signal,
        channel_sd=stored.channel_sd,
        heads=tuple(_head(run, parity.encoder) for run, parity in zip(runs, agreed, strict=True)),
        evidence=evidence,
        budgets=_BUDGETS,
        parity=tuple(agreed),
        space=space(last.path / "encoder.safetensors", meta, last.encoder, targets_of(meta)),
    )


def check_parity(encoder: Encoder, model: bytes, part: Part, subject: str = "", name: str = "encoder.onnx") -> Parity:
    """Compare the exported encoder with the trained one on epochs of the training part.

    Raises
    ------
    EngineError
        They differ by more than 1e-4 of the largest value, or by angle.
    """
    epochs = np.asarray(part.epochs[np.linspace(0, len(part.epochs) - 1, _PARITY_EPOCHS).astype(int)])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # One at a time, as the live loop will.
    exported: Float32 = np.concatenate([session.run(None, {"epochs": epoch[None]})[0] for epoch in epochs])
    found = parity.compare(exported, encoder(epochs, subject))
    parity.check("exported encoder differs from the trained one; nothing was written", found)
    return Parity(name, f"onnxruntime {onnxruntime.__version__}", len(epochs), found.error, found.cosine)
