"""What a stream brings that is recorded without a decoder: onsets, as its markers say, and breaks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from ..acquire.markers import Refused
from ..feed import schema
from ..intake import Intake, IntakeSettings, Notice
from ..signal.quality import QualitySettings
from ..signal.spec import Signal
from ..types import Chunk, Connection, Event, Marker, Onset, StreamInfo

_BREAKS = ("gap", "stalled", "lost")
_WINDOW = 0.1  # s; nobody looks at the epochs


class Arrived(msgspec.Struct):
    """What came in. ``breaks`` gaps, stalls and losses of a stream; ``onsets`` of the markers, those of a stimulus."""

    samples: int = 0
    markers: int = 0
    onsets: int = 0
    breaks: int = 0

    def line(self) -> str:
        """Say it."""
        return f"{self.samples} samples, {self.markers} markers, {self.onsets} onsets, {self.breaks} breaks"


def any_intake(eeg: StreamInfo, settings: IntakeSettings) -> Intake:
    """Make an intake for a stream of whatever channels, unit and rate, for its clock and its onsets.

    Parameters
    ----------
    eeg : StreamInfo
    settings : IntakeSettings
        What names a stimulus, the marker latency, a trigger channel, a counter.
    """
    any_stream = msgspec.structs.replace(
        settings,
        unit="microvolts",
        positional=True,
        rate_tolerance=math.inf,
        ring_seconds=0.0,
        quality=QualitySettings.off(),
    )
    return Intake(Signal(("1",), eeg.sfreq, 0.0, _WINDOW), eeg, any_stream)


class Listener:
    """Takes a session's events in as the live loop does, whatever the stream's channels, unit and rate.

    Parameters
    ----------
    eeg : StreamInfo
    settings : IntakeSettings
        What names a stimulus, the marker latency, a trigger channel, a counter.

    Attributes
    ----------
    arrived : Arrived
    """

    def __init__(self, eeg: StreamInfo, settings: IntakeSettings) -> None:
        self.arrived = Arrived()
        self._intake = any_intake(eeg, settings)

    def __call__(self, event: Event) -> list[schema.Onset | schema.Session]:
        """Take an event; tell what was shown, and how the streams are, in the words of the feed."""
        self.arrived.samples += len(event.stamps) if isinstance(event, Chunk) else 0
        self.arrived.markers += isinstance(event, Marker)
        said: list[schema.Onset | schema.Session] = []
        for output in self._intake(event):
            self.arrived.markers += self._intake.trigger is not None and isinstance(output, Onset | Refused)
            if isinstance(output, Onset):
                self.arrived.onsets += 1
                said.append(schema.Onset(key=output.key, text=output.text, onset_time=output.time))
            elif isinstance(output, Notice):
                self.arrived.breaks += output.state in _BREAKS
                said.append(
                    schema.Session(state=output.state, time=output.time, stream=output.stream, reason=output.reason)
                )
        return said


def played(events: Iterable[Event], eeg: StreamInfo, settings: IntakeSettings) -> tuple[list[schema.Onset], Arrived]:
    """Take in all events of a recording: the onsets, in their order, and what came."""
    listener, onsets = Listener(eeg, settings), []
    for event in events:
        onsets += [said for said in listener(event) if isinstance(said, schema.Onset)]
        if isinstance(event, Connection) and event.state == "ended":
            break
    return onsets, listener.arrived
