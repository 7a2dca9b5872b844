"""Accuracy over time: what the first t seconds of the response tell, and what those from t on tell.

Two ways, which answer two questions. ``masked``: the encoder as it was trained, on epochs that are 0 outside the
window; it costs one encoding per window, and says when *this* decoder looks. ``retrained``: the method fitted anew for
each window, training and test epochs both 0 outside; it says what *can be* decoded from the window, and is what
NeuroAlign's figure 3 shows [inferred: the paper does not say that it retrained]. Zeros keep the shape every network
asks for and tell nothing: epochs are baseline corrected and whitened.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from streamdec.signal.chain import Chain
from streamdec.types import Bool, Float32, Float64

from . import evaluate
from .checkpoint import RunFolder, RunMeta
from .data.store import Part, PartName, Prepared
from .evaluate import About, Retrieval
from .experiment import evaluate_run, fit, open_test, own_store, targets_of
from .methods.registry import method as method_named
from .progress import Report, silent

Mode: TypeAlias = Literal["masked", "retrained"]
STEP = 0.1  # seconds, as in the figure
_TIE = 1e-6  # seconds; far below a sample, far above the rounding of decimal seconds


class WindowFigures(msgspec.Struct, frozen=True):
    """Figures of the samples from ``start`` to before ``stop``, seconds after the onset."""

    start: float
    stop: float
    averaged: Retrieval


class TimeWindows(About, frozen=True, kw_only=True):
    """Figures over windows, all repetitions averaged.

    ``growing`` from the start of the epoch to t, ``shrinking`` from t to its end; the whole epoch is in both.
    """

    mode: Mode
    growing: tuple[WindowFigures, ...]
    shrinking: tuple[WindowFigures, ...]


class Windowed(Prepared):
    """A store whose epochs are 0 outside a window. A part is read into memory.

    Parameters
    ----------
    path : Path
    start, stop : float
        Seconds after the onset.
    """

    def __init__(self, path: Path, start: float, stop: float) -> None:
        super().__init__(path)
        self._window = start, stop
        said = f"{self.meta.fingerprint} {start:.6f} {stop:.6f}"
        self.meta = msgspec.structs.replace(self.meta, fingerprint=hashlib.sha256(said.encode()).hexdigest())

    def part(self, name: PartName) -> Part:
        """Open a part."""
        part = super().part(name)
        return msgspec.structs.replace(part, epochs=masked(part.epochs, inside(self, *self._window)))


def times(prepared: Prepared) -> Float64:
    """Instant of each sample of the epochs, after the chain: (n_times,) float64, seconds after the onset."""
    chain = Chain(prepared.meta.signal, prepared.arrays)
    return chain.tmin + np.arange(prepared.meta.shape[1]) / chain.sfreq


def inside(prepared: Prepared, start: float, stop: float) -> Bool:
    """Tell which samples are from ``start`` to before ``stop``: (n_times,) bool."""
    at = times(prepared)
    within: Bool = (at >= start - _TIE) & (at < stop - _TIE)
    return within


def masked(epochs: Float32, within: Bool) -> Float32:
    """Epochs (n, n_chans, n_times) with 0 where ``within`` (n_times,) is False, a copy."""
    out = np.zeros(epochs.shape, np.float32)
    out[..., within] = epochs[..., within]
    return out


def edges(prepared: Prepared, step: float = STEP) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Windows that grow from the start of the epochs, and that shrink towards their end.

    Cuts are every ``step`` seconds from the onset on, or from the start of the epochs if that is later.
    """
    at = times(prepared)
    first, last = float(at[0]), float(at[-1] + (at[-1] - at[0]) / max(len(at) - 1, 1))
    onset = max(first, 0.0)
    cuts = [onset + i * step for i in range(1, int(np.ceil((last - onset) / step - _TIE)))]
    return [(first, cut) for cut in (*cuts, last)], [(cut, last) for cut in (first, *cuts)]


def time_windows(
    path: Path, prepared: Prepared | None = None, mode: Mode = "masked", *, device: str = "cpu", report: Report = silent
) -> TimeWindows:
    """Evaluate a run over windows.

    Parameters
    ----------
    path : Path
        Run folder. ``retrained`` makes runs below its ``retrained/``; a killed call goes on there.
    prepared : Prepared, optional
        As in :func:`.experiment.open_test`.
    mode : {"masked", "retrained"}
    device : str
        To train on.
    report : callable

    Raises
    ------
    ConfigError
        As :func:`.experiment.open_test`.
    DataError
        There is no test part, or one of classes.
    """
    test = open_test(path, prepared)
    means, shown, repetitions = test.averaged()
    growing, shrinking = edges(test.prepared)
    every = list(dict.fromkeys([*growing, *shrinking]))
    figures = {}
    for i, (start, stop) in enumerate(every):
        report(f"window {1000 * start:.0f} to {1000 * stop:.0f} ms", i, len(every))
        if mode == "masked" or (start, stop) == growing[-1]:
            queries = test.encode(masked(means, inside(test.prepared, start, stop)))
            found = evaluate.retrieval(queries, test.gallery, shown, repetitions)
        else:
            found = _retrained(path, prepared, start, stop, device)
        figures[start, stop] = WindowFigures(start, stop, found)
    return TimeWindows(
        **evaluate.about_fields(test.about),
        mode=mode,
        growing=tuple(figures[window] for window in growing),
        shrinking=tuple(figures[window] for window in shrinking),
    )


def _retrained(path: Path, prepared: Prepared | None, start: float, stop: float, device: str) -> Retrieval:
    meta = RunFolder(path).read("run.json", RunMeta)
    chosen = method_named(meta.method)
    out = path / "retrained" / f"{1000 * start:.0f}-{1000 * stop:.0f}"
    stores = [Windowed(Path(store), start, stop) for store in meta.prepared]
    settings = msgspec.convert(meta.settings, chosen.settings)
    fit(chosen, settings, stores, targets_of(meta), out, seed=meta.seed, device=device)
    tested = (prepared or own_store(meta)).path
    found = evaluate_run(out, Windowed(tested, start, stop)).averaged
    assert found is not None, "stimuli were asked for"
    return found
