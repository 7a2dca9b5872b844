"""The short afternoon: present, record, prepare, fit, export, calibrate, serve, report; real programs and streams."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from streamdec.acquire.recording import read
from streamdec.decode import bundle

pytestmark = [pytest.mark.lsl, pytest.mark.slow]

PROGRAM = Path(__file__).parents[1] / "tools" / "afternoon.py"
N_TRAIN, N_SHOWN = 80, 40  # of its sizes when it is short


def log(path: Path) -> list[tuple[str, float]]:
    """Marker and LSL clock of everything that was shown."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["kind"] in ("image", "catch")]
    return [(row["marker"], float(row["onset"])) for row in rows]


def received(path: Path) -> list[tuple[str, float]]:
    """The same, from what was recorded."""
    markers = read(path).streams[1]
    found = [(json.loads(text), stamp) for text, stamp in zip(markers.data[0], markers.stamps, strict=True)]
    return [(fields["id"], pytest.approx(stamp, abs=2e-6)) for fields, stamp in found if "id" in fields]


def test_from_a_new_cap_to_a_calibrated_decode(tmp_path):
    lab = tmp_path / "lab"
    done = subprocess.run([sys.executable, PROGRAM, lab, "--short"], capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    # The doctor saw that the header's unit cannot be true, before anything was decoded with it.
    assert re.search(r"^ *fatal\b.*scale of the EEG stream", done.stdout, re.MULTILINE)

    sessions = {name: next((lab / "sessions" / name).iterdir()) for name in ("bundle", "calibrated")}
    recordings = {"unseen": list(sessions.values())}
    recordings |= {
        name: list((lab / "recorded" / who).iterdir())
        for name, who in (("training", "person-1"), ("block", "newcomer"))
    }
    for name, n in (("training", N_TRAIN), ("block", N_SHOWN), ("unseen", N_SHOWN)):
        shown = log(lab / "presented" / name / "log.tsv")
        assert len([marker for marker, _ in shown if marker != "catch"]) == n
        for recording in recordings[name]:
            assert received(recording) == shown

    fitted = bundle.read(lab / "calibrated.zip").manifest.calibrated
    assert (fitted.unit, set(fitted.missing)) == ("microvolts", {"O1", "FC4"})
    assert "photodiode" in fitted.latency.source
    assert fitted.latency.seconds == pytest.approx(0.060, abs=0.005)

    for name, session in sessions.items():
        about = json.loads((session / "session.json").read_text())
        counts = about["end"]["counts"]
        assert about["bundle"]["name"] == f"{name}.zip"
        assert about["simulated"]
        assert counts["onsets"] == counts["decided"] == N_SHOWN
        assert (counts["gaps"], counts["garbage"]) == (0, 0)
        assert (session / "report.html").stat().st_size > 10_000
