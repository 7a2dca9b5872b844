"""A session's EEG as other programs want it: one array without holes, and where in it each onset lies.

Samples are placed by the live loop's own clock, so an onset lies at the sample the session put it on.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from ..acquire.placement import Placement
from ..acquire.replay import ReplayInlet
from ..config import Config
from ..types import Chunk, ClockOffset, Connection, Float32, Float64, StreamInfo
from .folder import recorded_config
from .recorded import Recorded


class Continuous(msgspec.Struct, frozen=True, eq=False):
    """The EEG stream on one grid of samples.

    Attributes
    ----------
    eeg : the stream; of the last connection, where there were several.
    data : (n_chans, n_times) float32, in the stream's own unit; samples that were lost repeat the one before.
    times : (n_times,) float64, LSL clock, seconds; non-decreasing.
    lost : (first, number) of samples that were lost.
    breaks : (position, why): nothing connects what comes there to what came before.
    """

    eeg: StreamInfo
    data: Float32
    times: Float64
    lost: list[tuple[int, int]]
    breaks: list[tuple[int, str]]

    @classmethod
    def of(cls, session: Recorded) -> Continuous:
        """Place every sample of a session."""
        config = recorded_config(session.recording) or Config()
        inlet = ReplayInlet(session.recording, trigger=config.intake.trigger is not None)
        eeg, settings = inlet.eeg, config.intake
        place = Placement(eeg, eeg.sfreq, settings.clock, settings.counter)
        data: list[Float32] = []
        times: list[Float64] = []
        lost: list[tuple[int, int]] = []
        breaks: list[tuple[int, str]] = []
        last = np.zeros((eeg.n_chans, 1), np.float32)
        with inlet:
            inlet.open()
            while (event := inlet.pull()) is not None:
                if isinstance(event, Chunk):
                    for run in place(event):
                        if run.missing:
                            lost.append((run.position - run.missing, run.missing))
                            data.append(np.repeat(last, run.missing, axis=1))
                            before = times[-1][-1] if times else run.times[0]
                            times.append(np.linspace(before, run.times[0], run.missing + 2)[1:-1])
                        if run.new_segment and run.position:
                            breaks.append((run.position, run.reason))
                        data.append(event.data[:, run.start : run.stop])
                        times.append(run.times)
                        last = data[-1][:, -1:]
                elif isinstance(event, ClockOffset) and event.stream == "eeg":
                    place.clock.offset(event)
                elif isinstance(event, Connection) and event.stream == "eeg":
                    if event.state == "ended":
                        break
                    if event.state == "found":
                        place.restart(event.reason)
        if not data:
            return cls(eeg, np.zeros((eeg.n_chans, 0), np.float32), np.zeros(0), [], [])
        when = np.maximum.accumulate(np.concatenate(times))
        return cls(eeg, np.concatenate(data, axis=1), when, lost, breaks)

    def samples(self, times: Float64) -> npt.NDArray[np.intp]:
        """Find the nearest sample of each time, ties down; ``times`` (n,) float64, LSL clock, seconds."""
        after = np.searchsorted(self.times, times).clip(1, len(self.times) - 1)
        nearer: npt.NDArray[np.intp] = after - (times - self.times[after - 1] <= self.times[after] - times)
        return nearer
