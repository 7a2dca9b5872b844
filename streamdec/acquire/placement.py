"""Where the samples of a stream belong: by their stamps and, where a channel counts them, by their count."""

from __future__ import annotations

from ..errors import ConfigError
from ..types import Chunk, StreamInfo
from .clock import ClockSettings, Run, SampleClock
from .counter import CounterReader, CounterSettings


class Placement:
    """Places the chunks of one stream.

    Parameters
    ----------
    eeg : StreamInfo
        The stream.
    sfreq : float
        Nominal rate to go by, Hz.
    clock : ClockSettings
    counter : CounterSettings or None
        The channel that counts the samples.

    Attributes
    ----------
    clock : SampleClock
        What is known of the stamps; it takes the clock offsets.

    Raises
    ------
    ConfigError
        The stream has no such channel.
    """

    def __init__(self, eeg: StreamInfo, sfreq: float, clock: ClockSettings, counter: CounterSettings | None) -> None:
        self.clock = SampleClock(sfreq, clock)
        self._counter = None if counter is None else CounterReader(counter, sfreq)
        self._row = 0 if counter is None else row("counter", counter.channel, eeg)

    def __call__(self, chunk: Chunk) -> list[Run]:
        """Place the next samples, in runs that nothing breaks."""
        lost = None if self._counter is None else self._counter(chunk.data[self._row], chunk.stamps)
        return self.clock.place(chunk.stamps, lost)

    def restart(self, reason: str) -> None:
        """Begin anew: the stream was found again."""
        self.clock.restart(reason or "reconnected")
        if self._counter is not None:
            self._counter.reset()

    @property
    def uncounted(self) -> bool:
        """Whether the channel has counted beyond what it can tell."""
        return self._counter is not None and self._counter.past


def row(role: str, channel: str, eeg: StreamInfo) -> int:
    """Find a channel by its label; ``role`` is what it is wanted for.

    Raises
    ------
    ConfigError
        The stream has none of this name.
    """
    if channel not in eeg.ch_names:
        raise ConfigError(f"{role} channel", got=repr(channel), allowed=", ".join(eeg.ch_names))
    return eeg.ch_names.index(channel)
