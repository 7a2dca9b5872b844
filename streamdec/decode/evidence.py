"""Repetitions of one stimulus: what they add up to, how sure that makes us, and when it is enough.

Two published ways to add up. ``mean``: the encoder sees the running mean of the chain's epochs (the THINGS-EEG2
protocol). ``log_probability``: every epoch is encoded, and the log-probabilities of the candidates are summed. With
softmax(s * cosine) as the probability from one epoch, that sum is s * <sum of unit query embeddings, candidate> plus a
term all candidates share: so it is the embeddings that are summed, D numbers per stimulus whatever the gallery, and it
stays exact when candidates come and go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, EngineError
from ..types import Float32, Float64
from .gallery import unit
from .manifest import EvidenceMode, Head


class EvidenceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the evidence, and the stopping rule.

    ``max_keys`` stimuli are remembered, the one not shown for longest is forgotten first; memory is up to 8 bytes *
    ``max_keys`` * size of an epoch (``mean``; 32 MB for 256 keys of 63 x 250) or of an embedding, per horizon. After
    ``max_repetitions`` a stimulus starts anew (None: never; 1: every epoch stands alone). Enough is:
    ``min_repetitions`` and a probability of ``stop_probability``, or ``max_repetitions``.
    """

    max_keys: int = 256
    max_repetitions: int | None = None
    min_repetitions: int = 1
    stop_probability: float = 0.95

    def __post_init__(self) -> None:
        if self.max_keys < 1:
            raise ConfigError("evidence.max_keys", got=self.max_keys, allowed="1 or more")
        if not 1 <= self.min_repetitions <= (self.max_repetitions or math.inf):
            raise ConfigError(
                "evidence.min_repetitions",
                got=self.min_repetitions,
                allowed=f"1 to max_repetitions ({self.max_repetitions})",
            )
        if self.max_repetitions is not None and self.max_repetitions < 1:
            raise ConfigError("evidence.max_repetitions", got=self.max_repetitions, allowed="1 or more, or none")
        if not 0 < self.stop_probability <= 1:
            raise ConfigError("evidence.stop_probability", got=self.stop_probability, allowed="above 0, up to 1")


class Query(msgspec.Struct, frozen=True, eq=False):
    """What is known of one stimulus up to ``horizon`` seconds after its onsets.

    ``embedding`` (dim,) float32, unit length. ``repetitions`` that went into it. ``weight`` is 1; under
    ``log_probability`` the length of the mean of the unit embeddings, 0..1, which is how well the repetitions agree.
    ``raw`` (dim,) float32 the embedding as the encoder gave it, for generation; under ``log_probability`` ``embedding``
    with the mean length of the repetitions'. ``epoch`` (n_chans, n_times) float32 what was encoded: under ``mean`` the
    mean of the repetitions, else the newest. Both are valid until the next call.
    """

    embedding: Float32
    horizon: float
    repetitions: int
    weight: float
    raw: Float32
    epoch: Float32


class Evidence:
    """Adds up the repetitions of each stimulus. The same epochs in the same order give the same queries, bit for bit.

    Parameters
    ----------
    mode : {"none", "mean", "log_probability"}
        How repetitions add up; ``none`` takes every epoch alone.
    heads : sequence of Head
        The bundle's encoders: their horizons, shapes and calibrations.
    settings : EvidenceSettings
    """

    def __init__(self, mode: EvidenceMode, heads: Sequence[Head], settings: EvidenceSettings | None = None) -> None:
        self.mode: EvidenceMode = mode
        self.settings = settings or EvidenceSettings()
        self._heads = {head.horizon: i for i, head in enumerate(heads)}
        self._calibrations = {head.horizon: head.calibration for head in heads}
        # np.full writes them: pages of np.zeros would be taken when a slot is first used, 10 ms for each huge one.
        shapes = [head.shape if mode == "mean" else (head.dim,) for head in heads]
        slots = 0 if mode == "none" else self.settings.max_keys
        self._sums: list[Float64] = [np.full((slots, *shape), 0.0) for shape in shapes]
        self._means: list[Float32] = [np.zeros(shape, dtype=np.float32) for shape in shapes]
        self._counts = np.zeros((slots, len(heads)), dtype=np.int64)
        self._lengths = np.zeros((slots, len(heads)))  # of the mean embedding, where embeddings are summed as units
        self.reset()

    def reset(self) -> None:
        """Forget all repetitions, as new."""
        self._slots: dict[str, int] = {}

    def query(self, key: str, horizon: float, epoch: Float32, encode: Callable[[Float32], Float32]) -> Query:
        """Add one epoch and say what is now known of its stimulus.

        Parameters
        ----------
        key : str
            Stimulus key.
        horizon : float
            One of the heads'.
        epoch : array (n_chans, n_times) float32
            As the chain delivers it.
        encode : callable
            (n_chans, n_times) -> (dim,): the engine of this horizon.

        Raises
        ------
        EngineError
            The epoch does not fit or is not finite, the encoder fails, or its embedding is not finite or zero.
        """
        if self.mode == "none":
            raw = encode(epoch)
            return Query(unit(raw), horizon, 1, 1.0, raw, epoch)
        head = self._heads[horizon]
        if self.mode == "mean":
            mean, n = self._add(key, head, epoch)
            raw = encode(mean)
            return Query(unit(raw), horizon, n, 1.0, raw, mean)
        raw = encode(epoch)
        mean, n = self._add(key, head, unit(raw))
        length = self._mean_length(key, head, n, float(np.sqrt(np.vecdot(raw, raw, dtype=np.float64))))
        embedding = unit(mean)
        weight = float(np.sqrt(np.vecdot(mean, mean, dtype=np.float64)))
        return Query(embedding, horizon, n, weight, np.multiply(embedding, length, dtype=np.float32), epoch)

    def probabilities(self, query: Query, scores: Float32) -> Float64:
        """Give every candidate its calibrated probability.

        Parameters
        ----------
        query : Query
        scores : array (G,) float32
            As :meth:`.Gallery.scores` gives them for ``query.embedding``; one candidate at least.

        Returns
        -------
        array (G,) float64
            Their sum is 1.
        """
        scale = self._calibrations[query.horizon].at(query.repetitions) * query.weight
        return softmax(scores.astype(np.float64) * scale)

    def enough(self, query: Query, probability: float) -> bool:
        """Tell whether the stopping rule is met, given the best candidate's probability."""
        n, rule = query.repetitions, self.settings
        return n == rule.max_repetitions or (n >= rule.min_repetitions and probability >= rule.stop_probability)

    def _add(self, key: str, head: int, values: Float32) -> tuple[Float32, int]:
        """Add to the sum of (key, head); return the mean, valid until the next call for this head, and the count."""
        mean = self._means[head]
        if values.shape != mean.shape or not np.isfinite(values).all():
            raise EngineError(
                f"epoch of {key!r}",
                got=f"shape {values.shape}, or not finite",
                allowed=f"shape {mean.shape}, all finite",
            )
        slot = self._slots.pop(key, None)
        if slot is None:
            slot = self._new_slot()
        self._slots[key] = slot  # last in the dict: used last
        n = int(self._counts[slot, head])
        total = self._sums[head][slot]
        if n == 0 or n == self.settings.max_repetitions:
            n = 0
            total[...] = values
        else:
            total += values
        self._counts[slot, head] = n + 1
        return np.divide(total, n + 1, out=mean, casting="same_kind"), n + 1

    def _mean_length(self, key: str, head: int, n: int, length: float) -> float:
        """Keep the mean length of the embeddings of (key, head), of which this is the n-th."""
        slot = self._slots[key]
        before = self._lengths[slot, head] if n > 1 else 0.0
        self._lengths[slot, head] = before + (length - before) / n
        return float(self._lengths[slot, head])

    def _new_slot(self) -> int:
        slot = len(self._slots)
        if slot == self.settings.max_keys:
            slot = self._slots.pop(next(iter(self._slots)))
        self._counts[slot] = 0
        return slot


def softmax(logits: Float64) -> Float64:
    """exp(logits) scaled to sum 1, over the last axis, without overflow."""
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Float64 = odds / odds.sum(axis=-1, keepdims=True)
    return probabilities


def calibrate(
    similarities: Float32 | Float64, targets: npt.NDArray[np.integer[Any]], max_scale: float = 1000.0
) -> float:
    """Fit the scale that makes softmax(scale * similarity) a probability: least negative log-likelihood.

    Temperature scaling [1]_ with scale = 1 / temperature. The loss is convex in the scale; its one minimum is where the
    similarity expected under the softmax equals the target's.

    Parameters
    ----------
    similarities : array (n, G)
        Per validation query its cosines with a gallery, times its weight; all of the same number of repetitions. The
        gallery should be as large as the live one.
    targets : array (n,) of int
        Index of the true candidate of each query.
    max_scale : float
        Returned where the target is always first: no finite scale is best then.

    Returns
    -------
    float
        0 where the true candidates score no higher than the average one: every candidate is equally probable.

    References
    ----------
    .. [1] Guo, Pleiss, Sun, Weinberger. On calibration of modern neural networks. ICML 2017.
    """
    values = np.asarray(similarities, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape or not np.isfinite(values).all():
        raise ConfigError(
            "similarities", got=f"shape {values.shape}", allowed="(n_queries, n_candidates), finite, not empty"
        )
    if np.shape(targets) != (len(values),) or np.min(targets) < 0 or np.max(targets) >= values.shape[1]:
        raise ConfigError("targets", got=f"shape {np.shape(targets)}", allowed="one candidate's index per query")
    true = values[np.arange(len(values)), targets]

    def excess(scale: float) -> float:
        return float(((softmax(scale * values) * values).sum(axis=1) - true).mean())

    if excess(0.0) >= 0:
        return 0.0
    if excess(max_scale) <= 0:
        return max_scale
    from scipy.optimize import brentq  # only training calibrates: the live loop does without its 50 MB

    return float(brentq(excess, 0.0, max_scale, xtol=1e-9))
