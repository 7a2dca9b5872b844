"""A data set -> the prepared store, through the live chain.

What is stored is what :class:`streamdec.signal.chain.Chain` makes of each epoch with the very parameters a bundle will
hold, so what an encoder is trained on is what it gets live, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.errors import DataError
from streamdec.signal.chain import Chain
from streamdec.signal.quality import robust_sd
from streamdec.signal.spec import Filter, Signal, Standardise, Step, Whiten
from streamdec.types import Float32, Float64

from ..progress import Report, silent
from .mvnn import condition_weights, noise_covariance, whitener
from .store import Int64, Item, Meta, PartName, Writer

_BLOCK = 256  # epochs cut at once: 77 MB of 63 x 1201
_EVERY = 8  # of the training epochs, for the channels' deviation

_Arrays = dict[str, npt.NDArray[Any]]


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How epochs are made.

    ``ch_names`` in order, empty for the data set's own; ``tmin``..``tmax`` seconds around the onset, both ends
    included; ``filters`` causal, on the stream; ``steps`` on each epoch. The arrays that steps need are fitted on the
    training part. ``whitener`` of a ``whiten`` step: ``pooled`` one for all sessions, which a bundle can hold;
    ``session`` one for each, as published, which makes the store offline-only.
    """

    tmin: float
    tmax: float
    ch_names: tuple[str, ...] = ()
    filters: tuple[Filter, ...] = ()
    steps: tuple[Step, ...] = ()
    whitener: Literal["pooled", "session"] = "pooled"

    def signal(self, ch_names: tuple[str, ...], sfreq: float) -> Signal:
        """Name the channels and the rate where the recipe leaves them to the data."""
        return Signal(self.ch_names or ch_names, sfreq, self.tmin, self.tmax, self.filters, self.steps)


class Run(msgspec.Struct, frozen=True, eq=False):
    """One recorded session's share of one part.

    ``item`` (n,) index of each epoch's item; ``position`` (n,) sample of its onset; ``cut(slice)`` the raw epochs (n,
    n_chans, n_times) float32, microvolt, filtered.
    """

    part: PartName
    session: int
    item: Int64
    position: Int64
    cut: Callable[[slice], Float32]


class Source(Protocol):
    """A data set as :func:`prepare` needs it; attributes as in :class:`.store.Meta`."""

    dataset: str
    subject: str
    simulated: bool
    kind: Literal["stimulus", "class"]
    signal: Signal
    images: str
    items: dict[PartName, tuple[Item, ...]]

    @property
    def config(self) -> dict[str, Any]:
        """The settings that made it."""

    def runs(self) -> Iterable[Run]:
        """All runs, in the order they were recorded; asked for several times."""


def prepare(source: Source, whitening: Literal["pooled", "session"], out: Path, report: Report = silent) -> Meta:
    """Cut, fit what the chain needs on the training part, and store every epoch as the live chain gives it.

    Parameters
    ----------
    source : Source
    whitening : {"pooled", "session"}
        See :class:`Recipe`.
    out : Path
        New folder.
    report : callable
        Told what is being done.

    Raises
    ------
    ConfigError
        The folder exists.
    DataError
        There is nothing to store, or a channel is flat.
    """
    fitted = _Fitted(source, whitening == "session")
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
        offline_only="each session has a whitener of its own" if fitted.of_session else "",
        images=source.images,
        config=source.config,
        items=source.items,
    )
    deviations: list[Float64] = []
    counts = dict.fromkeys(source.items, 0)
    with Writer(out, meta, fitted.arrays) as writer:
        for run in source.runs():
            report(f"{run.part} part of session {run.session}: {len(run.item)} epochs")
            counts[run.part] += len(run.item)
            chain = fitted.chain(run.session)
            for block, raw in _blocks(run):
                writer.append(run.part, chain(raw), run.item[block], run.session, run.position[block])
                if run.part == "train":
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

    def __init__(self, source: Source, per_session: bool) -> None:
        self.source, self.per_session = source, per_session
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
        covariances: dict[int, Float64] = {}
        moments: list[Float64] = []
        for run in runs:
            report(f"session {run.session}: fitting on {len(run.item)} epochs")
            chain = self.chain(run.session, i)
            if isinstance(step, Whiten):
                weights = condition_weights(run.item)
                parts = [noise_covariance(chain(raw), weights[block]) for block, raw in _blocks(run)]
                covariances[run.session] = np.sum(parts, axis=0)
            else:
                moments += [_moments(chain(raw)) for _, raw in _blocks(run)]
        if isinstance(step, Whiten):
            self.arrays[step.array] = whitener(np.mean(list(covariances.values()), axis=0))
            if self.per_session:
                for session, covariance in covariances.items():
                    self.of_session.setdefault(session, {})[step.array] = whitener(covariance)
        else:
            count, total, squares = np.sum(moments, axis=0)
            mean = total / count
            self.arrays[step.mean], self.arrays[step.std] = mean, np.sqrt(squares / count - mean**2)


def _moments(epochs: Float32) -> Float64:
    """Count, sum and sum of squares of each channel: (3, n_chans) float64."""
    wide = epochs.astype(np.float64)
    count = np.full(epochs.shape[1], epochs.shape[0] * epochs.shape[2], np.float64)
    return np.stack([count, wide.sum(axis=(0, 2)), (wide**2).sum(axis=(0, 2))])


def _blocks(run: Run) -> Iterable[tuple[slice, Float32]]:
    for start in range(0, len(run.item), _BLOCK):
        block = slice(start, start + _BLOCK)
        yield block, run.cut(block)
