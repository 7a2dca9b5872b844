"""Reads a feed and hands each result on, as it comes, until somebody stops it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from ..feed.schema import Session
from ..feed.subscriber import Subscriber
from ..feed.wire import Received

TOPICS = ("retrieval", "caption", "reconstruction", "session", "stats")
"""What a relay reads; each output takes of it what it has a use for."""

_LOOK = 0.2  # seconds between two looks at whether to stop


class Output(Protocol):
    """Where results go."""

    def send(self, received: Received) -> bool:
        """Hand a message on, or tell that it is none for this output. Never waits."""


def relay(
    feed: Subscriber,
    outputs: Sequence[Output],
    stopped: Callable[[], bool],
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> Counter[str]:
    """Hand each result of ``feed`` on to ``outputs``, from one session to the next.

    A result that was published before the relay joined is not handed on: whoever acts on results would act on an old
    one. The state of the session is.

    Parameters
    ----------
    feed : Subscriber
        Of :data:`TOPICS`.
    outputs : sequence of Output
    stopped : callable
        Asked a few times a second. Once it says so, what has come by then is still handed on.
    say, warn : callable
        Take a line for the user: which session it is, and what did not come.

    Returns
    -------
    Counter
        Messages handed on by at least one output, by topic.

    Raises
    ------
    FeedError
        The publisher speaks a newer version, or its clock is not this machine's where that matters.
    """
    sent: Counter[str] = Counter()
    joined, missed = "", 0
    while True:
        last = stopped()
        received = feed.receive(0.0 if last else _LOOK)
        if received is None:
            if last:
                return sent
            continue
        message = received.message
        if message.session != joined:
            joined = message.session
            say(f"session {joined}")
        if received.fresh or isinstance(message, Session):
            taken = [output.send(received) for output in outputs]
            sent[message.topic] += any(taken)
        lost = sum(feed.gaps.values()) + feed.garbage
        if lost > missed:
            warn(f"{lost - missed} messages did not reach the relay")
            missed = lost
        if isinstance(message, Session) and message.state == "ended":
            say(f"session ended: {message.reason or 'no reason given'}; waiting for the next")
