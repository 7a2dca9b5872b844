"""The calibrated bundle: the base's content with what was fitted in its place, and the provenance."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..acquire.recording import STREAMS
from ..decode import bundle as bundles
from ..decode.adapt import NAMES
from ..decode.bundle import Bundle
from ..decode.manifest import Calibrated, Head, MarkerLatency
from ..signal.spec import Whiten
from .align import ALIGNER
from .decoder import plain
from .fit import Judged


def write(
    out: Path,
    base: Bundle,
    judged: dict[float, Judged],
    latency: MarkerLatency | None,
    unit: str,
    missing: tuple[str, ...],
    recording: Path,
    settings: dict[str, Any],
) -> Calibrated:
    """Write a new bundle.

    Parameters
    ----------
    out : Path
        New folder or .zip.
    base : Bundle
    judged : dict of float to Judged
        By the horizon of each head.
    latency : MarkerLatency or None
        That epochs are cut by.
    unit : str
        Of the stream, "" where its header is right.
    missing : tuple of str
        Channels that are interpolated.
    recording : Path
        The block's file.
    settings : dict
        That calibration ran with.

    Raises
    ------
    BundleError
        The path exists.
    """
    manifest, last = base.manifest, base.manifest.heads[-1]
    final = judged[last.horizon]
    arrays: dict[str, npt.NDArray[Any]] = dict(base.arrays)
    aligned = any(ALIGNER in _arrays_of(base, head, judged[head.horizon]) for head in manifest.heads)
    for head in manifest.heads:
        result = judged[head.horizon]
        own = {**_arrays_of(base, head, result), "evoked": result.evoked}
        if aligned:
            own.setdefault(ALIGNER, np.eye(head.shape[0]))
        arrays |= {name if head is last else head.array(name): array for name, array in own.items()}
        adaptation = result.fit.adaptation
        for name, field in zip(NAMES, ("offset", "left", "right"), strict=True):
            arrays.pop(head.array(name), None)
            if adaptation is not None:
                arrays[head.array(name)] = getattr(adaptation, field)
    steps = (*plain(manifest.signal), *((Whiten(ALIGNER),) if aligned else ()))
    calibrated = Calibrated(
        base=base.hash,
        recording=recording.name,
        recording_sha256=digest(recording),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        latency=latency,
        unit=unit,
        missing=missing,
        alignment=final.fit.alignment,
        adaptation=final.fit.change,
        alpha=final.fit.alpha,
        settings=settings,
        folds=len(final.chosen),
        before=final.before,
        after=final.after,
    )
    made = msgspec.structs.replace(
        manifest,
        signal=msgspec.structs.replace(manifest.signal, steps=steps),
        heads=tuple(
            msgspec.structs.replace(head, calibration=judged[head.horizon].calibration) for head in manifest.heads
        ),
        calibrated=calibrated,
    )
    encoders = {head.encoder: base.encoder(head) for head in manifest.heads}
    encoders |= {head.weights: base.weights(head) for head in manifest.heads if head.weights in manifest.files}
    pictures = {name: base.thumbnail(name) for name in base.gallery.ids}
    thumbnails = {name: picture for name, picture in pictures.items() if picture is not None}
    bundles.write(out, made, arrays, base.gallery, encoders, thumbnails)
    return calibrated


def digest(recording: Path) -> str:
    """Hash a recording's file; of a session folder, its streams."""
    path = recording / STREAMS if recording.is_dir() else recording
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _arrays_of(base: Bundle, head: Head, judged: Judged) -> dict[str, npt.NDArray[Any]]:
    """Arrays of the chain that a head gets; the aligner it had where nothing was changed."""
    if judged.fit.alignment != "kept":
        return dict(judged.fit.arrays)
    had = base.array(head, ALIGNER)
    return {} if had is None else {ALIGNER: had}
