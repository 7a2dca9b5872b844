"""The snippets for other stimulus programs: their markers arrive, stamped when things were shown."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from streamdec.acquire.lsl.library import local_clock
from streamdec.acquire.lsl.markers import LslMarkers
from streamdec.acquire.markers import MarkerReader
from streamdec.acquire.query import StreamQuery
from streamdec.types import Onset

SNIPPETS = Path(__file__).parents[1] / "docs" / "snippets"
pytestmark = pytest.mark.lsl

# Enough of PsychoPy to run the snippet: a window whose flips take a frame, and that says when they were.
PSYCHOPY = {
    "__init__": "",
    "core": "import time\nwait = time.sleep",
    "event": """
        import sys
        def waitKeys():
            sys.stdin.readline()
        """,
    "visual": """
        import time
        from pylsl import local_clock
        class Window:
            def __init__(self, **_):
                self.calls = []
            def getActualFrameRate(self):
                return 60.0
            def callOnFlip(self, function, *arguments):
                self.calls.append((function, arguments))
            def flip(self):
                time.sleep(1 / 60)
                now = local_clock()
                for function, arguments in self.calls:
                    function(*arguments)
                    print("flip", *arguments, now, flush=True)
                self.calls.clear()
            def close(self):
                pass
        class ImageStim:
            def __init__(self, window, path, **_):
                pass
            def draw(self):
                pass
        TextStim = ImageStim
        """,
}

# Enough of jsPsych to run the page: it loads, and it shows one trial after the other.
JSPSYCH = """
const jsPsychImageKeyboardResponse = {};
const shown = [];
const initJsPsych = () => ({
  pluginAPI: { preloadImages: (images, done) => done() },
  async run(trials) {
    for (const trial of trials) {
      trial.on_load();
      requestAnimationFrame((time) => shown.push(time));  // of the same frame
      await new Promise((resolve) => setTimeout(resolve, trial.trial_duration));
    }
    window.shown = shown;
  },
});
"""

PAGE = """<!doctype html><title>test</title><script type="module">
import { Markers } from "./markers.js";
const markers = await Markers.open();
const shown = [];
for (let i = 0; i < 5; i++)
  await new Promise((resolve) => requestAnimationFrame((time) => {
    markers.mark({ id: `image-${i}` }, time);
    shown.push(time);
    setTimeout(resolve, 50);
  }));
window.done = { shown, now: performance.now(), uncertainty: markers.uncertainty };
</script>"""


@contextmanager
def running(*command, **options):
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def markers_of(name):
    """Read a marker stream as the live side does, once it is connected; what is yielded waits for so many onsets."""
    inlet, reader = LslMarkers(StreamQuery(name=name)), MarkerReader()

    def onsets(n, seconds=30.0):
        found, end = [], local_clock() + seconds
        while len(found) < n:
            assert local_clock() < end, found
            found += [read for read in map(reader, inlet.pull()) if isinstance(read, Onset)]
            time.sleep(0.01)
        assert reader.lost == 0
        return found

    try:
        end = local_clock() + 30
        while not inlet.connected:
            assert local_clock() < end
            inlet.pull()
            time.sleep(0.01)
        yield onsets
    finally:
        inlet.close()


def test_psychopy_marks_at_its_flips(tmp_path):
    for module, text in PSYCHOPY.items():
        (tmp_path / "psychopy").mkdir(exist_ok=True)
        (tmp_path / "psychopy" / f"{module}.py").write_text(textwrap.dedent(text))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    names = ["cat.jpg", "cup.jpg", "map.jpg"]
    with (
        running(sys.executable, SNIPPETS / "psychopy_markers.py", *names, env=environment) as program,
        markers_of("psychopy") as onsets,
    ):
        program.stdin.write("\n")
        program.stdin.flush()
        found = onsets(3)
        flips = [line.split() for line in program.stdout]
        assert program.wait(10) == 0
    assert [onset.key for onset in found] == names == [name for _, name, _ in flips]
    for onset, (_, _, now) in zip(found, flips, strict=True):
        assert onset.time == pytest.approx(float(now), abs=0.01)
    np.testing.assert_array_less(0.19, np.diff([onset.time for onset in found]))  # 12 frames of 60 Hz


@pytest.fixture
def bridge(tmp_path, stream_name):
    """The bridge, running on a folder with a test page; its address."""
    (tmp_path / "index.html").write_text(PAGE)
    for name in ("markers.js", "jspsych.html"):
        (tmp_path / name).write_text((SNIPPETS / name).read_text())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = (sys.executable, "-u", SNIPPETS / "marker_bridge.py", tmp_path, "--port", port, "--name", stream_name)
    with running(*command) as program:
        assert any(f"http://127.0.0.1:{port}" in line for line in program.stdout)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def page():
    """A page in a real browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: no browser to mark from")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium to mark from")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def test_a_browser_marks_on_the_lsl_clock(bridge, stream_name, page):
    with markers_of(stream_name) as onsets:
        page.goto(bridge)
        before = local_clock()
        page.wait_for_function("window.done !== undefined")
        done, now = page.evaluate("[window.done, performance.now() / 1000]")
        after = local_clock()
        found = onsets(5)
    assert [onset.key for onset in found] == [f"image-{i}" for i in range(5)]
    # Frame times of the page and stamps of the markers differ by one constant: how far apart the clocks are.
    offsets = np.array([onset.time for onset in found]) - np.array(done["shown"]) / 1000
    np.testing.assert_allclose(offsets, offsets[0], atol=1e-6)
    assert before - now < offsets[0] + done["uncertainty"]
    assert offsets[0] - done["uncertainty"] < after - done["now"] / 1000


def test_the_page_for_jspsych_marks_each_image(bridge, stream_name, page, tmp_path):
    """With as much of jsPsych as the page calls."""
    for script in ("jspsych/dist/index.browser.js", "plugin-image-keyboard-response/dist/index.browser.js"):
        (tmp_path / script).parent.mkdir(parents=True)
        (tmp_path / script).write_text(JSPSYCH if script.startswith("jspsych") else "")
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    with markers_of(stream_name) as onsets:
        page.goto(f"{bridge}/jspsych.html")
        page.wait_for_function("window.shown !== undefined")
        frames = np.array(page.evaluate("window.shown")) / 1000
        found = onsets(2)
    assert faults == []
    assert [onset.key for onset in found] == ["images/cat_01.jpg", "images/cup_01.jpg"]
    np.testing.assert_allclose(np.diff([onset.time for onset in found]), np.diff(frames), atol=1e-6)


def test_pages_of_others_may_not_mark(bridge):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    request = urllib.request.Request(  # noqa: S310 - http
        f"{bridge}/markers",
        headers={**upgrade, "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Origin": "http://elsewhere.example"},
    )
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=10)  # noqa: S310
    refusal.value.close()
    assert refusal.value.code == 403
