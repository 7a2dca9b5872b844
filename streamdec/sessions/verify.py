"""``streamdec sessions verify``: is a recorded session what it says it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..config import Config
from ..decode import bundle as bundles
from ..errors import StreamdecError
from ..feed import schema
from . import folder
from .recorded import Recorded
from .undecoded import Arrived


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at: ``good`` None where it could not be judged."""

    good: bool | None
    text: str

    def line(self) -> str:
        """Give it as a line of text."""
        return f"{'  ok' if self.good else 'skip' if self.good is None else 'FAIL'}  {self.text}"


def verify(path: Path, bundle: Path | None = None) -> Iterator[Finding]:
    """Look at everything that can be checked.

    Parameters
    ----------
    path : Path
        A session's folder.
    bundle : Path, optional
        What it should have been decoded with; by default the one its config names, where that is here.
    """
    try:
        session = Recorded.open(path)
    except StreamdecError as error:
        yield Finding(False, str(error))
        return
    yield _ended(session)
    yield from _file(session)
    yield _bundle(session, bundle)
    yield from _account(session)
    yield _sequence(session)
    yield _table(session)


def _ended(session: Recorded) -> Finding:
    state, end = folder.state(session.path, session.about), session.about.end
    if end is None:
        do = "" if state == "recording" else "; streamdec sessions repair"
        return Finding(
            None if state == "recording" else False, f"{state}: {folder.ABOUT} does not say how it ended{do}"
        )
    said = end.broken or end.repaired or f"it ended: {end.reason}"
    return Finding(state in ("complete", "repaired"), f"{state}: {said}")


def _file(session: Recorded) -> Iterator[Finding]:
    recording = session.recording
    for problem in recording.problems:
        yield Finding(False, f"{recording.path.name}: {problem}")
    if recording.finished:
        yield Finding(not recording.problems, f"{recording.path.name} can be read to its end")
    else:
        yield Finding(False, f"{recording.path.name} has no end: its recorder was killed, or the disk was full")
    if recording.session != session.about.id:
        yield Finding(False, f"{recording.path.name} is of another session: {recording.session}")


def _bundle(session: Recorded, given: Path | None) -> Finding:
    wanted = session.about.bundle
    if wanted is None:
        return Finding(None, "no bundle: nothing was decoded")
    path = given
    if path is None:
        try:
            config = msgspec.json.decode((session.path / folder.CONFIG).read_bytes(), type=Config)
            path = Path(config.bundle)
        except (OSError, msgspec.DecodeError) as error:
            return Finding(False, f"{folder.CONFIG}: {error}")
        if not path.exists():
            return Finding(None, f"bundle {wanted.name} ({wanted.hash[:12]}) is not here: name it with --bundle")
    try:
        found = bundles.read(path, live=False).hash
    except StreamdecError as error:
        return Finding(False, str(error))
    if found != wanted.hash:
        return Finding(False, f"bundle {path.name} is {found[:12]}, the session ran with {wanted.hash[:12]}")
    return Finding(True, f"bundle {path.name} is what it ran with ({found[:12]})")


def _account(session: Recorded) -> Iterator[Finding]:
    """What was recorded, counted again, against what the session counted while it ran."""
    if session.arrived is not None:
        yield from _arrived(session.arrived, session.about.end)
        return
    account = session.account
    if account is None:
        yield Finding(None, "no account to compare with: the session did not come to its end")
        return
    ends = Counter(end.outcome for end in session.of(schema.Epoch))
    dropped = Counter(drop.reason for drop in session.of(schema.Dropped) if drop.what == "marker")
    streams = session.recording.streams
    counted = {
        "samples": len(streams[0].stamps),
        **({"markers": len(streams[1].stamps)} if len(streams) > 1 else {}),
        "onsets": len(session.of(schema.Onset)),
        **{outcome: ends[outcome] for outcome in ("decided", "rejected", "lost_data", "late", "cancelled")},
        **{reason: dropped[reason] for reason in ("ignored", "duplicate", "garbage")},
    }
    wrong = {name: (n, getattr(account, name)) for name, n in counted.items() if n != getattr(account, name)}
    for name, (n, said) in wrong.items():
        yield Finding(False, f"{name}: {n} recorded, {said} in the account")
    if not wrong:
        yield Finding(
            True,
            f"the account agrees: {account.samples} samples, {account.onsets} onsets, {account.decided} decided",
        )


def _arrived(counted: Arrived, end: folder.End | None) -> Iterator[Finding]:
    """The same of a session in which nothing was decoded."""
    if end is None or end.arrived is None:
        yield Finding(None, "no account to compare with: the session did not come to its end")
    elif counted != end.arrived:
        yield Finding(False, f"recorded: {counted.line()}; said to have come: {end.arrived.line()}")
    else:
        yield Finding(True, f"the account agrees: {counted.line()}")


def _sequence(session: Recorded) -> Finding:
    """Messages of each topic are numbered from 1; without a bundle there are none."""
    holes = {}
    for topic in schema.TOPICS:
        numbers = [message.seq for message in session.messages if message.topic == topic]
        missing = (max(numbers) if numbers else 0) - len(set(numbers))
        if missing or numbers != sorted(set(numbers)):
            holes[topic] = missing
    if holes:
        said = ", ".join(f"{n} of {topic}" for topic, n in holes.items())
        return Finding(False, f"messages are missing, twice or out of order: {said}")
    if session.about.bundle is None:
        return Finding(not session.messages, f"{len(session.messages)} messages, as nothing was published")
    return Finding(True, f"{len(session.messages)} messages, no gap in their numbers")


def _table(session: Recorded) -> Finding:
    try:
        same = (session.path / folder.EVENTS).read_bytes() == session.table
    except OSError as error:
        return Finding(False, f"{folder.EVENTS}: {error.strerror}")
    source = "markers" if session.about.bundle is None else "messages"
    text = f"says what the {source} say" if same else f"is not what the {source} say; streamdec sessions repair"
    return Finding(same, f"{folder.EVENTS} {text}")
