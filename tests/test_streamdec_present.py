"""What is presented: order and timing in frames, markers, keys, breaks, missed frames, the table; and the program."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageGrab

from offline.data import recording
from streamdec.errors import ConfigError, DataError, StreamNotFound
from streamdec.present import log as logs
from streamdec.present.plan import Frames, PresentSettings, frames, sequences
from streamdec.present.run import present
from streamdec.present.show import Show
from streamdec.present.table import Row, read_table, table_of, write_table
from streamdec.simulate.schedule import TARGET, Timing

REFRESH = 60.0
FRAMES = Frames(on=6, soa=12, before=3, after=6)
ROWS = [Row(f"key-{i}", f"{i}.png") for i in range(5)]


class FakeScreen:
    """Flips on a grid of a clock of its own; ``late`` frames at some flips, ``typed`` keys before others."""

    refresh = REFRESH

    def __init__(self, late=(), typed=()):
        self.late, self.typed = dict(late), dict(typed)
        self.flips, self.shown, self.now = 0, [], 100.0

    def load(self, path):
        return path or "catch"

    def flip(self, picture=None, text=""):
        self.flips += 1
        self.now += (1 + self.late.get(self.flips, 0)) / REFRESH
        self.shown.append((self.now, picture, text))
        return self.now

    def pressed(self):
        return [key for flip, key in list(self.typed.items()) if flip <= self.flips and self.typed.pop(flip)]

    def close(self):
        pass


class FakeOutlet:
    def __init__(self):
        self.sent, self.consumers = [], False

    def push(self, data, stamps):
        self.sent.append((data[0], stamps))

    def have_consumers(self):
        return self.consumers

    def markers(self):
        return [(json.loads(text), stamp) for text, stamp in self.sent]


@pytest.fixture
def show(tmp_path):
    """Make a show of some sequences on a screen; returns whether it was completed, its outlet, log and lines."""

    numbers = itertools.count()

    def run(screen, plan, block=10, rest=0.1, **options):
        outlet, log, lines = FakeOutlet(), logs.Log(tmp_path / f"log-{next(numbers)}.tsv"), []
        made = Show(screen, outlet, log, ROWS, Path("folder"), FRAMES, lines.append, rest=rest, **options)
        done = made.run([np.array(codes) for codes in plan], block)
        log.close()
        return done, outlet, log, lines

    return run


def images(log):
    return [entry for entry in log.entries if entry.kind != "key" and entry.kind != "break"]


@given(st.integers(1, 200), st.integers(1, 100), st.sampled_from([59.94, 60.0, 75.0, 120.0, 144.0, 165.0]))
def test_whole_frames_are_taken(on, off, refresh):
    settings = PresentSettings(on=on / refresh, timing=Timing(soa=(on + off) / refresh))
    assert frames(settings, refresh) == Frames(on, on + off, round(0.75 * refresh), round(2.75 * refresh))


@pytest.mark.parametrize(("on", "soa", "refresh"), [(0.1, 0.2, 144.0), (0.1, 0.2, 75.0), (0.001, 0.2, 60.0)])
def test_other_timings_are_refused_with_what_is_allowed(on, soa, refresh):
    settings = PresentSettings(on=on, timing=Timing(soa=soa))
    with pytest.raises(ConfigError, match="frames of this screen's") as refusal:
        frames(settings, refresh)
    near = [float(word) for word in str(refusal.value).split("such as ")[1].split() if word.startswith("0.")]
    for seconds in near:
        assert abs(seconds * refresh - round(seconds * refresh)) < 0.02  # what it advises are whole frames
    timing = frames(PresentSettings(on=0.1, timing=Timing(soa=0.2)), 59.94)
    assert (timing.on, timing.soa) == (6, 12)


@pytest.mark.parametrize(
    "wrong",
    [{"on": 0.2}, {"on": 0.0}, {"size": 1.5}, {"repetitions": 0}, {"block": 0}, {"rest": -1.0}, {"pace": float("nan")}],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="allowed"):
        PresentSettings(**wrong)


def test_each_image_comes_as_often_as_said_and_seed_decides():
    settings = PresentSettings(repetitions=3, timing=Timing(targets=1.0))
    plan = sequences(30, settings)
    codes = np.concatenate(plan)
    np.testing.assert_array_equal(np.bincount(codes[codes != TARGET])[1:], 3)
    assert [len(one) for one in plan[:-1]] == [20] * (len(plan) - 1)
    assert max((one == TARGET).sum() for one in plan) == 1
    assert not np.array_equal(codes, np.concatenate(sequences(30, PresentSettings(repetitions=3, seed=1))))


def test_markers_are_stamped_at_the_flips_that_show_the_images(show):
    screen = FakeScreen()
    done, outlet, log, lines = show(screen, [[1, 2, TARGET], [3, 4]])
    assert (done, lines) == (True, [])
    markers = [(fields["id"], stamp) for fields, stamp in outlet.markers() if "id" in fields]
    assert [key for key, _ in markers] == ["key-0", "key-1", "catch", "key-2", "key-3"]
    assert [entry.onset for entry in images(log)] == [stamp for _, stamp in markers]
    pictures = [str(ROWS[0].image), str(ROWS[1].image), "catch", str(ROWS[2].image), str(ROWS[3].image)]
    for (_, stamp), picture in zip(markers, pictures, strict=True):
        on = [now for now, shown, _ in screen.shown if shown is not None and Path(shown).name == picture]
        assert on[0] == stamp
        assert len(on) == FRAMES.on
    assert [entry.duration for entry in images(log)] == pytest.approx([0.1] * 5)
    assert np.diff([stamp for _, stamp in markers])[[0, 1, 3]] == pytest.approx(0.2)
    assert [fields["seq"] for fields, _ in outlet.markers()] == list(range(1, len(outlet.sent) + 1))
    events = [fields["event"] for fields, _ in outlet.markers() if "event" in fields]
    assert events == ["pause", "go", "end"]


def test_plain_markers_are_the_keys_alone(show):
    _, outlet, log, _ = show(FakeScreen(), [[1, TARGET]], plain=True)
    assert outlet.sent == [(text, entry.onset) for text, entry in zip(("key-0", "catch"), images(log), strict=True)]


@pytest.mark.parametrize(("frame", "place"), [(0, 0), (5, 0), (12, 1), (20, 1), (35, 2)])
def test_a_missed_frame_is_found_at_its_image(show, frame, place):
    plan = [[1, 2, 3]]
    clean = FakeScreen()
    show(clean, plan)
    first = next(i for i, (_, picture, _) in enumerate(clean.shown, 1) if picture is not None)
    _, _, log, lines = show(FakeScreen(late={first + frame: 2}), plan)
    assert [entry.missed for entry in images(log)] == [2 * (i == place) for i in range(3)]
    assert lines == ["sequence 1: 2 frames missed, at 1 images"]
    account = logs.account(log.entries, 3)
    assert (account.missed, account.late) == (2, 1)


def test_escape_ends_the_show_and_the_last_image_is_in_the_log(show):
    clean = FakeScreen()
    show(clean, [[1, 2, 3]])
    first = next(i for i, (_, picture, _) in enumerate(clean.shown, 1) if picture is not None)
    done, outlet, log, _ = show(FakeScreen(typed={first + 14: "escape"}), [[1, 2, 3]])
    assert not done
    assert [entry.marker for entry in images(log)] == ["key-0", "key-1"]
    assert images(log)[1].duration == pytest.approx(3 / REFRESH)
    assert outlet.markers()[-1][0]["event"] == "stopped"
    assert [fields["id"] for fields, _ in outlet.markers() if "id" in fields] == ["key-0", "key-1"]


def test_breaks_wait_for_the_space_bar(show):
    screen = FakeScreen(typed={30: "space", 200: "a", 400: "space"})
    done, _, log, _ = show(screen, [[1], [2], [3]], block=2, rest=None)
    assert done
    pauses = [entry for entry in log.entries if entry.kind == "break"]
    assert [round((entry.onset + entry.duration - 100) * REFRESH) for entry in pauses] == [31, 401]
    texts = dict.fromkeys(text for _, _, text in screen.shown if text)
    assert list(texts) == ["press space to begin", "2 of 3 sequences done: press space to go on"]


def test_the_experimenter_says_go(show):
    asked = iter([False] * 50 + [True] + [False] * 100)
    _, outlet, log, _ = show(FakeScreen(), [[1]], rest=None, go=lambda: next(asked))
    (pause,) = (entry for entry in log.entries if entry.kind == "break")
    assert pause.duration == pytest.approx(51 / REFRESH)
    assert [fields["event"] for fields, _ in outlet.markers() if "event" in fields] == ["pause", "go", "end"]


def test_what_the_experimenter_said_during_a_block_does_not_end_the_break_after_it(show):
    asked = iter([True, True] + [False] * 20 + [True])  # begin; said during the block; end the break
    _, _, log, _ = show(FakeScreen(), [[1], [2]], block=1, rest=None, go=lambda: next(asked))
    _, pause = (entry for entry in log.entries if entry.kind == "break")
    assert pause.duration == pytest.approx(21 / REFRESH)


def test_answers_to_catch_images_are_counted():
    def image(onset, sequence, kind="image"):
        return logs.Entry(onset, 0.1, kind, "x", sequence=sequence, place=1)

    def key(onset, sequence):
        return logs.Entry(onset, 0.0, "key", "space", sequence=sequence)

    entries = [
        image(1, 1),
        image(2, 1, "catch"),
        key(2.5, 1),
        image(3, 2, "catch"),
        key(2.9, 2),
        image(4, 3),
        key(5, 3),
    ]
    account = logs.account([*entries, key(6, 0)], 10)
    assert (account.images, account.planned) == (2, 10)
    assert (account.catches, account.seen, account.false_alarms) == (2, 1, 1)


def test_nobody_reads_the_markers():
    screen, outlet = FakeScreen(), FakeOutlet()
    made = Show(screen, outlet, None, ROWS, Path(), FRAMES, print)
    with pytest.raises(StreamNotFound, match="nobody reads the markers"):
        made.wait(2.0)
    assert screen.now == pytest.approx(102.0, abs=0.1)
    outlet.consumers = True
    made.wait(2.0)


@pytest.fixture
def folder(tmp_path):
    """Six images of three concepts, of different kinds of file."""
    for i, (name, mode) in enumerate(itertools.product(("00001_red_hat", "00002_cup", "00003_map"), ("RGB", "P"))):
        path = tmp_path / "images" / name / f"{i}.{'png' if mode == 'P' else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = np.random.default_rng(i).integers(0, 255, 3)
        Image.fromarray(np.full((40, 60, 3), colour, np.uint8)).convert(mode).save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def test_the_table_of_a_folder_is_what_a_recording_is_prepared_by(folder, tmp_path):
    rows = table_of(folder)
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "table.tsv"
    write_table(path, rows, folder)
    assert [(row.marker, row.label, row.concept) for row in read_table(path)] == [
        (row.marker, row.label, row.concept) for row in rows
    ]
    table = recording.read_table(path)
    assert table.kind == "stimulus"
    assert (
        list(table.index)
        == [row.marker for row in rows]
        == sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*g"))
    )
    assert {item.concept for item in table.items} == {"00001_red_hat", "00002_cup", "00003_map"}
    assert table.items[0].label == "red hat"
    for item in table.items:
        assert (path.parent / item.image).is_file()


def test_an_image_that_cannot_be_read_is_found_before_the_first_is_shown(folder, tmp_path, virtual_screen):
    broken = sorted(folder.rglob("*.*g"))[-1]
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=broken.name):
        present(folder, tmp_path / "out", PresentSettings(), say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_an_error_within_the_show_is_marked(tmp_path):
    """A recorder that goes on is to know that nothing more comes."""
    outlet, log = FakeOutlet(), logs.Log(tmp_path / "log.tsv")
    turns = iter([False] * 30)
    made = Show(FakeScreen(), outlet, log, ROWS, Path("folder"), FRAMES, print, rest=0.1, stopped=lambda: next(turns))
    with pytest.raises(StopIteration):
        made.run([np.array([1, 2, 3])], 10)
    log.close()
    assert outlet.markers()[-1][0]["event"] == "stopped"


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="no image below"):
        table_of(tmp_path)


@contextmanager
def program(folder, out, *options, **environment):
    """`streamdec present`, running, on a screen of 60 Hz."""
    command = [sys.executable, "-m", "streamdec", "present", folder, "--out", out, "--pace", "60", "--before", "0.2"]
    command += ["--after", "0.2", *options]
    with subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_log(out):
    with (out / "log.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture
def virtual_screen():
    """A virtual X screen on a free display."""
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb: no virtual screen")
    receiving, sending = os.pipe()
    command = ["Xvfb", "-displayfd", str(sending), "-screen", "0", "800x600x24", "-noreset"]
    process = subprocess.Popen(command, pass_fds=(sending,), stderr=subprocess.DEVNULL)
    os.close(sending)
    with os.fdopen(receiving) as told:
        number = told.readline().strip()  # it writes the number once it is ready
    assert number
    try:
        yield f":{number}"
    finally:
        process.terminate()
        process.wait(10)


def marker_inlet(name):
    import pylsl

    (found,) = pylsl.resolve_byprop("name", name, 1, 30.0)
    inlet = pylsl.StreamInlet(found, recover=False)
    inlet.open_stream(10.0)
    return inlet


def drain(inlet, process, look=lambda: None, patience=60.0):
    """Markers until the program has ended; ``look`` is called now and then."""
    from pylsl.util import LostError

    end, got = time.monotonic() + patience, []
    while time.monotonic() < end:
        ended = process.poll() is not None
        if not ended:
            look()
        try:
            texts, stamps = inlet.pull_chunk(0.05)
        except LostError:
            texts, stamps = [], []
        got += [(json.loads(text[0]), stamp) for text, stamp in zip(texts, stamps, strict=True)]
        if ended and not texts:
            return got
    raise AssertionError("the program has not ended")


@pytest.mark.lsl
def test_markers_equal_the_log_and_the_screen_shows_images(folder, tmp_path, stream_name, virtual_screen):
    """Real screen (a virtual one), real LSL; and the photodiode patch is white just while an image is there."""
    out, looks = tmp_path / "out", []

    def look():
        pixels = np.asarray(ImageGrab.grab(xdisplay=virtual_screen))
        if (pixels[5, 400] == 127).all():  # the window is there
            looks.append((pixels[-5, 5], pixels[250, 350]))

    options = ("--repetitions", "4", "--catches", "1", "--sequence", "8", "--wait", "30")
    environment = {"DISPLAY": virtual_screen, "SDL_VIDEODRIVER": "x11"}
    with program(folder, out, *options, "--name", stream_name, **environment) as process:
        inlet = marker_inlet(stream_name)
        process.stdin.write("\n")  # Enter: the experimenter begins
        process.stdin.flush()
        got = drain(inlet, process, look)
        printed, complaint = process.communicate(timeout=10)
    assert process.returncode == 0, complaint
    assert "24 of 24 images shown" in printed
    stimuli = [(fields["id"], stamp) for fields, stamp in got if "id" in fields]
    rows = read_log(out)
    shown = [row for row in rows if row["kind"] in ("image", "catch")]
    assert [key for key, _ in stimuli] == [row["marker"] for row in shown]
    np.testing.assert_allclose([t for _, t in stimuli], [float(row["onset"]) for row in shown], atol=1e-6)
    assert [fields["seq"] for fields, _ in got] == list(range(1, len(got) + 1))
    assert {row["marker"] for row in shown} - {"catch"} == {row.marker for row in read_table(out / "table.tsv")}
    about = json.loads((out / "present.json").read_text())
    assert about["account"]["images"] == 24
    assert about["account"]["missed"] == sum(int(row["missed"]) for row in rows)
    seen = {(tuple(patch), bool((place != 127).any())) for patch, place in looks}
    assert {((255, 255, 255), True), ((0, 0, 0), False)} <= seen
    # A look may fall into a flip, and have half of each.
    torn = sum((tuple(patch) == (255, 255, 255)) != bool((place != 127).any()) for patch, place in looks)
    assert torn <= 0.1 * len(looks)


@pytest.mark.lsl
def test_frames_missed_on_purpose_are_reported(folder, tmp_path, stream_name):
    """The program is stopped for a quarter of a second in the middle of a sequence."""
    out = tmp_path / "out"
    options = ("--repetitions", "3", "--catches", "0", "--rest", "0.1", "--wait", "30", "--name", stream_name)
    with program(folder, out, *options, SDL_VIDEODRIVER="dummy") as process:
        inlet = marker_inlet(stream_name)
        while "id" not in json.loads(inlet.pull_sample(30.0)[0][0]):
            pass
        for _ in range(3):
            _, stamp = inlet.pull_sample(30.0)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.25)
        process.send_signal(signal.SIGCONT)
        drain(inlet, process)
        printed, complaint = process.communicate(timeout=10)
    assert process.returncode == 0, complaint
    shown = [row for row in read_log(out) if row["kind"] == "image"]
    stopped = next(row for row in shown if abs(float(row["onset"]) - stamp) < 1e-5)
    after = shown[shown.index(stopped) + 1]
    assert int(stopped["missed"]) + int(after["missed"]) >= 13  # 0.25 s are 15 frames
    assert "sequence 1: " in printed
    assert json.loads((out / "present.json").read_text())["account"]["missed"] >= 13


@pytest.mark.lsl
def test_a_signal_ends_it_as_escape_does(folder, tmp_path, stream_name):
    out = tmp_path / "out"
    options = ("--repetitions", "100", "--name", stream_name, "--wait", "30", "--rest", "0.1")
    with program(folder, out, *options, SDL_VIDEODRIVER="dummy") as process:
        inlet = marker_inlet(stream_name)
        while "id" not in json.loads(inlet.pull_sample(30.0)[0][0]):
            pass
        process.terminate()
        got = drain(inlet, process)
        printed, complaint = process.communicate(timeout=10)
    assert process.returncode == 0, complaint
    assert got[-1][0]["event"] == "stopped"
    assert " of 600 images shown" in printed
    assert len([row for row in read_log(out) if row["kind"] == "image"]) >= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--on", "0.11"], "frames of this screen's 60.00 Hz, such as 0.1000 s (6 frames) or 0.1167 s (7 frames)"),
        (["--screen", "7"], "screen; got 7; allowed: 0"),
        (["--patch", "middle"], "patch; got middle; allowed: bottom left"),
        (["--pace", "0"], "flips do not wait for the screen"),
    ],
)
def test_what_the_screen_cannot_do_is_refused(folder, tmp_path, options, said):
    with program(folder, tmp_path / "out", *options, SDL_VIDEODRIVER="dummy") as process:
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said in complaint
    assert not (tmp_path / "out").exists()
