"""Epochs that others have cut, in whatever file, as a source. What is trained on them cannot run live.

A loader says what a part holds (:class:`Stored`); here channels are picked by name and the window by time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.errors import ConfigError, DataError
from streamdec.signal.rate import Rate
from streamdec.types import Float32, Float64

from .prepare import Recipe, Run
from .store import Int64, Item, PartName

_OFFLINE = "epochs were preprocessed before they came here, so the live chain cannot make them"


class Stored(msgspec.Struct, frozen=True, eq=False):
    """One part, as its file holds it.

    ``images`` folder of its items' images; ``item`` (n,) index of each epoch's item in ``items``; ``session`` (n,) its
    session; ``ch_names`` and ``times`` (n_times,) seconds after the onset, of the epochs that ``read(index)`` gives:
    (k, n_chans, n_times) float32 for ascending ``index`` (k,).
    """

    path: Path
    images: Path
    ch_names: tuple[str, ...]
    times: Float64
    items: tuple[Item, ...]
    item: Int64
    session: Int64
    read: Callable[[Int64], Float32]


class EpochFiles:
    """Stored parts, as a source.

    Parameters
    ----------
    dataset, subject : str
    parts : mapping of str to Stored
        The first one's channels and times are those of all.
    recipe : Recipe, optional
        Channels, window and steps on what the files hold; no filters. All of it when omitted.
    settings : Struct, optional
        What the loader was told besides.

    Raises
    ------
    ConfigError
        The recipe asks for what the files lack.
    DataError
        Parts do not fit each other.
    """

    kind: Literal["stimulus", "class"] = "stimulus"
    offline_only = _OFFLINE

    def __init__(
        self,
        dataset: str,
        subject: str,
        parts: Mapping[PartName, Stored],
        recipe: Recipe | None = None,
        settings: msgspec.Struct | None = None,
    ) -> None:
        self.dataset, self.subject, self._parts = dataset, subject, parts
        self._recipe, self._settings = recipe, settings
        self.items = {name: part.items for name, part in parts.items()}
        first = next(iter(parts.values()))
        self.images = str(first.images.resolve())
        self.simulated = any((folder / "SIMULATED.txt").exists() for folder in (first.images, first.images.parent))
        for part in parts.values():
            if part.ch_names != first.ch_names or not np.array_equal(part.times, first.times):
                raise DataError(f"channels or times of {part.path}", got="others", allowed=f"those of {first.path}")
            if part.images != first.images:
                raise DataError(
                    f"images of {part.path}", got=part.images, allowed=first.images, do="name the right one"
                )
        rate = Rate(_sfreq(first))
        recipe = recipe or Recipe(float(first.times[0]), float(first.times[-1]))
        if recipe.filters:
            raise ConfigError("filters", got=f"epochs in {first.path}", allowed="filters on recordings only")
        self.signal = recipe.signal(first.ch_names, rate.sfreq)
        unknown = [name for name in self.signal.ch_names if name not in first.ch_names]
        if unknown:
            raise ConfigError(f"channels of {first.path}", got=", ".join(unknown), allowed=", ".join(first.ch_names))
        self._picks = [first.ch_names.index(name) for name in self.signal.ch_names]
        start = rate.to_samples(recipe.tmin - float(first.times[0]))
        stop = start + rate.window(recipe.tmin, recipe.tmax)[1]
        if not 0 <= start < stop <= len(first.times):
            raise ConfigError(
                "window",
                got=f"{recipe.tmin:g}..{recipe.tmax:g} s",
                allowed=f"within {first.times[0]:g}..{first.times[-1]:g} s, as in {first.path}",
            )
        self._window = slice(start, stop)

    @property
    def config(self) -> dict[str, Any]:
        """The settings."""
        given = {"recipe": self._recipe, "settings": self._settings}
        return {"subject": self.subject} | {key: msgspec.to_builtins(value) for key, value in given.items() if value}

    def runs(self) -> Iterator[Run]:
        """One run per part and session; epochs keep the order of the file."""
        for name, part in self._parts.items():
            for session in np.unique(part.session):
                index = np.flatnonzero(part.session == session)
                yield Run(name, int(session), part.item[index], index, self._cut(part, index))

    def _cut(self, part: Stored, of_run: Int64) -> Callable[[Int64], Float32]:
        def cut(index: Int64) -> Float32:
            rows = of_run[index]
            order = np.argsort(rows, kind="stable")
            out = np.empty((len(rows), len(self._picks), self._window.stop - self._window.start), np.float32)
            out[order] = part.read(rows[order])[:, self._picks, self._window]
            return out

        return cut


def repeated(
    path: Path,
    images: Path,
    data: npt.NDArray[Any],
    ch_names: Sequence[Any],
    times: npt.ArrayLike,
    items: Sequence[Item],
    session: npt.NDArray[Any] | None = None,
) -> Stored:
    """Describe an array that holds each item's repetitions side by side.

    Parameters
    ----------
    path : Path
        Where it is from.
    images : Path
        Folder of the items' images.
    data : array of shape (n_items, n_repetitions, n_chans, n_times) or (n_concepts, n_images, n_repetitions, ...)
        Any number; mapped arrays are read in blocks.
    ch_names : sequence of str
    times : array of shape (n_times or more,)
        Seconds. Of longer ones the last belong to the data: NICE and UBP drop samples and keep all times.
    items : sequence of Item
    session : array of shape (n_items, n_repetitions), optional

    Raises
    ------
    DataError
        Shapes do not fit.
    """
    if data.ndim == 5:
        data = data.reshape(-1, *data.shape[2:])
    names = tuple(str(name) for name in ch_names)
    seconds = np.asarray(times, np.float64).ravel()
    wanted = f"({len(items)}, repetitions, {len(names)}, {len(seconds)} or fewer)"
    if data.ndim != 4 or data.shape[0] != len(items) or data.shape[2] != len(names) or data.shape[3] > len(seconds):
        raise DataError(
            f"data of {path}",
            got=f"shape {data.shape}",
            allowed=f"shape {wanted}: items as there are images, channels and times as named",
        )
    n_items, n_repetitions, *shape = data.shape
    if session is not None and session.shape != data.shape[:2]:
        raise DataError(f"sessions of {path}", got=f"shape {session.shape}", allowed=f"shape {data.shape[:2]}")
    sessions = np.zeros(n_items * n_repetitions, np.int64) if session is None else session.ravel().astype(np.int64)
    flat = data.reshape(-1, *shape)
    seconds = seconds[len(seconds) - shape[1] :]

    def read(index: Int64) -> Float32:
        first = int(index[0]) if len(index) else 0
        stretch = fresh(data).reshape(flat.shape)[first : int(index[-1]) + 1 if len(index) else 0]
        return stretch[index - first].astype(np.float32)

    item = np.repeat(np.arange(n_items), n_repetitions)
    return Stored(path, images, names, seconds, tuple(items), item, sessions, read)


def fresh(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Map a mapped array anew; another is returned as it is.

    What is read through a mapping counts as this process's memory until the mapping ends. Who reads a file once, in
    blocks, maps it for each.
    """
    if not isinstance(array, np.memmap) or array.filename is None:
        return array
    order: Literal["C", "F"] = "C" if array.flags.c_contiguous else "F"
    return np.memmap(array.filename, array.dtype, "r", array.offset, array.shape, order)


def _sfreq(part: Stored) -> float:
    if len(part.times) == 1:
        return 1.0  # one value per channel: there is no rate
    steps = np.diff(part.times)
    if not (steps > 0).all() or np.ptp(steps) > 1e-3 * steps.mean():
        raise DataError(f"times of {part.path}", got=f"{len(part.times)}", allowed="one, or evenly spaced ones")
    # times are decimal fractions of a second, whose differences are not quite those of the rate
    return float(np.round(1 / steps.mean(), 3))
