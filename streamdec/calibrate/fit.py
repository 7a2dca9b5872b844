"""Fits what calibration may change to a block, and judges it by cross-validation within the block.

A change is kept only where it does not hurt. That is decided within the epochs it is fitted on: for the figures, within
the training folds of each fold, so that what is reported of an epoch was neither fitted on it nor chosen by it. A
fold's epochs may share samples with their neighbours in time, as images follow each other faster than epochs end; what
was shown then was another image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from ..decode.adapt import Adaptation
from ..decode.manifest import Accuracy, Calibration
from ..signal.mvnn import whitener
from ..types import Bool, Float32, Float64, Int64
from . import head as heads
from . import judge
from .align import ALIGNER, Kind, aligner, covariances
from .block import N_FOLDS, Folds, Taken
from .decoder import Decoder

Change: TypeAlias = Literal["kept", "recentred", "low-rank"]
_MOST_REPETITIONS = 64


class Fit(msgspec.Struct, frozen=True, eq=False):
    """What was chosen and fitted on some epochs.

    ``shift`` samples of the stream that epochs begin later. ``arrays`` of the chain that are replaced; with ``ALIGNER``
    among them it gets that step. ``adaptation`` of the embedding, with its penalty ``alpha`` where it has one.
    """

    shift: int
    alignment: Kind
    arrays: dict[str, npt.NDArray[Any]]
    change: Change
    alpha: float | None
    adaptation: Adaptation | None


class Judged(msgspec.Struct, frozen=True, eq=False):
    """A fit on the whole block, the temperature that goes with it, and what it gained within the block."""

    fit: Fit
    calibration: Calibration
    before: tuple[Accuracy, ...]
    after: tuple[Accuracy, ...]
    chosen: tuple[Fit, ...]
    evoked: Float32


class Block:
    """One head's epochs of a block, at any latency.

    Parameters
    ----------
    decoder : Decoder
    taken : callable
        Shift in samples -> the block's epochs behind the decoder's front. Asked once for each shift.

    Attributes
    ----------
    first : Taken
        The epochs with the bundle's own latency.
    folds : Folds
    """

    def __init__(self, decoder: Decoder, taken: Callable[[int], Taken]) -> None:
        self.decoder = decoder
        self._taken = taken
        self._cuts: dict[int, Cut] = {}
        self.first = taken(0)
        self.folds = Folds(self.first.image, self.first.time)
        self._cuts[0] = Cut(decoder, self.first, self.folds)

    def at(self, shift: int) -> Cut:
        """The epochs that begin ``shift`` samples later than with the bundle's own latency."""
        if shift not in self._cuts:
            self._cuts[shift] = Cut(self.decoder, self._taken(shift), self.folds)
        return self._cuts[shift]


class Cut:
    """A block's epochs at one latency: ``front`` (n, n_chans, n_times), ``image`` and ``fold`` (n,)."""

    def __init__(self, decoder: Decoder, taken: Taken, folds: Folds) -> None:
        self.decoder, self.front, self.image = decoder, taken.features, taken.image
        self.fold = folds(taken.image, taken.time)
        self.kept = decoder.kept(self.front)
        self.embeddings = decoder.encode(self.kept)
        self._of_front = covariances(self.front) if decoder.whitener else None
        self._of_bare = covariances(decoder.changed(self.front, {})) if decoder.reference is not None else None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Alignments that the bundle allows; the first leaves all as it is."""
        found: list[Kind] = ["kept"]
        found += ["whitening"] if self._of_front is not None else []
        found += ["euclidean", "riemannian"] if self._of_bare is not None else []
        return tuple(found)

    def alignment(self, kind: Kind, index: Int64) -> dict[str, npt.NDArray[Any]]:
        """Fit an alignment on the epochs at ``index``; return the arrays it changes."""
        if kind == "kept":
            return {}
        if kind == "whitening":
            assert self._of_front is not None
            return {self.decoder.whitener: whitener(self._of_front[index].mean(axis=0))}
        assert self._of_bare is not None
        assert self.decoder.reference is not None
        return {ALIGNER: aligner(kind, self._of_bare[index], self.decoder.reference)}

    def decoded(self, kind: Kind, arrays: dict[str, npt.NDArray[Any]]) -> tuple[Float32, Float32]:
        """Epochs behind the chain, and their embeddings."""
        if kind == "kept":
            return self.kept, self.embeddings
        epochs = self.decoder.changed(self.front, arrays)
        return epochs, self.decoder.encode(epochs)

    def scores(self, embeddings: Float32, index: Int64, adaptation: Adaptation | None) -> Float64:
        """Log-probability of the shown images, (n_index,)."""
        return judge.log_probabilities(self.decoder.similarities(embeddings[index], adaptation), self.image[index])


def choose(block: Block, shift: int, among: Sequence[int], doubt: bool = True) -> Fit:
    """Choose and fit everything on the epochs of some folds.

    Parameters
    ----------
    block : Block
    shift : int
        The measured latency, samples beyond the bundle's own.
    among : sequence of int
        Folds.
    doubt : bool
        Whether the latency may be left as it was.
    """
    if shift and doubt:
        moved = block.at(shift)
        here, there = (np.flatnonzero(np.isin(cut.fold, among)) for cut in (block.at(0), moved))
        old = block.at(0).scores(block.at(0).embeddings, here, block.decoder.adaptation)
        new = moved.scores(moved.embeddings, there, block.decoder.adaptation)
        same = np.array_equal(block.at(0).image[here], moved.image[there])
        # A latency was measured: it takes evidence not to believe it.
        if same and judge.better([new, old], moved.image[there]):
            shift = 0
    cut = block.at(shift)
    index = np.flatnonzero(np.isin(cut.fold, among))
    arrays = {kind: cut.alignment(kind, index) for kind in cut.kinds}
    embeddings = {kind: cut.decoded(kind, arrays[kind])[1] for kind in cut.kinds}
    scores = [
        cut.scores(embeddings[kind], index, block.decoder.adaptation if kind == "kept" else None) for kind in cut.kinds
    ]
    kind = cut.kinds[judge.better(scores, cut.image[index])]
    change, alpha, adaptation = _adapt(cut, embeddings[kind], index, among, kind == "kept")
    return Fit(shift, kind, arrays[kind], change, alpha, adaptation)


def _adapt(
    cut: Cut, embeddings: Float32, index: Int64, among: Sequence[int], own: bool
) -> tuple[Change, float | None, Adaptation | None]:
    """Choose the adaptation of the embedding by cross-validation over the folds ``among``."""
    decoder, features = cut.decoder, cut.decoder.features[cut.image]
    before = decoder.adaptation if own else None
    ways = 2 + len(heads.ALPHAS)
    similarities = np.empty((ways, len(index), len(decoder.features)), np.float32)
    similarities[:] = decoder.similarities(embeddings[index], before)  # where too little is left to fit, it is kept
    for fold in among:
        held = cut.fold[index] == fold
        rest = index[~held]
        if not held.any() or len(rest) < 2:
            continue
        parts = heads.decompose(embeddings[rest], features[rest])
        fitted = [heads.recentred(parts), *(heads.low_rank(parts, alpha, None) for alpha in heads.ALPHAS)]
        for way, adaptation in enumerate(fitted, 1):
            similarities[way, held] = decoder.similarities(embeddings[index[held]], adaptation)
    scores = [judge.log_probabilities(each, cut.image[index]) for each in similarities]
    best = judge.better(scores, cut.image[index])
    if best == 0:
        return "kept", None, before
    parts = heads.decompose(embeddings[index], features[index])
    if best == 1:
        return "recentred", None, heads.recentred(parts)
    alpha = heads.ALPHAS[best - 2]
    return "low-rank", alpha, heads.low_rank(parts, alpha)


def calibrate(block: Block, shift: int, shifts: Sequence[int], doubt: bool = True) -> Judged:
    """Fit on the whole block; judge the same procedure fold by fold.

    Parameters
    ----------
    block : Block
    shift : int
        The measured latency, samples beyond the bundle's own.
    shifts : sequence of int
        The same as measured without each of the folds.
    doubt : bool
        Whether the latency may be left as it was, where images are found better so.
    """
    decoder, head, every = block.decoder, block.decoder.head, range(N_FOLDS)
    counts = _counts(block.at(0), decoder.bundle.manifest.evidence != "none")
    found: dict[int, list[tuple[Float32, Int64]]] = {n: [] for n in counts}
    chosen: list[Fit] = []
    for fold in every:
        fit = choose(block, shifts[fold], [each for each in every if each != fold], doubt)
        cut = block.at(fit.shift)
        held = cut.fold == fold
        for n, result in _decide(cut, fit, held, counts).items():
            found[n].append(result)
        chosen.append(fit)
    before, after, scales = [], [], []
    base = block.at(0)
    kept = Fit(0, "kept", {}, "kept", None, decoder.adaptation)
    for n, (similarities, image) in _decide(base, kept, np.ones(len(base.image), bool), counts).items():
        scale = head.calibration.at(n)
        before.append(judge.accuracy(similarities, image, n, judge.log_probabilities(similarities, image, scale)))
        pooled, shown = (np.concatenate([fold[i] for fold in found[n]]) for i in (0, 1))
        fitted = judge.temperature(pooled, shown)
        owner = np.repeat(np.arange(N_FOLDS), [len(image) for _, image in found[n]])
        crossed = _crossed(pooled, shown, owner)
        old = judge.log_probabilities(pooled, shown, scale)
        better = crossed.mean() > old.mean()
        after.append(judge.accuracy(pooled, shown, n, crossed if better else old))
        scales.append(fitted if better else scale)
    final = choose(block, shift, list(every), doubt)
    cut = block.at(final.shift)
    evoked = cut.decoded(final.alignment, final.arrays)[0].mean(axis=0, dtype=np.float64).astype(np.float32)
    calibration = Calibration(tuple(counts), tuple(scales))
    return Judged(final, calibration, tuple(before), tuple(after), tuple(chosen), evoked)


def _counts(cut: Cut, repeats: bool) -> list[int]:
    """1, 2, 4, ... repetitions, while half of the images have as many within a fold."""
    _, n = np.unique(np.stack([cut.image, cut.fold]), axis=1, return_counts=True)
    most = int(np.median(n)) if repeats else 1
    return [2**k for k in range(int(np.log2(min(max(most, 1), _MOST_REPETITIONS))) + 1)]


def _decide(cut: Cut, fit: Fit, held: Bool, counts: Sequence[int]) -> dict[int, tuple[Float32, Int64]]:
    """Similarities and images of the decisions on the epochs ``held``, for each number of repetitions."""
    epochs, embeddings = cut.decoded(fit.alignment, fit.arrays)
    repeated = cut.decoder.repeated
    return {n: repeated(epochs[held], embeddings[held], cut.image[held], n, fit.adaptation) for n in counts}


def _crossed(similarities: Float32, image: Int64, fold: Int64) -> Float64:
    """Log-probabilities with a temperature that was fitted on the other folds; without any others, the worst."""
    out = np.full(len(image), -np.inf)
    for each in np.unique(fold):
        held = fold == each
        if held.all():
            continue
        scale = judge.temperature(similarities[~held], image[~held])
        out[held] = judge.log_probabilities(similarities[held], image[held], scale)
    return out
