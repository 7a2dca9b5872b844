"""One session on one page: what it says is what was recorded, counted again."""

from __future__ import annotations

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from kept_session import FLAT, LOST, keep
from scipy.signal import butter, lfilter
from small_bundle import NAMES, SFREQ, write_bundle

from streamdec.errors import RecordingError
from streamdec.feed import schema
from streamdec.page.document import Document, Note, Table, to_html
from streamdec.sessions import evoked
from streamdec.sessions.continuous import Continuous
from streamdec.sessions.recorded import Recorded
from streamdec.sessions.report import compose, report


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    room = tmp_path_factory.mktemp("report")
    return Recorded.open(keep(room / "kept", write_bundle(room / "b.zip", evidence="mean")))


@pytest.fixture(scope="module")
def document(session: Recorded) -> Document:
    return compose(session)


def tables(document: Document) -> dict[str, Table]:
    blocks = [*document.lead, *(block for section in document.sections for block in section.blocks)]
    return {" ".join(name for name, _ in block.columns): block for block in blocks if isinstance(block, Table)}


def test_the_page_holds_everything_it_shows(
    session: Recorded, document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamdec.sessions.report.compose", lambda _: document)  # made once, it takes seconds
    out = tmp_path / "new" / "report.html"
    report(session.path, out)
    text = out.read_text(encoding="utf-8")
    ElementTree.fromstring(  # noqa: S314 - our own
        re.sub(r"<(meta|img)([^>]*)>", r"<\1\2/>", text.removeprefix("<!doctype html>\n"))
    )
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert text.count("<img ") == 5
    assert all(len(alt) > 40 for alt in re.findall(r'alt="([^"]*)"', text))
    assert "Simulated EEG. No figure below says anything about people." in text
    assert session.about.bundle.hash in text
    headings = [html.unescape(heading) for heading in re.findall(r"<h2[^>]*>([^<]*)<", text)]
    assert headings == [
        "Accuracy",
        "Stimuli",
        "Latency",
        "Evoked response and channels",
        "Ends and drops",
        "The amplifier's clock",
        "What happened",
        "How this was made",
    ]


def test_figures_of_the_lead_and_the_tables(session: Recorded, document: Document) -> None:
    found = tables(document)
    ranks = np.array([decision.rank for decision in session.decisions])
    assert len(ranks) > 60
    rows = found[" found by chance"].rows
    assert [row[1].split(" %")[0] for row in rows[:2]] == [f"{100 * np.mean(ranks <= k):.1f}" for k in (1, 5)]
    assert [row[2] for row in rows] == ["5 %", "25 %", "10.5"]
    latency = [decision.timing.latency for decision in session.decisions]
    (row,) = found["result n median 95 % 99 % longest budget in time"].rows
    assert row[:2] == ("retrieval", str(len(ranks)))
    assert float(row[2]) == pytest.approx(1e3 * np.median(latency), abs=0.06)
    assert row[6:] == ("50", f"{100 * np.mean(np.array(latency) <= 0.05):.1f} %")
    ends = {(row[1], row[2]): int(row[3]) for row in found["what became why n"].rows if row[0] == "onset"}
    assert session.account is not None
    assert sum(ends.values()) == session.account.onsets
    assert ends["decided", ""] == session.account.decided
    assert sum(n for (end, _), n in ends.items() if end == "lost_data") == session.account.lost_data > 0
    per_stimulus = found["stimulus decisions first median\nrank rank\nat last most often taken for"].rows
    assert sum(int(row[1]) for row in per_stimulus) == len(ranks)
    clock = dict(found[" at the end"].rows)
    assert (clock["gaps"], clock["samples missing in them"]) == ("1", "50")


def test_captions_and_pictures_by_tier(session: Recorded) -> None:
    def made(tier: str, latency: float, units: int = 1, *, partial: bool = False) -> schema.Caption:
        timing = schema.GenerationTiming(0.0, 0.0, 0.0, 0.0, latency, latency, 0.3, latency <= 0.3)
        return schema.Caption(
            key="a",
            onset_time=0.0,
            repetitions=1,
            tier=tier,
            units=units,
            wanted=units,
            partial=partial,
            worker="",
            probability=None,
            timing=timing,
            text="a",
        )

    more = [
        made("bank", 0.02),
        made("bank", 0.04),
        made("llm", 0.1, partial=True),
        made("llm", 0.5),
        schema.Dropped(what="caption", text="", reason="superseded", key="a"),
    ]
    few = [message for message in session.messages if isinstance(message, schema.Session)]
    found = tables(compose(msgspec.structs.replace(session, messages=[*few, *more])))
    rows = found["kind tier, or why none was made n share median ms 99 % ms in time"].rows
    assert [row[:4] for row in rows] == [
        ("caption", "bank", "2", "50.0 %"),
        ("caption", "llm", "1", "25.0 %"),
        ("caption", "dropped: superseded", "1", "25.0 %"),
    ]
    assert [row[4:] for row in rows[:2]] == [("30", "40", "100.0 %"), ("500", "500", "0.0 %")]
    (late,) = found["result n median 95 % 99 % longest budget in time"].rows
    assert late[1:2] + late[6:] == ("3", "300", "66.7 %")


def test_a_recording_that_is_not_whole_says_so(session: Recorded) -> None:
    few = [message for message in session.messages if isinstance(message, schema.Session)]
    cut = msgspec.structs.replace(session, messages=few, about=msgspec.structs.replace(session.about, end=None))
    notes = [block.text for block in compose(cut).lead if isinstance(block, Note)]
    assert notes[1] == "This recording is not complete (cut off)."


def test_without_a_decision_there_is_still_a_page(session: Recorded) -> None:
    states = [m for m in session.messages if isinstance(m, schema.Session)]
    bare = msgspec.structs.replace(session, messages=states, onsets=[])
    page = to_html(compose(bare), "")
    assert "nothing can be said of accuracy" in page
    assert "no onset has a clean epoch" in page


def test_what_is_no_session_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"session\.json"):
        report(tmp_path, tmp_path / "a.html")


def test_the_evoked_response_is_the_mean_of_what_was_recorded(session: Recorded) -> None:
    """Filter, cut, average, smooth: written again on the whole signal, without the loop."""
    found = evoked.look(session)
    assert found is not None
    grid = Continuous.of(session)
    data = grid.data.astype(np.float64)
    first = LOST.stop  # filters start anew behind the gap
    filtered = np.concatenate(
        [lfilter(*butter(1, evoked.HIGH_PASS, "high", fs=SFREQ), part) for part in (data[:, :first], data[:, first:])],
        axis=1,
    )
    times = np.arange(round((evoked.TMIN - 0.1) * SFREQ), round((evoked.TMAX + 0.1) * SFREQ) + 1) / SFREQ
    inner = slice(25, -25)
    np.testing.assert_allclose(times[inner], found.times)
    at = grid.samples(found.onsets)
    rows = [row for row in range(len(NAMES)) if row != FLAT]
    mean = np.mean([filtered[:, k - 75 : k + 226] for k in at], axis=0)
    oracle = evoked._smooth(mean, times, inner)
    for row in rows:
        assert np.corrcoef(found.mean[row], oracle[row])[0, 1] > 0.995
    assert found.sd.shape == (len(found.onsets), len(NAMES))
    assert len(found.onsets) + found.n_left_out == len(session.of(schema.Onset))
    assert not any(LOST.start - 200 < k < LOST.stop + 50 for k in at)
