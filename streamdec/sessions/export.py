"""``streamdec sessions export``: a session as FIF, or in a BIDS data set."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..errors import ConfigError, RecordingError
from ..signal.montage import canonical, has_position
from ..signal.quality import unit_factor
from . import events
from .continuous import Continuous
from .folder import recorded_config
from .recorded import Recorded

_IN_VOLTS = ("eeg", "eog", "ecg", "emg")
_KINDS = (*_IN_VOLTS, "misc", "stim", "resp", "gsr", "temperature")  # of LSL's channel types, those that mne has


def to_fif(path: Path, out: Path) -> str:
    """Write a session as a FIF file: onsets as annotations with the stimulus keys, electrodes where the cap has them.

    Parameters
    ----------
    path : Path
        The session's folder.
    out : Path
        New file.

    Returns
    -------
    str
        What was written.

    Raises
    ------
    ConfigError
        mne is not installed, or the file is there already.
    RecordingError
        It cannot be read or written.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already", do="name another file")
    session = Recorded.open(path)
    raw, samples, rows = _raw(session)
    import mne

    raw.set_montage("standard_1005", match_case=False, on_missing="ignore", verbose="error")
    raw.set_annotations(
        raw.annotations
        + mne.Annotations(
            samples / raw.info["sfreq"], 0.0, [row.cells["stimulus"] for row in rows], raw.annotations.orig_time
        )
    )
    try:
        raw.save(out, verbose="error")
    except (OSError, ValueError) as error:
        raise RecordingError(f"cannot write {out}", got=str(error)) from error
    return f"{out}: {_said(raw, len(rows), len(session.rows))}"


def to_bids(path: Path, root: Path, subject: str, task: str) -> str:
    """Write a session into a BIDS data set, which is made where it is not there.

    Parameters
    ----------
    path : Path
        The session's folder.
    root : Path
        The data set's.
    subject, task : str
        Labels, letters and digits. A subject's sessions in the data set are told apart by when they began.

    Returns
    -------
    str
        What was written.

    Raises
    ------
    ConfigError
        mne-bids is not installed, a label is none, or the session is there already.
    RecordingError
        It cannot be read or written.
    """
    for name, label in (("subject", subject), ("task", task)):
        if not label.isascii() or not label.isalnum():
            raise ConfigError(f"--{name}", got=repr(label), allowed="letters and digits")
    try:
        import mne_bids
        import pandas as pd
    except ImportError as error:
        raise ConfigError("export to BIDS needs mne-bids", do="pip install 'streamdec[bids]'") from error
    session = Recorded.open(path)
    raw, samples, rows = _raw(session)
    began = "".join(letter for letter in session.about.start.utc[:19] if letter.isalnum())
    target = mne_bids.BIDSPath(subject=subject, session=began, task=task, datatype="eeg", root=root)
    if target.copy().update(suffix="eeg", extension=".vhdr").fpath.exists():
        raise ConfigError(f"session {began} of sub-{subject} is in {root} already")
    columns = [name for name in events.COLUMNS if name not in ("onset", "duration")]  # which BIDS says by itself
    if session.about.bundle is None:
        columns = ["stimulus", "outcome", "reason"]  # the last two for what is no onset
    cells = [row.cells for row in rows] + [_unlike_an_onset(mark) for mark in raw.annotations]
    frame = pd.DataFrame([{name: each.get(name, "n/a") for name in columns} for each in cells])
    found = [*samples, *(round(mark["onset"] * raw.info["sfreq"]) for mark in raw.annotations)]
    names = [*(row.cells["stimulus"] for row in rows), *raw.annotations.description]
    codes = {name: number for number, name in enumerate(sorted(set(names)), 1)}
    order = np.argsort(found, kind="stable")
    table = np.array([(found[i], 0, codes[names[i]]) for i in order], int).reshape(-1, 3)
    raw.set_annotations(None)
    try:
        mne_bids.write_raw_bids(
            raw,
            target,
            events=table,
            event_id=codes,
            event_metadata=frame.iloc[order].reset_index(drop=True),
            extra_columns_descriptions={name: events.COLUMNS[name] for name in columns},
            format="BrainVision",
            allow_preload=True,
            verbose="error",
        )
        side = target.copy().update(suffix="eeg", extension=".json")
        mne_bids.update_sidecar_json(side, _truth(session), verbose="error")
    except (OSError, ValueError, RuntimeError) as error:
        raise RecordingError(f"cannot write into {root}", got=str(error)) from error
    return f"{target.fpath}: {_said(raw, len(rows), len(session.rows))}"


def _truth(session: Recorded) -> dict[str, str]:
    """Correct what mne-bids takes from the file format, and say what it cannot know."""
    about = session.about
    eeg = "Simulated EEG, of no person. " if about.simulated else ""
    said = f"{eeg}Recorded by streamdec {about.versions['streamdec']}"
    if about.bundle is not None:
        said += f", decoded live with bundle {about.bundle.name} {about.bundle.hash}"
    return {"Manufacturer": "n/a", "TaskDescription": said}


def _unlike_an_onset(mark: dict[str, Any]) -> dict[str, str]:
    why = f"{mark['duration']:.3f} s of samples were lost" if mark["duration"] else "nothing connects what comes here"
    return dict.fromkeys(events.COLUMNS, "n/a") | {"outcome": mark["description"], "reason": why}


def _raw(session: Recorded) -> tuple[Any, Any, list[events.Row]]:
    """Make mne's Raw of a session, and find its onsets.

    Returns
    -------
    raw : mne.io.RawArray
        With annotations where samples were lost, and where nothing connects them.
    samples : array of shape (n,) int
        Where the onsets lie.
    rows : list of events.Row
        What came of them; in the order of time. Those before the first sample and behind the last are left out.
    """
    try:
        import mne
    except ImportError as error:
        raise ConfigError("export needs mne", do="pip install 'streamdec[recordings]'") from error
    found, about = Continuous.of(session), session.about
    if not len(found.times):
        raise RecordingError(f"session {session.path} holds no samples")
    unit = (recorded_config(session.recording) or Config()).intake.unit
    eeg = found.eeg
    names, kinds, factors = [], [], []
    for row in range(eeg.n_chans):
        label = eeg.ch_names[row] if eeg.ch_names else ""
        said = eeg.ch_types[row].lower() if eeg.ch_types else ""
        kind = "eeg" if has_position(label) and said not in _KINDS else said if said in _KINDS else "misc"
        name = canonical(label) if has_position(label) else label
        names.append(name if name and name not in names else f"{name or 'CH'}-{row + 1}")
        kinds.append(kind)
        own = unit or (eeg.units[row] if eeg.units else "")
        factors.append(1e-6 * unit_factor(own) if kind in _IN_VOLTS else 1.0)
    info = mne.create_info(names, eeg.sfreq, kinds)
    raw = mne.io.RawArray(found.data * np.array(factors)[:, None], info, copy="auto", verbose="error")
    began = datetime.datetime.fromisoformat(about.start.utc) + datetime.timedelta(
        seconds=float(found.times[0]) - about.start.lsl
    )
    raw.set_meas_date(began)
    raw.info["description"] = f"streamdec session {about.id}" + ("; simulated EEG" if about.simulated else "")
    marks = [(first, n, "BAD_lost") for first, n in found.lost] + [(at, 0, "BAD boundary") for at, _ in found.breaks]
    raw.set_annotations(
        mne.Annotations(
            [first / eeg.sfreq for first, _, _ in marks],
            [n / eeg.sfreq for _, n, _ in marks],
            [name for _, _, name in marks],
            raw.info["meas_date"],
        )
    )
    half = 0.5 / eeg.sfreq
    rows = [row for row in session.rows if found.times[0] - half <= row.time <= found.times[-1] + half]
    rows.sort(key=lambda row: row.time)
    return raw, found.samples(np.array([row.time for row in rows])), rows


def _said(raw: Any, n: int, of: int) -> str:
    said = f"{len(raw.ch_names)} channels, {raw.times[-1]:.1f} s at {raw.info['sfreq']:g} Hz, {n} onsets"
    return said if n == of else f"{said}; {of - n} before the first sample or behind the last, left out"
