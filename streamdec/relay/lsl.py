"""The results as an LSL stream, so that LabRecorder keeps them beside the EEG."""

from __future__ import annotations

import msgspec

from ..acquire.lsl.library import local_clock
from ..acquire.lsl.outlet import LslOutlet
from ..errors import FeedError
from ..feed.schema import Generated, Retrieval, Session, Stats
from ..feed.wire import Received
from ..types import StreamInfo

NAME = "streamdec"
TYPE = "Events"
"""Not "Markers": `serve` looks for the stimuli among those. EEGLAB imports streams of either type as events."""

_APART = 2.0  # s; further from now than this a clock is another machine's


class LslOutput:
    """One string channel; each sample is the header of one message as JSON, as the feed's ``schema.json`` has it.

    A sample is stamped with the time of publication: that is when the result was known, and stamps grow. The onset of
    the stimulus is in the text (``onset_time``), on the same clock, as are all stages (``timing``). Decisions,
    captions, reconstructions (without their picture) and changes of the session are sent.

    Parameters
    ----------
    name : str
        Of the stream.
    source : str
        Where the results come from; with the name it identifies the stream when the relay is started anew.

    Raises
    ------
    StreamError
        liblsl cannot open the outlet.
    """

    def __init__(self, name: str, source: str) -> None:
        info = StreamInfo(
            name, TYPE, 1, 0.0, "string", f"{name}@{source}", ch_names=("result",), ch_types=("json",), units=("none",)
        )
        self._outlet = LslOutlet(info)
        self._strange = 0  # statistics in a row whose clock was not this machine's

    def send(self, received: Received) -> bool:
        """Send a result or a change of the session.

        Raises
        ------
        FeedError
            The feed's clock is not this machine's, so that its stamps would mean nothing here.
        """
        message = received.message
        match message:
            case Stats():
                self._check(message)
                return False
            case Retrieval() | Generated():
                published = message.timing.published
            case Session():
                published = message.time
            case _:
                return False
        self._outlet.push([msgspec.json.encode(message).decode()], published)
        return True

    def close(self) -> None:
        """Take the stream away. Idempotent."""
        self._outlet.close()

    def _check(self, stats: Stats) -> None:
        """Compare the clocks: statistics come as soon as they are made, but for a session's very last."""
        apart = stats.time - local_clock()
        self._strange = self._strange + 1 if abs(apart) > _APART else 0
        if self._strange > 1:
            raise FeedError(
                f"the feed's LSL clock is {apart:+.1f} s from this machine's: stamps would be wrong",
                do="run `streamdec relay --lsl` beside `streamdec serve`; LSL takes the stream to other machines",
            )
