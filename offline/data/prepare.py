"""A data set -> the prepared store, through the live chain.

What is stored is what :class:`streamdec.signal.chain.Chain` makes of each epoch with the very parameters a bundle will
hold, so what an encoder is trained on is what it gets live, bit for bit; in a store of float16, to three digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.errors import ConfigError, DataError
from streamdec.signal.chain import Chain
from streamdec.signal.mvnn import condition_weights, noise_covariance, repetition_covariance, whitener
from streamdec.signal.quality import robust_sd
from streamdec.signal.spec import Filter, Signal, Standardise, Step, Whiten
from streamdec.types import Float32, Float64

from ..progress import Report, silent
from .store import Int64, Item, Meta, PartName, Precision, Writer

_BLOCK = 256  # epochs cut at once: 77 MB of 63 x 1201
_EVERY = 8  # of the training epochs, for the channels' deviation

_Arrays = dict[str, npt.NDArray[Any]]


Whitening: TypeAlias = Literal["pooled", "session", "official"]
_REASONS: dict[Whitening, str] = {
    "pooled": "",
    "session": "each session has a whitener of its own",
    "official": "each session has a whitener of its own, for which the test part was used too",
}


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How epochs are made.

    ``ch_names`` in order, empty for the data set's own; ``tmin``..``tmax`` seconds around the onset, both ends
    included; ``filters`` causal, on the stream; ``steps`` on each epoch. The arrays that steps need are fitted on the
    training part. ``whitener`` of a ``whiten`` step: ``pooled`` one for all sessions, which a bundle can hold;
    ``session`` one for each, as NICE and UBP have it; ``official`` one for each from training and test part, as the
    preprocessed THINGS-EEG2 release has it (:mod:`.mvnn` says how). The last two make the store offline-only.
    """

    tmin: float
    tmax: float
    ch_names: tuple[str, ...] = ()
    filters: tuple[Filter, ...] = ()
    steps: tuple[Step, ...] = ()
    whitener: Whitening = "pooled"

    def signal(self, ch_names: tuple[str, ...], sfreq: float) -> Signal:
        """Name the channels and the rate where the recipe leaves them to the data."""
        return Signal(self.ch_names or ch_names, sfreq, self.tmin, self.tmax, self.filters, self.steps)


class Run(msgspec.Struct, frozen=True, eq=False):
    """One recorded session's share of one part.

    ``item`` (n,) index of each epoch's item; ``position`` (n,) sample of its onset; ``cut(index)`` the raw epochs at
    ``index`` (k,) int64: (k, n_chans, n_times) float32, microvolt, filtered.
    """

    part: PartName
    session: int
    item: Int64
    position: Int64
    cut: Callable[[Int64], Float32]


class Source(Protocol):
    """A data set as :func:`prepare` needs it; attributes as in :class:`.store.Meta`.

    ``offline_only`` "" where the live chain gives the same epochs.
    """

    dataset: str
    subject: str
    simulated: bool
    kind: Literal["stimulus", "class"]
    signal: Signal
    images: str
    items: dict[PartName, tuple[Item, ...]]
    offline_only: str

    @property
    def config(self) -> dict[str, Any]:
        """The settings that made it."""

    def runs(self) -> Iterable[Run]:
        """All runs, in the order they were recorded; asked for several times."""


def prepare(
    source: Source, whitening: Whitening, out: Path, report: Report = silent, precision: Precision = "float32"
) -> Meta:
    """Cut, fit what the chain needs on the training part, and store every epoch as the live chain gives it.

    Parameters
    ----------
    source : Source
    whitening : {"pooled", "session", "official"}
        See :class:`Recipe`.
    out : Path
        New folder.
    report : callable
        Told what is being done.
    precision : {"float32", "float16"}
        Of the epochs on disk.

    Raises
    ------
    ConfigError
        The folder exists, or a whitener is named and nothing whitens.
    DataError
        There is nothing to store, a channel is flat, a value is NaN, or the disk is full.
    """
    if whitening != "pooled" and not any(isinstance(step, Whiten) for step in source.signal.steps):
        raise ConfigError(
            "whitener", got=f"{whitening}, and no step that whitens", do='add a step of kind = "whiten" to the recipe'
        )
    fitted = _Fitted(source, whitening)
    for i, step in enumerate(source.signal.steps):
        if isinstance(step, Whiten | Standardise):
            fitted.fit(i, step, report)
    meta = Meta(
        dataset=source.dataset,
        subject=source.subject,
        simulated=source.simulated,
        kind=source.kind,
        signal=source.signal,
        shape=fitted.chain(None).shape,
        channel_sd={},
        offline_only="; ".join(filter(None, (source.offline_only, _REASONS[whitening] if fitted.of_session else ""))),
        images=source.images,
        config=source.config,
        items=source.items,
    )
    deviations: list[Float64] = []
    counts = dict.fromkeys(source.items, 0)
    with Writer(out, meta, fitted.arrays, precision) as writer:
        for run in source.runs():
            line, n = f"{run.part} part of session {run.session}: {len(run.item)} epochs", len(run.item)
            counts[run.part] += n
            chain = fitted.chain(run.session)
            for block in _blocks(n):
                report(line, int(block[0]), n)
                raw = run.cut(block)
                writer.append(run.part, chain(raw), run.item[block], run.session, run.position[block])
                if run.part == "train" and not source.offline_only:
                    deviations += [robust_sd(epoch) for epoch in raw[::_EVERY]]
        for part, n in counts.items():
            if not n:
                raise DataError(
                    f"{part} part of {source.dataset}", got="no epoch", do="check markers, table and window"
                )
        median = np.median(deviations, axis=0) if deviations else np.empty(0)
        return writer.close({name: float(sd) for name, sd in zip(source.signal.ch_names, median, strict=False)})


class _Fitted:
    """What the steps need: ``arrays`` of all sessions, ``of_session`` what replaces them in one session."""

    def __init__(self, source: Source, whitening: Whitening) -> None:
        self.source, self.whitening = source, whitening
        self.arrays: _Arrays = {}
        self.of_session: dict[int, _Arrays] = {}

    def chain(self, session: int | None, n_steps: int | None = None) -> Chain:
        """Make the chain of a session, up to a step."""
        signal = self.source.signal
        signal = msgspec.structs.replace(signal, steps=signal.steps[:n_steps])
        own = self.of_session.get(session, {}) if session is not None else {}
        return Chain(signal, self.arrays | own)

    def fit(self, i: int, step: Whiten | Standardise, report: Report) -> None:
        """Fit step ``i`` on the training part, as the steps before it leave it."""
        runs = [run for run in self.source.runs() if run.part == "train" and len(run.item)]
        if not runs:
            raise DataError(
                f"training part of {self.source.dataset}", got="no epoch", do="check markers, table and window"
            )
        if isinstance(step, Standardise):
            moments = [_moments(chained) for run in runs for _, chained in self._chained(run, i, report)]
            count, total, squares = np.sum(moments, axis=0)
            mean = total / count
            self.arrays[step.mean], self.arrays[step.std] = mean, np.sqrt(squares / count - mean**2)
            return
        if self.whitening == "official":
            runs = [run for run in self.source.runs() if len(run.item)]
        covariances: dict[int, list[Float64]] = {}
        for run in runs:
            of_run = self._over_repetitions if self.whitening == "official" else self._over_time
            covariances.setdefault(run.session, []).append(of_run(run, i, report))
        sessions = {session: np.mean(parts, axis=0) for session, parts in covariances.items()}
        self.arrays[step.array] = whitener(np.mean(list(sessions.values()), axis=0))
        if self.whitening != "pooled":
            for session, covariance in sessions.items():
                self.of_session.setdefault(session, {})[step.array] = whitener(covariance)

    def _over_time(self, run: Run, i: int, report: Report) -> Float64:
        weights = condition_weights(run.item)
        parts = [noise_covariance(chained, weights[block]) for block, chained in self._chained(run, i, report)]
        total: Float64 = np.sum(parts, axis=0)
        return total

    def _over_repetitions(self, run: Run, i: int, report: Report) -> Float64:
        """Stimuli shown once say nothing of the noise, and are left out."""
        chain = self.chain(run.session, i)
        order = np.argsort(run.item, kind="stable")
        groups = [group for group in np.split(order, np.flatnonzero(np.diff(run.item[order])) + 1) if len(group) > 1]
        if not groups:
            raise DataError(
                f"{run.part} part of session {run.session}",
                got="no stimulus twice",
                do='whitener = "session" needs no repetitions',
            )
        total: Float64 = np.zeros((len(chain.ch_names),) * 2)
        for done, group in enumerate(groups):
            report(f"session {run.session}: fitting on {len(groups)} stimuli", done, len(groups))
            total += repetition_covariance(chain(run.cut(group)))
        return total / len(groups)

    def _chained(self, run: Run, i: int, report: Report) -> Iterator[tuple[Int64, Float32]]:
        chain = self.chain(run.session, i)
        for block in _blocks(len(run.item)):
            report(f"session {run.session}: fitting on {len(run.item)} epochs", int(block[0]), len(run.item))
            yield block, chain(run.cut(block))


def _moments(epochs: Float32) -> Float64:
    """Count, sum and sum of squares of each channel: (3, n_chans) float64."""
    wide = epochs.astype(np.float64)
    count = np.full(epochs.shape[1], epochs.shape[0] * epochs.shape[2], np.float64)
    return np.stack([count, wide.sum(axis=(0, 2)), (wide**2).sum(axis=(0, 2))])


def _blocks(n: int) -> Iterator[Int64]:
    return (np.arange(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK))
