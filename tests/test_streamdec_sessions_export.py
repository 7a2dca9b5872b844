"""Sessions for other programs: what they read is what came in, at the sample the session put it on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import mne
import mne_bids
import numpy as np
import pytest
from kept_session import LOST, START, keep
from serving import streamdec
from small_bundle import NAMES, SFREQ, write_bundle

from streamdec.errors import ConfigError
from streamdec.feed import schema
from streamdec.sessions.continuous import Continuous
from streamdec.sessions.export import to_bids, to_fif
from streamdec.sessions.recorded import Recorded


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    room = tmp_path_factory.mktemp("export")
    return Recorded.open(keep(room / "kept", write_bundle(room / "b.zip")))


def onsets(session: Recorded) -> dict[int, str]:
    """Stimulus key by sample: the script's onsets lie on whole samples."""
    return {round((onset.onset_time - START) * SFREQ): onset.key for onset in session.of(schema.Onset)}


def test_every_sample_has_its_place(session: Recorded) -> None:
    grid = Continuous.of(session)
    stream = session.recording.streams[0]
    place = np.round((stream.stamps - START) * SFREQ).astype(int)
    np.testing.assert_array_equal(grid.data[:, place], stream.data)
    np.testing.assert_allclose(grid.times, START + np.arange(len(grid.times)) / SFREQ, atol=1e-6)
    assert grid.lost == [(LOST.start, LOST.stop - LOST.start)]
    np.testing.assert_array_equal(grid.data[:, LOST], grid.data[:, [LOST.start - 1]].repeat(50, axis=1))
    times = np.array([START - 1.0, START + 0.0021, START + 0.0019, START + 1e6])
    assert grid.samples(times).tolist() == [0, 1, 0, len(grid.times) - 1]


def test_fif(session: Recorded, tmp_path: Path) -> None:
    out = tmp_path / "a_raw.fif"
    done = streamdec("sessions", "export", session.path, "--fif", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "8 channels" in done.stdout
    raw = mne.io.read_raw_fif(out, preload=True, verbose="error")
    assert tuple(raw.ch_names) == NAMES
    assert set(raw.get_channel_types()) == {"eeg"}
    assert raw.info["sfreq"] == SFREQ
    np.testing.assert_allclose(raw.get_data() * 1e6, Continuous.of(session).data, rtol=1e-5, atol=1e-6)
    found = {round(a["onset"] * SFREQ): a["description"] for a in raw.annotations}
    assert found.pop(LOST.start) == "BAD_lost"
    assert found == onsets(session)
    assert not np.isnan([ch["loc"][:3] for ch in raw.info["chs"]]).any()
    assert "simulated EEG" in raw.info["description"]
    began = raw.info["meas_date"].isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert began == session.about.start.utc
    with pytest.raises(ConfigError, match="there already"):
        to_fif(session.path, out)


def test_bids(session: Recorded, tmp_path: Path) -> None:
    root = tmp_path / "bids"
    to_bids(session.path, root, "07", "rsvp")
    (path,) = mne_bids.find_matching_paths(root, extensions=".vhdr")
    assert (path.subject, path.task, path.datatype) == ("07", "rsvp", "eeg")
    raw = mne_bids.read_raw_bids(path, verbose="error")
    np.testing.assert_allclose(raw.get_data() * 1e6, Continuous.of(session).data, rtol=1e-4, atol=1e-3)
    with path.copy().update(suffix="events", extension=".tsv").fpath.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    shown = {int(row["sample"]): row["stimulus"] for row in rows if row["stimulus"] != "n/a"}
    assert shown == onsets(session)
    (lost,) = (row for row in rows if row["stimulus"] == "n/a")
    assert (lost["outcome"], lost["reason"]) == ("BAD_lost", "0.200 s of samples were lost")
    decisions = {round((d.onset_time - START) * SFREQ): d for d in session.decisions}
    for row in rows:
        if row["outcome"] == "decided":
            decision = decisions[int(row["sample"])]
            assert (row["rank"], row["candidate"]) == (str(decision.rank), decision.candidates[0].id)
    described = json.loads(path.copy().update(suffix="events", extension=".json").fpath.read_text(encoding="utf-8"))
    assert described["latency"]["Description"].startswith("s from the moment")
    sidecar = json.loads(path.copy().update(suffix="eeg", extension=".json").fpath.read_text(encoding="utf-8"))
    assert sidecar["Manufacturer"] == "n/a"
    assert sidecar["TaskDescription"].startswith("Simulated EEG, of no person.")
    assert not list(root.rglob("*electrodes.tsv"))  # nobody measured where they were
    with pytest.raises(ConfigError, match="already"):
        to_bids(session.path, root, "07", "rsvp")


def test_a_label_that_would_leave_the_folder_is_refused(session: Recorded, tmp_path: Path) -> None:
    for subject in ("../x", "a b", "", "ä"):
        with pytest.raises(ConfigError, match="letters and digits"):
            to_bids(session.path, tmp_path, subject, "rsvp")
    assert not list(tmp_path.iterdir())
