"""The layouts that are known, what of them lies below a folder, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from streamdec.errors import ConfigError, DataError

from . import atm_meg, image_set, neurobridge, preprocessed, things_eeg2, things_fmri, things_meg, ubp
from .epoch_files import EpochFiles, Stored
from .prepare import Recipe, Run, Source
from .store import PartName

_Piece: TypeAlias = Callable[[], tuple[Source, list[Run]]]
_PARTS: tuple[PartName, ...] = ("train", "test")
_LOOKED_AT = 64  # epochs of each piece, spread over it, for NaN and flat channels


class Layout(msgspec.Struct, frozen=True):
    """One way a data set lies on disk.

    ``subjects(root)`` where each subject's files are; ``part(place, part, images)`` opens one, ``images`` being a root
    above the images; ``recipe`` the default one. The raw layout has no ``part``: it is not cut yet.
    """

    name: str
    dataset: str
    what: str
    subjects: Callable[[Path], dict[str, list[Path]]]
    part: Callable[[Path, PartName, Path], Stored] | None = None
    recipe: Recipe | None = None


LAYOUTS: tuple[Layout, ...] = (
    Layout("raw", "things_eeg2", "raw recordings, 1000 Hz", things_eeg2.subjects, recipe=things_eeg2.RECIPE),
    Layout("official", "things_eeg2", "official, 17 channels, 100 Hz", preprocessed.official, preprocessed.part),
    Layout("nice", "things_eeg2", "NICE and ATM, 63 channels, 250 Hz", preprocessed.nice, preprocessed.part),
    Layout("ubp", "things_eeg2", "UBP, .pt", ubp.eeg, ubp.part),
    Layout("neurobridge", "things_eeg2", "NeuroBridge and SAMGA, .npy", neurobridge.subjects, neurobridge.part),
    Layout("fif", "things_meg", "preprocessed epochs, .fif", things_meg.subjects, things_meg.part, things_meg.RECIPE),
    Layout("atm", "things_meg", "ATM, .pkl", atm_meg.subjects, atm_meg.part),
    Layout("ubp", "things_meg", "UBP, .pt", ubp.meg, ubp.part),
    Layout("tables", "things_fmri", "single-trial responses, .h5 and .csv", things_fmri.subjects),
)


class Finding(msgspec.Struct, frozen=True):
    """What is known of one subject in one layout: where it is, what is there, and what is wrong."""

    layout: Layout
    subject: str
    place: Path
    lines: tuple[str, ...]
    problems: tuple[str, ...]


def locate(root: Path, dataset: str, subject: str, name: str | None = None) -> tuple[Layout, Path]:
    """Find a subject's files of a data set below ``root``, in a layout by name or in the only one there is.

    Raises
    ------
    ConfigError
        There are several, or the name is none.
    DataError
        There are none.
    """
    known = {layout.name: layout for layout in LAYOUTS if layout.dataset == dataset}
    if name is not None and name not in known:
        raise ConfigError("layout", got=name, allowed=", ".join(known))
    found = {layout.name: layout.subjects(root) for layout in known.values() if name in (None, layout.name)}
    places = [(known[key], place) for key, subjects in found.items() for place in subjects.get(subject, ())]
    if not places:
        have = ", ".join(f"{key}: {' '.join(subjects)}" for key, subjects in found.items() if subjects)
        do = f"streamdec-train prepare --check {root} says what is there"
        raise DataError(f"no {subject} of {dataset} below {root}", got=have or None, do=do)
    if len(places) > 1:
        raise ConfigError(
            f"{subject} of {dataset} below {root}",
            got=", ".join(f"{layout.name} in {place}" for layout, place in places),
            do="choose by --layout, or by a root above one of them and --images",
        )
    return places[0]


def source(
    root: Path,
    subject: str,
    *,
    dataset: str = "things_eeg2",
    layout: str | None = None,
    images: Path | None = None,
    recipe: Recipe | None = None,
) -> Source:
    """Open a subject of a data set below ``root``.

    Parameters
    ----------
    root : Path
    subject : str
        Such as "sub-01".
    dataset : {"things_eeg2", "things_meg"}
    layout : str, optional
        Needed where there are several.
    images : Path, optional
        A folder above the images, where ``root`` is not.
    recipe : Recipe, optional
        The layout's own when omitted.

    Raises
    ------
    ConfigError, DataError
        As :func:`locate`, or what is found is not what it should be.
    """
    found, place = locate(root, dataset, subject, layout)
    recipe = recipe or found.recipe
    if found.part is None:
        return things_eeg2.ThingsEeg2(place, images or root, recipe or things_eeg2.RECIPE)
    parts = {part: found.part(place, part, images or root) for part in _PARTS}
    image_set.apart({part: stored.items for part, stored in parts.items()})
    return EpochFiles(dataset, subject, parts, recipe)


def check(root: Path, images: Path | None = None) -> Iterator[Finding]:
    """Look at everything below ``root``: headers, names, counts, images, and some epochs for NaN and flat channels."""
    for layout in LAYOUTS:
        for subject, places in layout.subjects(root).items():
            for place in places:
                lines: list[str] = []
                problems: list[str] = []
                for name, runs in _pieces(layout, place, subject, images or root):
                    try:
                        lines.append(f"{name}: {_look(*runs())}")
                    except (ConfigError, DataError) as error:
                        problems.append(f"{name}: {error}")
                yield Finding(layout, subject, place, tuple(lines), tuple(dict.fromkeys(problems)))


def _pieces(layout: Layout, place: Path, subject: str, images: Path) -> Iterator[tuple[str, _Piece]]:
    """What can be wrong by itself: parts, of raw data parts of sessions."""
    if layout.dataset == "things_fmri":

        def tables() -> tuple[Source, list[Run]]:
            opened = things_fmri.source(place, images, things_fmri.FmriSettings(n_voxels=_LOOKED_AT))
            return opened, list(opened.runs())

        yield "tables", tables
    elif layout.part is None:
        for number, session in enumerate(things_eeg2.sessions(place)):
            for part in _PARTS:

                def recording(number: int = number, part: PartName = part) -> tuple[Source, list[Run]]:
                    opened = things_eeg2.ThingsEeg2(place, images)
                    return opened, [opened.run(number, part)]

                yield f"{session.name} {part}", recording
    else:
        for part in _PARTS:

            def file(part: PartName = part) -> tuple[Source, list[Run]]:
                assert layout.part is not None
                opened = EpochFiles(layout.dataset, subject, {part: layout.part(place, part, images)}, layout.recipe)
                return opened, list(opened.runs())

            yield part, file


def _look(source: Source, runs: list[Run]) -> str:
    """Say what there is.

    Raises
    ------
    DataError
        Something is wrong with it.
    """
    n = sum(len(run.item) for run in runs)
    if not n:
        raise DataError("no epoch")
    part = runs[0].part
    members = source.items[part]
    absent = [item.image for item in members if not (Path(source.images) / item.image).is_file()]
    if absent:
        raise DataError(f"{len(absent)} of {len(members)} images are not in {source.images}", got=f"no {absent[0]}")
    for run in runs:
        index = np.unique(np.linspace(0, len(run.item) - 1, _LOOKED_AT).astype(np.int64))
        epochs = run.cut(index)
        for what, wrong in (  # flat in one epoch is an amplifier's pause, in all of them a channel that was not there
            ("NaN or infinite values", ~np.isfinite(epochs).all(axis=2)),
            ("flat channel", (np.ptp(epochs, axis=2) == 0).all(axis=0, keepdims=True) & (epochs.shape[2] > 1)),
        ):
            if wrong.any():
                first, channel = np.argwhere(wrong)[0]
                raise DataError(
                    what, got=f"channel {source.signal.ch_names[channel]}, {part} epoch {run.position[index[first]]}"
                )
    shown = {members[i].concept for run in runs for i in np.unique(run.item)}
    n_chans, n_times = runs[0].cut(np.zeros(1, np.int64)).shape[1:]
    return (
        f"{n} epochs of {len({i for run in runs for i in np.unique(run.item)})} images, {len(shown)} concepts, "
        f"{n_chans} channels x {n_times} samples at {source.signal.sfreq:g} Hz"
    )
