"""What serve says: for people and for programs, and never waiting for either."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Sequence

import msgspec
import pytest

from streamdec.feed import schema
from streamdec.sessions.log import Console, Line, Log

SAYS = """
import sys
from streamdec.feed.schema import Session
from streamdec.sessions.log import Console, Log
log = Log(Console(as_json=True))
log.session = "s1"
log.say("begins")
for k in range(int(sys.argv[1])):
    log.state(Session(state="gap", time=float(k), stream="eeg", reason="x" * 1000))
print("went on", file=sys.stderr, flush=True)
sys.stdin.readline()
log.state(Session(state="ended", time=1.0, reason="stopped"))
"""


def state(**fields: object) -> schema.Session:
    return schema.Session(**({"state": "stalled", "time": 12.5, "stream": "eeg", "reason": "no sample"} | fields))  # type: ignore[arg-type]


def said(*messages: schema.Session, as_json: bool, capfd: pytest.CaptureFixture[str]) -> str:
    log = Log(Console(as_json=as_json))
    log.session = "s1"
    log.say("feed at nowhere")
    for message in messages:
        log.state(message)
    return capfd.readouterr().out


def test_json_has_every_field_and_a_level(capfd: pytest.CaptureFixture[str]) -> None:
    text = said(state(), state(state="ended", stream="", reason="stopped"), as_json=True, capfd=capfd)
    first, stalled, ended = (msgspec.json.decode(line, type=Line, strict=True) for line in text.splitlines())
    assert (first.level, first.text, first.session) == ("info", "feed at nowhere", "s1")
    assert (stalled.level, stalled.state, stalled.stream, stalled.lsl) == ("warning", "stalled", "eeg", 12.5)
    assert (ended.level, ended.state, ended.text) == ("info", "ended", "stopped")
    assert b"worker" not in text.encode()


def test_people_read_words(capfd: pytest.CaptureFixture[str]) -> None:
    messages = (
        state(),
        state(state="found", reason=""),
        state(state="lost", stream="", worker="caption-1", reason="killed\x1b[2J\n"),
        state(state="ended", stream=""),
    )
    assert said(*messages, as_json=False, capfd=capfd).splitlines() == [
        "feed at nowhere",
        "eeg stalled: no sample",
        "eeg found",
        "caption-1 lost: killed?[2J?",
    ]


def test_who_is_attached_late_gets_what_was_said_before() -> None:
    kept: list[bytes] = []
    log = Log(lambda line: None)
    log.say("early", "warning")
    log.attach(kept.append)
    log.state(state())
    assert [msgspec.json.decode(text)["level"] for text in kept] == ["warning", "warning"]
    assert all(text.endswith(b"\n") for text in kept)


def start(stdout: int, arguments: Sequence[str] = ("500",)) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SAYS, *arguments], stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE
    )


def assert_goes_on(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    assert select.select((process.stderr,), (), (), 60)[0], "it waits"
    assert process.stderr.readline() == b"went on\n"


def test_a_pipe_that_nobody_reads_holds_nothing_up() -> None:
    """Half a megabyte into 64 KiB: what did not fit is counted in the next line that does."""
    with start(subprocess.PIPE) as process:
        assert_goes_on(process)
        assert process.stdout is not None
        some = os.read(process.stdout.fileno(), 20_000)  # there is room again
        rest, errors = process.communicate(b"\n", timeout=60)
    assert (process.returncode, errors) == (0, b"")
    lines = [msgspec.json.decode(line, type=Line) for line in (some + rest).splitlines()]
    kept = sum(line.state == "gap" for line in lines)
    assert 10 < kept < 500
    assert [line.text for line in lines[-2:]] == [f"{500 - kept} lines were not written here", "stopped"]


def test_a_pipe_whose_reader_is_gone() -> None:
    reader, writer = os.pipe()
    with start(writer) as process:
        os.close(reader)
        os.close(writer)
        assert_goes_on(process)
        assert process.communicate(b"\n", timeout=60)[1] == b""
    assert process.returncode == 0


def test_a_terminal_that_is_held() -> None:
    """Ctrl-S: the terminal takes nothing until Ctrl-Q."""
    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)
    try:
        with start(theirs) as process:
            # What is said before the session begins may wait for the terminal: let that one line through.
            termios.tcflow(theirs, termios.TCOON)
            assert b"begins" in os.read(ours, 1000)
            assert_goes_on(process)
            process.communicate(b"\n", timeout=60)
        assert process.returncode == 0
    finally:
        os.close(ours)
        os.close(theirs)
