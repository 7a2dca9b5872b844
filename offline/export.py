"""A fitted run -> a bundle, written only if the exported encoder agrees with the trained one on real epochs."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from streamdec.decode import bundle
from streamdec.decode.manifest import EvidenceMode, Head, Manifest, Parity
from streamdec.errors import EngineError
from streamdec.types import Float32

from .checkpoint import FittedMeta, RunMeta
from .data.store import Part, Prepared
from .experiment import gallery, open_run, own_store, targets_of
from .methods.base import Encoder
from .methods.registry import method as method_named
from .targets.images import thumbnail

# Both sides sum thousands of float32 products, in another order: 1e-6 of the embedding's largest value is seen.
_TOLERANCE = 1e-4
_MIN_COSINE = 1 - 1e-6
_PARITY_EPOCHS = 256
_THUMBNAIL = 96  # pixels
_BUDGETS = {"retrieval": 0.05}


def export(path: Path, out: Path, prepared: Prepared | None = None) -> Parity:
    """Write the bundle of a run.

    Parameters
    ----------
    path : Path
        The run.
    out : Path
        New folder, or .zip.
    prepared : Prepared, optional
        Whose test stimuli are the gallery, and whose subject the bundle is for if the run has several; the run's own
        store when omitted.

    Raises
    ------
    EngineError
        The exported encoder does not agree with the trained one.
    BundleError
        The path exists.
    ConfigError
        The run has several stores, and none is named.
    """
    _, meta, fitted, encoder = open_run(path)
    own = prepared if prepared is not None and len(meta.prepared) > 1 else own_store(meta)
    shown, targets = prepared or own, targets_of(meta)
    subject = own.meta.subject
    model = encoder.to_onnx(subject)
    parity = check_parity(encoder, model, own.part("train"), subject)
    shelf = gallery(encoder, shown, targets)
    items = {item.id: item for part in shown.meta.items.values() for item in part}
    thumbnails = {
        id_: thumbnail(Path(shown.meta.images) / items[id_].image, _THUMBNAIL) for id_ in shelf.ids if items[id_].image
    }
    bundle.write(
        out, _manifest(meta, fitted, own, encoder, parity), own.arrays, shelf, {parity.encoder: model}, thumbnails
    )
    return parity


def _manifest(meta: RunMeta, fitted: FittedMeta, prepared: Prepared, encoder: Encoder, parity: Parity) -> Manifest:
    stored = prepared.meta
    evidence: EvidenceMode = "none" if stored.kind == "class" else "mean"
    config: dict[str, Any] = {
        "settings": meta.settings,
        "notes": fitted.notes,
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
        config=config,
        seeds=(meta.seed,),
        data=" ".join(meta.data),
        simulated=stored.simulated,
        offline_only=stored.offline_only,
        signal=stored.signal,
        channel_sd=stored.channel_sd,
        heads=(Head(stored.signal.tmax, parity.encoder, encoder.shape, encoder.dim, fitted.calibration),),
        evidence=evidence,
        budgets=_BUDGETS,
        parity=(parity,),
    )


def check_parity(encoder: Encoder, model: bytes, part: Part, subject: str = "") -> Parity:
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
    trained = encoder(epochs, subject)
    error, size = float(np.abs(exported - trained).max()), float(np.abs(trained).max())
    lengths = np.linalg.norm(exported, axis=1) * np.linalg.norm(trained, axis=1)
    cosine = float(np.min(np.sum(exported.astype(np.float64) * trained, axis=1) / lengths))
    if not (error <= _TOLERANCE * size and cosine >= _MIN_COSINE):
        raise EngineError(
            "exported encoder differs from the trained one",
            got=f"error {error:.3g} of {size:.3g}, cosine {cosine:.9f}",
            allowed=f"{_TOLERANCE:g} of the largest value, cosine {_MIN_COSINE:.6f}",
            do="nothing was written; report this",
        )
    return Parity("encoder.onnx", f"onnxruntime {onnxruntime.__version__}", len(epochs), error, cosine)
