"""What a running ``serve`` says, line by line: to the console, and into the session's ``log.jsonl``.

A line has a time, a level and a text; one that tells of a change of state has the fields of the feed's message as well.
As JSON it is one object, without the fields that are empty.
"""

from __future__ import annotations

import datetime
import os
import select
import sys
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

from ..feed import schema

Level: TypeAlias = Literal["info", "warning", "error"]

_LEVELS: dict[str, Level] = {
    "stalled": "warning",
    "lost": "warning",
    "gap": "warning",
    "warning": "warning",
    "refused": "error",
    "unrecorded": "error",
}
_LONGEST = 400  # characters of a text from the hot loop: two lines fit into what a pipe takes at once
_encode = msgspec.json.Encoder().encode


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a log.

    Attributes
    ----------
    time : UTC, ISO 8601.
    level : "info", "warning" or "error".
    text : what there is to say, in words.
    session : id of the session.
    state : what happened, where the feed said so: see :class:`streamdec.feed.schema.Session`.
    stream, worker : whom it happened to.
    lsl : LSL clock; when it happened, with ``state``.
    """

    time: str
    level: Level
    text: str
    session: str = ""
    state: str = ""
    stream: str = ""
    worker: str = ""
    lsl: float | None = None

    def json(self) -> bytes:
        """Give it as one line of JSON, with its end."""
        return _encode(self) + b"\n"

    def words(self) -> str:
        """Give it for people: one line, whatever a stream calls itself."""
        whom = self.stream or self.worker
        what = f"{whom} {self.state}".strip()
        said = f"{what}: {self.text}" if what and self.text else what or self.text
        return "".join(letter if letter.isprintable() else "?" for letter in said)


def utc() -> str:
    """Tell the time of day, for file names and logs: UTC, ISO 8601, milliseconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Log:
    """Hands each line to the console, and to whoever else was attached.

    Parameters
    ----------
    console : callable
        Takes a :class:`Line`. It is called from the hot loop, with lines that have a ``state``: it may not wait then.
    """

    def __init__(self, console: Callable[[Line], None]) -> None:
        self.session = ""
        self._console = console
        self._keep: Callable[[bytes], None] | None = None
        self._early: list[Line] = []

    def say(self, text: str, level: Level = "info") -> None:
        """Say something, outside the hot loop."""
        self._put(Line(utc(), level, text, self.session))

    def state(self, message: schema.Session) -> None:
        """Say what the feed says. It never waits."""
        self._put(
            Line(
                utc(),
                _LEVELS.get(message.state, "info"),
                message.reason[:_LONGEST],
                self.session,
                message.state,
                message.stream,
                message.worker,
                message.time,
            )
        )

    def attach(self, keep: Callable[[bytes], None]) -> None:
        """Give every line, those from before included, to ``keep`` as well, as JSON."""
        self._keep = keep
        for line in self._early:
            keep(line.json())
        self._early.clear()

    def _put(self, line: Line) -> None:
        self._console(line)
        if self._keep is not None:
            self._keep(line.json())
        elif not line.state:  # what is said before a session runs is little
            self._early.append(line)


class Console:
    """The command line's end: writes lines to standard output, for people, or as JSON for programs.

    A line from the hot loop is dropped where it would have to wait, for a terminal that is held or a pipe that nobody
    reads, and so is any where nobody can read it any more; the next that is written says how many. People are not told
    of a session's start and end, which other lines say in more words.

    Parameters
    ----------
    as_json : bool
    """

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._lost = 0
        try:
            self._file: int | None = sys.stdout.fileno()
        except (OSError, ValueError):  # it is no file: somebody listens in the same process
            self._file = None
        self._hurried = self._file
        if os.name == "posix" and self._file is not None and os.isatty(self._file):
            # Opened once more: whether its writes wait is otherwise shared with every program on the terminal.
            self._hurried = os.open(os.ttyname(self._file), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)

    def __call__(self, line: Line) -> None:
        """Write a line."""
        if not self._json and line.state in ("started", "ended"):
            return
        lines = [line]
        if self._lost:
            lines.insert(0, Line(line.time, "warning", f"{self._lost} lines were not written here", line.session))
        text = b"".join(each.json() if self._json else each.words().encode() + b"\n" for each in lines)
        try:
            written = self._write(text, self._hurried if line.state else self._file, wait=not line.state)
        except OSError:
            written = False
        self._lost = 0 if written else self._lost + 1

    @staticmethod
    def _write(text: bytes, file: int | None, *, wait: bool) -> bool:
        """Write past the buffers: what cannot be written is not tried again at exit."""
        sys.stdout.flush()
        if file is None:
            sys.stdout.write(text.decode())
            return True
        if not wait and not _takes(file):
            return False
        written = os.write(file, text)
        while wait and written < len(text):
            written += os.write(file, text[written:])
        return written == len(text)


def _takes(file: int) -> bool:
    """Tell whether a pipe has room: it takes 4096 bytes then, without waiting."""
    return os.name == "nt" or bool(select.select((), (file,), (), 0)[1])  # select knows only sockets there
