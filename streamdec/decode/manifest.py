"""What a bundle says of itself: its manifest.json as data. :mod:`.bundle` reads, verifies and writes it."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any, Literal

import msgspec
import numpy as np

from ..errors import BundleError
from ..signal.spec import Signal, Standardise, Whiten

SCHEMA = 1

GalleryKind = Literal["stimulus", "class_centre", "class"]
EvidenceMode = Literal["none", "mean", "log_probability"]


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Similarity to probability: softmax(scale * similarity) over the gallery, fitted on validation data.

    ``repetitions`` strictly increasing counts, ``scale`` the multiplier fitted for each (not its logarithm).
    """

    repetitions: tuple[int, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        counts = self.repetitions
        if not counts or len(counts) != len(self.scale):
            raise BundleError(
                "calibration", got=f"{len(counts)} counts, {len(self.scale)} scales", allowed="as many, one or more"
            )
        if counts[0] < 1 or any(b <= a for a, b in pairwise(counts)):
            raise BundleError("calibration repetitions", got=counts, allowed="strictly increasing, from 1")
        if not all(math.isfinite(s) and s >= 0 for s in self.scale):
            raise BundleError("calibration scale", got=self.scale, allowed="finite, 0 or more")

    def at(self, repetitions: int) -> float:
        """Give the scale for a count: linear in log(count) between fitted counts, held beyond the last.

        Held, not extrapolated: a probability is never surer than the validation data could show.
        """
        return float(np.interp(math.log(repetitions), np.log(self.repetitions), self.scale))


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One encoder: what it answers ``horizon`` seconds after the onset. The last head's answer is the final one.

    ``encoder`` its file in the bundle; ``input`` (B, n_chans, n_times) float32 and ``output`` (B, dim) float32 name the
    tensors in it; ``shape`` is (n_chans, n_times) after the chain.
    """

    horizon: float
    encoder: str
    shape: tuple[int, int]
    dim: int
    calibration: Calibration
    input: str = "epochs"
    output: str = "embeddings"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.onnx", self.encoder):
            raise BundleError("head encoder", got=repr(self.encoder), allowed="a plain file name that ends in .onnx")
        if not math.isfinite(self.horizon):
            raise BundleError("head horizon", got=self.horizon, allowed="finite seconds")
        if min(*self.shape, self.dim) < 1:
            raise BundleError("head size", got=f"shape {self.shape}, dim {self.dim}", allowed="1 or more each")

    @property
    def weights(self) -> str:
        """Name of the file, beside the encoder's, with the arrays it was trained to; a bundle may lack it."""
        return self.encoder.removesuffix(".onnx") + ".safetensors"

    def array(self, name: str) -> str:
        """Give the name under which a bundle holds the array ``name`` of this head alone."""
        return f"{self.horizon:g}/{name}"


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How closely the ``encoder`` file, run by ``engine``, follows the trained model on ``n_epochs`` real epochs.

    ``max_abs_error`` over all embedding values; ``min_cosine`` over the epochs.
    """

    encoder: str
    engine: str
    n_epochs: int
    max_abs_error: float
    min_cosine: float


class MarkerLatency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long after its marker an image came on, in a block that was recorded for calibration.

    ``seconds`` median over the block, ``interval`` its 95 % interval; ``source`` what it was measured by; ``n`` onsets
    it rests on. ``drift`` seconds per second, ``drift_interval`` its 95 % interval, ``scatter`` robust standard
    deviation of single delays about that line, seconds; None where they were not measured.
    """

    seconds: float
    interval: tuple[float, float]
    source: str
    n: int
    drift: float | None = None
    drift_interval: tuple[float, float] | None = None
    scatter: float | None = None

    @property
    def drifts(self) -> bool:
        """Whether there is a drift, of more than 1 ms a minute."""
        if self.drift is None or self.drift_interval is None:
            return False
        low, high = self.drift_interval
        return (low > 0 or high < 0) and abs(self.drift) > 1e-3 / 60

    def line(self) -> str:
        """In words, for a terminal."""
        low, high = self.interval
        text = f"{1e3 * self.seconds:.1f} ms [{1e3 * low:.1f}, {1e3 * high:.1f}] by {self.source}, {self.n} onsets"
        if self.drift is None or self.drift_interval is None or self.scatter is None:
            return text
        slope, least, most = (6e4 * each for each in (self.drift, *self.drift_interval))
        return f"{text}; drift {slope:+.1f} ms/min [{least:+.1f}, {most:+.1f}], scatter {1e3 * self.scatter:.1f} ms"


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well shown images were found again among ``n_candidates``, from ``repetitions`` presentations at a time.

    ``n`` decisions on ``n_stimuli`` images. ``top1``, ``top5`` shares of them, ``median_rank`` from 1; the intervals
    are 95 %, and allow for decisions on one image being alike. ``log_probability`` mean natural logarithm of the
    probability that the shown image was given; to know nothing is ``-log(n_candidates)``.
    """

    repetitions: int
    n: int
    n_stimuli: int
    n_candidates: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]
    median_rank: float
    median_rank_interval: tuple[float, float]
    log_probability: float

    def line(self) -> str:
        """In words, for a terminal."""

        def percent(share: float, interval: tuple[float, float]) -> str:
            return f"{100 * share:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"

        low, high = self.median_rank_interval
        return (
            f"x{self.repetitions}: top-1 {percent(self.top1, self.top1_interval)}, top-5 "
            f"{percent(self.top5, self.top5_interval)}, median rank {self.median_rank:g} [{low:g}, {high:g}] of "
            f"{self.n_candidates}, log-probability {self.log_probability:.2f} (n = {self.n}, {self.n_stimuli} images)"
        )


class Calibrated(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a bundle was made to fit, and what that gained.

    ``base`` hash of the bundle it was made from; ``recording`` name of the block's file, ``recording_sha256`` its hash;
    ``created`` ISO 8601. ``latency`` of the markers: epochs are cut so much later; None: none was measured. ``unit``
    in which the stream came, where its header does not say so, else "". ``missing`` channels that the cap did not have.
    ``alignment`` of the channels: "kept", "whitening", "euclidean" or "riemannian"; ``adaptation`` of the embedding:
    "kept", "recentred" or "low-rank", with its penalty ``alpha``. ``settings`` that calibration ran with. ``before``
    and ``after``, by cross-validation within the block: the images of each of ``folds`` folds were judged by what was
    fitted on the others.
    """

    base: str
    recording: str
    recording_sha256: str
    created: str
    latency: MarkerLatency | None = None
    unit: str = ""
    missing: tuple[str, ...] = ()
    alignment: str = "kept"
    adaptation: str = "kept"
    alpha: float | None = None
    settings: dict[str, Any] = {}
    folds: int = 0
    before: tuple[Accuracy, ...] = ()
    after: tuple[Accuracy, ...] = ()

    def line(self) -> str:
        """In words, for a terminal."""
        latency = "no marker latency" if self.latency is None else f"marker latency {1e3 * self.latency.seconds:.1f} ms"
        parts = [f"calibrated {self.created[:10]} on {self.recording}: {latency}"]
        parts += [f"unit {self.unit}"] if self.unit else []
        parts += [f"without {', '.join(self.missing)}"] if self.missing else []
        parts += [f"alignment {self.alignment}", f"embedding {self.adaptation}"]
        return ", ".join(parts)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a bundle says of itself.

    ``method``, ``citation``, ``created`` (ISO 8601), ``commit``, ``config``, ``seeds`` and ``data`` (fingerprint of the
    training data) tell where it comes from; ``simulated`` that its data were. ``offline_only`` is the reason why it
    cannot run live, "" if it can. ``signal`` goes from the stream to the encoders' input; ``channel_sd`` is the
    deviation (sd) of the raw training signal per channel, microvolt. ``heads`` by rising horizon, the last at
    ``signal.tmax``. ``evidence`` says how repetitions add up. ``budgets`` seconds beyond the epoch's end, per kind of
    result. ``space`` names the embedding space, "" in bundles from before it had a name: a generator must be for the
    same. ``calibrated`` to whom, by ``streamdec calibrate``; None as exported. ``gallery`` and ``files`` (sha256 of
    every other file) are filled in by :func:`.bundle.write`.
    """

    schema: int = SCHEMA
    method: str
    citation: str
    created: str
    commit: str
    config: dict[str, Any]
    seeds: tuple[int, ...]
    data: str
    simulated: bool
    offline_only: str = ""
    signal: Signal
    channel_sd: dict[str, float]
    heads: tuple[Head, ...]
    evidence: EvidenceMode
    budgets: dict[str, float]
    parity: tuple[Parity, ...] = ()
    space: str = ""
    calibrated: Calibrated | None = None
    gallery: GalleryKind = "stimulus"
    files: dict[str, str] = {}

    def __post_init__(self) -> None:
        horizons = [head.horizon for head in self.heads]
        if not horizons or any(b <= a for a, b in pairwise(horizons)):
            raise BundleError("head horizons", got=horizons, allowed="one or more, strictly increasing")
        if horizons[-1] != self.signal.tmax:
            raise BundleError(
                "last head", got=f"horizon {horizons[-1]} s", allowed=f"the epoch's end, {self.signal.tmax} s"
            )
        if len({head.dim for head in self.heads}) > 1:
            raise BundleError(
                "head dims", got=[head.dim for head in self.heads], allowed="one embedding space for all heads"
            )
        if not all(math.isfinite(b) and b > 0 for b in self.budgets.values()):
            raise BundleError("budgets", got=self.budgets, allowed="finite seconds above 0")

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the arrays that ``signal.steps`` refer to."""
        names: list[str] = []
        for step in self.signal.steps:
            if isinstance(step, Whiten):
                names.append(step.array)
            elif isinstance(step, Standardise):
                names += (step.mean, step.std)
        return tuple(names)
