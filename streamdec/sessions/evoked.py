"""The evoked response and the state of the channels, from a session's recording played through the live intake again.

The onsets are those that the session published, marker latency and all.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.signal import butter, sosfiltfilt

from ..acquire.replay import ReplayInlet
from ..config import Config
from ..intake import Intake
from ..signal.montage import canonical, has_position
from ..signal.spec import BandPass, Signal
from ..types import Connection, Epoch, Float32, Float64, Marker, Onset, StreamInfo
from .folder import recorded_config
from .recorded import Recorded

TMIN, TMAX = -0.2, 0.8  # seconds around an onset
_MARGIN = 0.1  # seconds more on both sides, where the low-pass of the mean rings
HIGH_PASS, LOW_PASS = 0.5, 30.0  # Hz


class Evoked(msgspec.Struct, frozen=True, eq=False):
    """What the epochs of a session have in common.

    Attributes
    ----------
    ch_names : channels.
    times : (n_times,) float64; s after the onset.
    mean : (n_chans, n_times) float64, microvolt: mean over epochs, less its mean before the onset; a causal high-pass
        of first order before, a low-pass without phase shift after averaging.
    onsets : (n_epochs,) float64, LSL clock.
    sd : (n_epochs, n_chans) float32, microvolt: standard deviation of each channel within each epoch.
    n_left_out : onsets without a clean epoch.
    """

    ch_names: tuple[str, ...]
    times: Float64
    mean: Float64
    onsets: Float64
    sd: Float32
    n_left_out: int


def look(session: Recorded) -> Evoked | None:
    """Average all epochs of a session; None where there is none.

    Raises
    ------
    StreamMismatch
        The stream has no channel whose unit is known.
    """
    config = recorded_config(session.recording) or Config()
    inlet = ReplayInlet(session.recording, trigger=config.intake.trigger is not None)
    ch_names, positional = _channels(inlet.eeg)
    high_pass = BandPass(low=HIGH_PASS, order=1)
    signal = Signal(ch_names, inlet.eeg.sfreq, TMIN - _MARGIN, TMAX + _MARGIN, filters=(high_pass,))
    settings = msgspec.structs.replace(config.intake, trigger=None, positional=positional)
    intake = Intake(signal, inlet.eeg, settings)
    waiting = deque(sorted(session.onsets, key=lambda onset: onset.onset_time))
    total: npt.NDArray[Any] = np.zeros((len(ch_names), signal.window[1]))
    onsets: list[float] = []
    sd: list[Float32] = []
    with inlet:
        inlet.open()
        while (event := inlet.pull()) is not None:
            outputs = () if isinstance(event, Marker) else intake(event)
            for output in outputs:
                if isinstance(output, Epoch):
                    total += output.data
                    onsets.append(output.onset.time)
                    sd.append(output.data.std(axis=1))
            while waiting and waiting[0].onset_time <= intake.ring.newest:
                onset = waiting.popleft()
                taken = Onset(onset.key, onset.onset_time, onset.text, event.arrival)
                intake.epochs.onset(taken)
            if isinstance(event, Connection) and event.state == "ended":
                break
    if not onsets:
        return None
    left_out = len(session.onsets) - len(onsets)
    first, n_times = signal.window
    times = np.arange(first, first + n_times) / signal.sfreq
    inner = slice(*np.searchsorted(times, (TMIN - 0.5 / signal.sfreq, TMAX + 0.5 / signal.sfreq)))
    mean = _smooth(total / len(onsets), times, inner)
    return Evoked(ch_names, times[inner], mean, np.array(onsets), np.array(sd), left_out)


def _channels(eeg: StreamInfo) -> tuple[tuple[str, ...], bool]:
    """Choose the electrodes; where no channel has the name of one, every channel, by position."""
    named = tuple(name for name in eeg.ch_names if has_position(name))
    if named and len(set(map(canonical, named))) == len(named):
        return named, False
    return tuple(f"{row + 1}" for row in range(eeg.n_chans)), True


def _smooth(mean: Float64, times: Float64, inner: slice) -> Float64:
    """Low-pass the mean, cut its margins off, subtract what was before the onset."""
    sfreq = 1.0 / (times[1] - times[0])
    if sfreq > 2.5 * LOW_PASS:
        mean = sosfiltfilt(butter(4, LOW_PASS, fs=sfreq, output="sos"), mean, axis=1)
    mean, times = mean[:, inner], times[inner]
    out: Float64 = mean - mean[:, times < 0].mean(axis=1, keepdims=True)
    return out
