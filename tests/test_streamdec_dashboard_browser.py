"""The page in a real browser: on a live demo session, and on a feed that says what it is told to."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Dashboard, Feed, axe, chromium
from feed_messages import caption, gallery, onset, reconstruction, retrieval, session, signal, stats

from streamdec.demo import simulated_session
from streamdec.feed import schema

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef"
    "0000000049454e44ae426082"
)
SIZES = {"projector": (1920, 1080), "phone": (390, 844)}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def live() -> Iterator[Dashboard]:
    """The demo's simulated session, and a dashboard on it."""
    before = os.environ["LSLAPICFG"]
    with simulated_session() as subscriber, Dashboard(subscriber.endpoint) as dashboard:
        os.environ["LSLAPICFG"] = before
        yield dashboard


@pytest.fixture
def told() -> Iterator[tuple[Feed, Dashboard]]:
    """A feed that says what it is told to, and a dashboard on it."""
    with Feed() as feed, Dashboard(feed.endpoint) as dashboard:
        yield feed, dashboard


class Looking:
    """A page, and what it complained about."""

    def __init__(self, browser: Any, url: str, size: tuple[int, int] = SIZES["projector"], **more: Any) -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **more)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.complaints: list[str] = []
        self.forgiven = "nothing"
        self.elsewhere: list[str] = []
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "request",
            lambda asked: asked.url.startswith((url.partition("#")[0], "blob:")) or self.elsewhere.append(asked.url),
        )
        self.page.goto(url)

    def until(self, condition: str, argument: object = None) -> None:
        """Wait until an expression is true; asked from here, as the page's policy forbids the page to evaluate one."""
        end = time.monotonic() + 60
        while not self.page.evaluate(condition, argument):
            assert time.monotonic() < end, f"not within 60 s: {condition}, {argument}"
            self.page.wait_for_timeout(50)

    def download(self, selector: str) -> bytes:
        with self.page.expect_download() as waiting:
            self.page.click(selector)
        return Path(waiting.value.path()).read_bytes()

    def rows(self) -> list[list[str]]:
        """The table of events, as text."""
        script = (
            "[...document.querySelectorAll('#events tr')].map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )
        rows: list[list[str]] = self.page.evaluate(script)
        return rows

    def __enter__(self) -> Looking:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert not [text for text in self.complaints if not text.startswith(self.forgiven)]
            assert not self.elsewhere


ROWS = "document.querySelectorAll('#events tr').length"
PAINTED = """id => {
  const canvas = document.querySelector(id);
  if (!canvas || !canvas.width) return false;
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const context = copy.getContext("2d");
  context.drawImage(canvas, 0, 0);
  return new Set(new Uint32Array(context.getImageData(0, 0, copy.width, copy.height).data.buffer)).size > 8;
}"""


@pytest.mark.lsl
def test_results_appear(browser: Any, live: Dashboard) -> None:
    with Looking(browser, live.url) as look:
        look.until("document.querySelectorAll('.candidates li').length == 5")
        look.until("[...document.querySelectorAll('#focus img')].filter(image => image.naturalWidth > 20).length >= 5")
        look.until("document.querySelectorAll('#strip .card').length >= 8")
        for canvas in ("#traces", "#evidence canvas", "#evoked canvas", "#map", "#latency canvas"):
            look.until(PAINTED, canvas)
        look.until("/[1-9]/.test(document.querySelector('#latency-table td').innerText)")
        look.until("/\\d+ clean epochs/.test(document.querySelector('#evoked-words').innerText)")
        look.until("/all 63 good/.test(document.querySelector('#quality').innerText)")
        look.until("/running/.test(document.querySelector('#heading').innerText)")
        assert "simulated" in look.page.inner_text("#heading")
        look.until("/decisions, the seen image first in/.test(document.querySelector('#summary').innerText)")
        assert {row[1] for row in look.rows()} >= {"retrieval"}


@pytest.mark.lsl
def test_pause_scroll_and_step(browser: Any, live: Dashboard) -> None:
    with Looking(browser, live.url) as look:
        page = look.page
        look.until("document.querySelector('.candidates')")
        # Room to step back in: the session is some seconds old when its first presentation comes.
        look.until("[document.querySelector('#time')].every(({min, value}) => value - min > 12)")
        look.until("document.querySelectorAll('#strip .card').length >= 4")
        page.keyboard.press("Space")
        look.until("document.querySelector('#pause').getAttribute('aria-pressed') == 'true'")
        at, shown, end = page.input_value("#time"), page.inner_text("#focus"), float(page.get_attribute("#time", "max"))
        look.until(f"document.querySelector('#time').max > {end + 2}")  # the session goes on
        assert page.input_value("#time") == at
        assert page.inner_text("#focus") == shown
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        look.until("shown => document.querySelector('#focus').innerText != shown", shown)
        assert float(page.input_value("#time")) < float(at)
        earlier = (float(page.get_attribute("#time", "min")) + float(at)) / 2
        page.locator("#time").evaluate("(e, t) => { e.value = t; e.dispatchEvent(new Event('input')) }", earlier)
        look.until("at => Number(document.querySelector('#time').value) < at", float(at))
        newest = page.evaluate("document.querySelector('#events tr td').innerText")
        minutes, seconds = newest.split(":")
        assert 60 * int(minutes) + float(seconds) <= earlier + 0.2
        page.locator("#strip .card").first.click()
        look.until("document.querySelector('#strip .card').getAttribute('aria-pressed') == 'true'")
        page.keyboard.press("l")
        look.until("document.querySelector('#pause').getAttribute('aria-pressed') == 'false'")
        look.until("[document.querySelector('#time')].every(({max, value}) => max - value < 1)")


@pytest.mark.lsl
def test_filter_and_export(browser: Any, live: Dashboard) -> None:
    with Looking(browser, live.url, accept_downloads=True) as look:
        page = look.page
        look.until(f"{ROWS} >= 30")
        page.click("#pause")
        key = next(row[2] for row in look.rows() if row[1] == "retrieval")
        page.fill("#text", key)
        look.until("key => [...document.querySelectorAll('#events tr')].every(row => row.innerText.includes(key))", key)
        page.uncheck("[value=session]")
        page.select_option("#outcome", "in time")
        look.until(
            "[...document.querySelectorAll('#events tr')].every(row => row.cells[8].innerText.startsWith('in time'))"
        )
        rows = list(csv.DictReader(io.StringIO(look.download("#csv").decode())))
        document = json.loads(look.download("#json"))
        assert document["simulated"] is True
        assert len(rows) == len(document["events"]) >= len(look.rows()) > 0
        assert {(row["kind"], row["outcome"]) for row in rows} == {("retrieval", "in time")}
        for row, event in zip(rows, document["events"], strict=True):
            assert float(row["latency"]) == event["latency"] <= event["budget"]
            assert key in (event["result"], event["key"]) or key in event["result"] or event["key"]
        for chart in ("traces", "evidence", "evoked", "latency"):
            assert look.download(f"[data-png={chart}]").startswith(b"\x89PNG")
        page.fill("#text", "there is no such stimulus")
        look.until(f"{ROWS} == 0")


@pytest.mark.lsl
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits(browser: Any, live: Dashboard, size: str, scheme: str, tmp_path: Path) -> None:
    source = axe(tmp_path)
    with Looking(browser, live.url, SIZES[size], color_scheme=scheme) as look:
        look.until("document.querySelector('.candidates') && document.querySelector('#latency-table tr')")
        look.until(PAINTED, "#traces")
        look.page.evaluate(source)
        found = look.page.evaluate("axe.run()")
        wrong = [(v["id"], [node["target"] for node in v["nodes"]][:3]) for v in found["violations"]]
        assert not wrong
        assert look.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shots = Path(os.environ.get("STREAMDEC_SCREENSHOTS", tmp_path))
        look.page.screenshot(path=shots / f"dashboard-{size}-{scheme}.png", full_page=size == "phone")


@pytest.mark.lsl
def test_it_comes_back_after_the_server(browser: Any, live: Dashboard) -> None:
    with Dashboard(live.endpoint) as first, Looking(browser, first.url) as look:
        look.until(f"{ROWS} >= 10")
        before = look.rows()[0]
        look.forgiven = "WebSocket connection to"  # Chromium says so by itself where nobody listens
        assert first.close() == 0
        look.until("/no connection/.test(document.querySelector('#heading').innerText)")
        with Dashboard(live.endpoint, port=first.port):
            look.until("/running/.test(document.querySelector('#heading').innerText)")
            look.until("before => document.querySelector('#events td').innerText > before", before[0])
            look.page.keyboard.press("Space")
            times = [tuple(row[:4]) for row in look.rows() if row[1] == "retrieval"]
            assert len(times) == len(set(times))


def test_captions_and_pictures_as_they_come(browser: Any, told: tuple[Feed, Dashboard]) -> None:
    feed, dashboard = told
    feed.say(
        session(
            "started", bundle="b", method="nice", budgets={"retrieval": 0.05, "caption": 0.3, "reconstruction": 0.8}
        )
    )
    feed.say(gallery(PNG, PNG), PNG, PNG)
    with Looking(browser, dashboard.url) as look:
        look.until("/running/.test(document.querySelector('#heading').innerText)")
        feed.say(onset("id0"))
        feed.say(retrieval("id0"))
        look.until("document.querySelectorAll('.candidates li').length == 2")
        feed.say(caption("id0", text="a red", partial=True))
        look.until("document.querySelector('blockquote.partial')?.innerText.startsWith('a red')")
        feed.say(caption("id0", text="a red <b>heart</b>"))
        look.until("document.querySelector('blockquote:not(.partial)')?.innerText == 'a red <b>heart</b>'")
        assert "llm 2/4" in look.page.inner_text(".said")
        feed.say(reconstruction("id0", PNG, partial=True), PNG)
        look.until("document.querySelector('.drawn img.partial')?.naturalWidth == 1")
        late = schema.GenerationTiming(10.0, 10.1, 10.2, 10.9, 11.0, 1.0, 0.8, deadline_met=False)
        feed.say(reconstruction("id0", source="id1", payloads=(), timing=late))
        look.until("document.querySelector('.drawn img:not(.partial)')?.naturalWidth == 1")
        assert "late" in look.page.inner_text(".drawn")
        feed.say(schema.Dropped(what="caption", text="", reason="no time", key="id1", onset_time=2.5))
        feed.say(schema.Epoch(key="id1", onset_time=2.5, outcome="rejected", reason="Fp1 railed"))
        look.until("/rejected: Fp1 railed/.test(document.querySelector('#drops').innerText)")
        look.until("/caption: no time/.test(document.querySelector('#drops').innerText)")
        feed.say(session("stalled", stream="eeg", reason="no sample for 0.3 s"))
        feed.say(stats())
        look.until("/stalled/.test(document.querySelector('#heading').innerText)")
        feed.say(signal(), np.ones((2, 3), np.float32))
        look.until("/Pz.*flat/.test(document.querySelector('#quality').innerText)")
        feed.say(session("ended", reason="stopped"))
        look.until("/ended/.test(document.querySelector('#heading').innerText)")


def test_the_latencies_fit_their_panel(browser: Any, told: tuple[Feed, Dashboard]) -> None:
    feed, dashboard = told
    budgets = {"retrieval": 0.05, "caption": 0.3, "reconstruction": 0.8}
    feed.say(session("started", bundle="b", method="nice", budgets=budgets))
    with Looking(browser, dashboard.url) as look:
        look.until("/running/.test(document.querySelector('#heading').innerText)")
        for message in (onset("a"), retrieval("a"), caption("a"), reconstruction("a", source="b", payloads=())):
            feed.say(message)
        look.until("document.querySelectorAll('#latency-table tr').length == 3")
        look.until("[...document.querySelectorAll('#latency-table td:nth-child(2)')].every(td => td.innerText == '1')")
        for width in (2560, 1920, 1701, 1541, 1440, 1251, 901, 800, 390):
            look.page.set_viewport_size({"width": width, "height": 1080})
            for place in ("document.documentElement", "document.querySelector('.latency-panel .scroll')"):
                look.until(f"{place}.scrollWidth <= {place}.clientWidth")


def test_the_token_is_asked_for(browser: Any, tmp_path: Path) -> None:
    with Feed() as feed, Dashboard(feed.endpoint, "--token-file", tmp_path / "token") as dashboard:
        feed.say(session("started", bundle="b", method="nice"))
        token = (tmp_path / "token").read_text().strip()
        with Looking(browser, dashboard.url) as look:
            for attempt in ("something else altogether", token):
                look.until("document.querySelector('#token').open")
                look.page.fill("#token-text", attempt)
                look.page.keyboard.press("Enter")
            look.until("/running/.test(document.querySelector('#heading').innerText)")
        with Looking(browser, f"{dashboard.url}#token={token}") as look:
            look.until("/running/.test(document.querySelector('#heading').innerText)")
            assert token not in look.page.url


def test_motion_and_colours_are_the_users(browser: Any, told: tuple[Feed, Dashboard]) -> None:
    _, dashboard = told
    with Looking(browser, dashboard.url, color_scheme="dark", reduced_motion="reduce") as look:
        assert look.page.evaluate("document.documentElement.dataset.theme") == "dark"
        look.page.keyboard.press("t")
        assert look.page.evaluate("document.documentElement.dataset.theme") == "light"
        look.page.reload()
        assert look.page.evaluate("document.documentElement.dataset.theme") == "light"
        look.page.keyboard.press("?")
        look.until("document.querySelector('#help').open")
        look.page.keyboard.press("Escape")
        look.until("!document.querySelector('#help').open")
