"""A small real bundle, and events to play through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from streamdec.decode import bundle
from streamdec.decode.gallery import Gallery
from streamdec.decode.manifest import Calibrated, Calibration, EvidenceMode, Head, Manifest
from streamdec.signal.spec import Baseline, Filter, Signal
from streamdec.types import Chunk, Connection, Event, Marker, StreamInfo

NAMES = ("O1", "Oz", "O2", "Pz", "P7", "P4", "PO7", "PO8")
SFREQ = 250.0
TMIN, TMAX = -0.1, 0.5
N_IMAGES, DIM = 20, 12
RNG = np.random.default_rng(1)
PATTERNS = RNG.normal(0, 5, (N_IMAGES, len(NAMES), 126)).astype(np.float32)
"""(n_images, n_chans, n_times) microvolt: what each image evokes, 0..0.5 s."""


def linear_onnx(weights: np.ndarray) -> bytes:
    """(n_chans * n_times, dim) float32 -> an encoder that multiplies the flattened epoch by it."""
    n_in, dim = weights.shape
    n_chans = len(NAMES)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["epochs"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["embeddings"]),
        ],
        "linear",
        [helper.make_tensor_value_info("epochs", TensorProto.FLOAT, ["B", n_chans, n_in // n_chans])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", dim])],
        [numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def write_bundle(
    path: Path,
    *,
    horizons: Sequence[float] = (TMAX,),
    evidence: EvidenceMode = "none",
    filters: tuple[Filter, ...] = (),
    channel_sd: dict[str, float] | None = None,
    weights: np.ndarray | None = None,
    offline_only: str = "",
    space: str = "",
    thumbnails: dict[str, bytes] | None = None,
    calibrated: Calibrated | None = None,
) -> Path:
    """A bundle whose encoder finds each of the patterns in an epoch."""
    signal = Signal(NAMES, SFREQ, TMIN, TMAX, filters=filters, steps=(Baseline(TMIN, 0.0),))
    targets = np.random.default_rng(2).normal(size=(N_IMAGES, DIM)).astype(np.float32)
    heads, encoders = [], {}
    for horizon in horizons:
        first, n_times = signal.until(horizon).window
        templates = np.zeros((N_IMAGES, len(NAMES), n_times), np.float32)
        templates[:, :, -first:] = PATTERNS[:, :, : n_times + first]
        flat = templates.reshape(N_IMAGES, -1)
        made = np.linalg.pinv(flat) @ targets if weights is None else weights
        name = f"encoder-{horizon:g}.onnx"
        heads.append(Head(horizon, name, (len(NAMES), n_times), DIM, Calibration((1,), (30.0,))))
        encoders[name] = linear_onnx(made)
    ids = [f"img{i:02d}" for i in range(N_IMAGES)]
    manifest = Manifest(
        method="templates",
        citation="made for tests",
        created="2026-01-01T00:00:00Z",
        commit="",
        config={},
        seeds=(1,),
        data="none",
        simulated=True,
        signal=signal,
        channel_sd=channel_sd or {},
        heads=tuple(heads),
        evidence=evidence,
        budgets={"retrieval": 0.05},
        offline_only=offline_only,
        space=space,
        calibrated=calibrated,
    )
    gallery = Gallery(targets, ids, [f"image {i}" for i in range(N_IMAGES)])
    return bundle.write(path, manifest, {}, gallery, encoders, thumbnails)


def eeg_info(**changes: object) -> StreamInfo:
    """The stream the bundle wants."""
    n = len(NAMES)
    fields = {"name": "eeg", "type": "EEG", "n_chans": n, "sfreq": SFREQ, "dtype": "float32", "source_id": "amp"}
    fields |= {"ch_names": NAMES, "ch_types": ("EEG",) * n, "units": ("microvolts",) * n}
    return StreamInfo(**(fields | changes))


MARKERS = StreamInfo("markers", "Markers", 1, 0.0, "string", "stimulus")


def presentation(
    n_events: int = 30, soa: float = 0.2, lead: float = 1.0, seed: int = 0, noise: float = 2.0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A signal (n_chans, n_times) float32 microvolt with overlapping patterns, onset samples, and what was shown."""
    rng = np.random.default_rng(seed)
    onsets = (lead * SFREQ + np.arange(n_events) * soa * SFREQ).astype(int)
    shown = rng.integers(0, N_IMAGES, n_events)
    n = int(onsets[-1] + SFREQ)
    data = rng.normal(0, noise, (len(NAMES), n))
    for onset, image in zip(onsets, shown, strict=True):
        data[:, onset : onset + 126] += PATTERNS[image]
    return data.astype(np.float32), onsets, [f"img{i:02d}" for i in shown]


def events(
    data: np.ndarray,
    onsets: np.ndarray,
    keys: Sequence[str],
    packets: Iterator[int],
    start: float = 1000.0,
    late: float = 0.0,
) -> list[Event]:
    """The same signal in any packets; each marker comes ``late`` seconds after its sample."""
    out: list[Event] = []
    marked, sent = 0, 0
    while sent < data.shape[1]:
        n = min(next(packets), data.shape[1] - sent)
        stamps = start + np.arange(sent, sent + n) / SFREQ
        sent += n
        arrival = float(start + sent / SFREQ)
        out.append(Chunk(np.ascontiguousarray(data[:, sent - n : sent]), stamps, arrival))
        while marked < len(onsets) and start + onsets[marked] / SFREQ + late <= arrival:
            out.append(Marker(keys[marked], float(start + onsets[marked] / SFREQ), arrival))
            marked += 1
    out.append(Connection("eeg", "ended", arrival))
    return out


class ScriptedInlet:
    """Hands out a list of events."""

    def __init__(self, script: Sequence[Event], eeg: StreamInfo | None = None) -> None:
        self.eeg, self.markers = eeg or eeg_info(), MARKERS
        self._script = iter(script)

    def open(self, timeout: float) -> None:
        """Nothing to connect."""

    def pull(self, timeout: float) -> Event | None:
        """The next event."""
        return next(self._script, None)

    def close(self) -> None:
        """Nothing to let go."""

    def __enter__(self) -> ScriptedInlet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
