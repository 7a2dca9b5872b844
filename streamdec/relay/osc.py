"""The results as OSC messages, for software that plays sound, light or a game (Max, Pure Data, TouchDesigner, Unity).

Floats of OSC have 32 bits, too few for a time of day: times are durations. Probabilities that are not known are -1,
ranks 0.

===========================  =========================================================================================
address                      arguments
===========================  =========================================================================================
``/streamdec/retrieval``     key, rank of the key, repetitions, final (0 or 1), stop (0 or 1), seconds from onset to
                             publication, deadline met (0 or 1); then id, label and probability of each candidate
``/streamdec/caption``       key, text, tier, probability, repetitions, partial (0 or 1), seconds from onset to
                             publication, deadline met (0 or 1)
``/streamdec/session``       state, stream or worker, reason
===========================  =========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from ..errors import ConfigError
from ..feed.schema import AnyMessage, Caption, Retrieval, Session
from ..feed.wire import Received

Argument: TypeAlias = str | float | int


class OscOutput:
    """Sends each result in one UDP datagram.

    Parameters
    ----------
    target : str
        ``HOST:PORT``.
    say : callable
        Told once where datagrams cannot be sent.

    Attributes
    ----------
    failed : int
        Datagrams that could not be sent.

    Raises
    ------
    ConfigError
        The target is none, its host is not known, or python-osc is not installed.
    """

    def __init__(self, target: str, say: Callable[[str], None]) -> None:
        try:
            from pythonosc.udp_client import SimpleUDPClient
        except ImportError as error:
            raise ConfigError("OSC needs python-osc", do='install it: pip install ".[relay]"') from error
        host, _, port = target.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ConfigError("--osc", got=repr(target), allowed="HOST:PORT, such as 127.0.0.1:9000")
        try:
            self._client = SimpleUDPClient(host.strip("[]"), int(port))
        except OSError as error:
            raise ConfigError("--osc", got=f"{host!r}: {error.strerror}", allowed="a host that is known") from error
        self._say, self.failed = say, 0

    def send(self, received: Received) -> bool:
        """Send a decision, a caption or a change of the session."""
        message = received.message
        arguments = compose(message)
        if not arguments:
            return False
        try:
            self._client.send_message(f"/streamdec/{message.topic}", arguments)
        except OSError as error:  # no route, or too long for a datagram
            if not self.failed:
                self._say(f"OSC: {error.strerror}")
            self.failed += 1
            return False
        return True

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._client.close()


def compose(message: AnyMessage) -> Sequence[Argument]:
    """Return the arguments of a message, none where there is none to send."""
    match message:
        case Retrieval() as decision:
            timing = decision.timing
            head = (
                decision.key,
                decision.rank or 0,
                decision.repetitions,
                int(decision.final),
                int(decision.stop),
                timing.published - decision.onset_time,
                int(timing.deadline_met),
            )
            best = (part for one in decision.candidates for part in (one.id, one.label, one.probability))
            return *head, *best
        case Caption() as caption:
            return (
                caption.key,
                caption.text,
                caption.tier,
                -1.0 if caption.probability is None else caption.probability,
                caption.repetitions,
                int(caption.partial),
                caption.timing.published - caption.onset_time,
                int(caption.timing.deadline_met),
            )
        case Session() as session:
            return session.state, session.stream or session.worker, session.reason
        case _:
            return ()
