"""What goes wrong on the way in, and must have an end that says so: lost samples, other clocks, tired counters."""

from __future__ import annotations

import numpy as np
import pytest
from small_bundle import NAMES, eeg_info

from streamdec.acquire.counter import CounterSettings
from streamdec.acquire.markers import Refused, TriggerSettings
from streamdec.errors import StreamMismatch
from streamdec.intake import Intake, IntakeSettings, Notice, Output
from streamdec.sessions.undecoded import Listener
from streamdec.signal.epochs import EpochSettings
from streamdec.signal.spec import Signal
from streamdec.types import Chunk, Ended, Epoch, Marker, Onset

SFREQ = 250.0
SIGNAL = Signal(NAMES, SFREQ, 0.0, 0.1)
EEG = eeg_info(n_chans=len(NAMES) + 2, ch_names=(*NAMES, "TRIG", "COUNT"), ch_types=(), units=())
TRIGGER, COUNTER = TriggerSettings("TRIG"), CounterSettings("COUNT")


def play(intake: Intake, data: np.ndarray, stamps: np.ndarray, packet: int = 10) -> list[Output]:
    """Feed a stream packet by packet; return all that came out, what was open at the end included."""
    out: list[Output] = []
    for first in range(0, len(stamps), packet):
        rows = slice(first, first + packet)
        out += intake(Chunk(data[:, rows], stamps[rows], float(stamps[rows][-1])))
    return [*out, *intake.close(float(stamps[-1]))]


def made(n: int, period: int = 50, width: int = 3, first_count: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise, a pulse of code 7 every ``period`` samples, a counter; and the stamps."""
    data = np.random.default_rng(0).normal(0, 10, (len(NAMES) + 2, n)).astype(np.float32)
    data[-2] = np.where(np.arange(n) % period < width, 7, 0)
    data[-1] = (first_count + np.arange(n)) % 2**32
    return data, 5.0 + np.arange(n) / SFREQ


@pytest.mark.parametrize("around", [-1, 0, 1])
@pytest.mark.parametrize("n_lost", [1, 2, 12])
@pytest.mark.parametrize("packet", [1, 10])
def test_a_loss_beside_an_edge_takes_no_onset_along(around: int, n_lost: int, packet: int) -> None:
    """Just before the edge, on it, behind it; bridged or not: the onset is on the books, and has its end."""
    data, stamps = made(3000, width=20)
    rises = np.arange(50, 3000, 50)
    gone = np.concatenate([np.arange(n_lost) + rise + around for rise in rises[5:50:3]])
    settings = IntakeSettings(trigger=TRIGGER, counter=COUNTER, epochs=EpochSettings(interpolate_missing=2))
    out = play(Intake(SIGNAL, EEG, settings), np.delete(data, gone, axis=1), np.delete(stamps, gone), packet)
    onsets = [one for one in out if isinstance(one, Onset)]
    ends = [one for one in out if isinstance(one, Epoch | Ended)]
    assert len(onsets) == len(ends) == len(rises)
    assert {onset.text for onset in onsets} == {"7"}
    late = np.abs(np.array([onset.position for onset in onsets]) - rises)
    assert late.max() <= (n_lost + around if around <= 0 else 0)
    # Where the edge itself was lost for longer than a loss may be bridged, nobody knows when it was.
    lost = [one for one in ends if isinstance(one, Ended)]
    assert all(one.outcome == "lost_data" for one in lost)
    assert len(lost) == (len(rises[5:50:3]) if n_lost > 2 else 0)


def test_markers_of_another_clock_end_at_once() -> None:
    """Stamped by the time of day, say: they would wait for their samples for ever."""
    data, stamps = made(1000)
    intake = Intake(SIGNAL, EEG, IntakeSettings())
    out: list[Output] = list(intake(Chunk(data[:, :500], stamps[:500], 7.0)))
    for i in range(400):
        out += intake(Marker(f"image-{i}", 1.7e9 + i, 7.0))
    out += intake(Marker("right", 6.5, 7.0))
    ends = [one for one in out if isinstance(one, Ended)]
    assert len(ends) == 400
    assert {one.outcome for one in ends} == {"lost_data"}
    assert ends[0].reason == "stamped 1699999993 s after the newest sample: markers and EEG have different clocks"
    assert [one.onset.key for one in out if isinstance(one, Epoch)] == ["right"]


def test_a_clock_that_both_streams_share_may_be_any() -> None:
    """An amplifier and its trigger box, both stamped by the time of day."""
    data, stamps = made(1000)
    intake = Intake(SIGNAL, EEG, IntakeSettings())
    list(intake(Chunk(data[:, :500], stamps[:500] + 1.7e9, 7.0)))
    out = list(intake(Marker("right", 6.5 + 1.7e9, 7.0)))
    assert [one.onset.key for one in out if isinstance(one, Epoch)] == ["right"]


def test_samples_that_come_late_do_not_spoil_the_markers() -> None:
    """The EEG was held up for a minute on its way; the markers were not."""
    data, stamps = made(20_000)
    intake = Intake(SIGNAL, EEG, IntakeSettings())
    list(intake(Chunk(data[:, :500], stamps[:500], 7.0)))
    out = list(intake(Marker("right", 66.5, 66.6)))
    out += intake(Chunk(data[:, 500:], stamps[500:], 85.0))
    assert [one.onset.key for one in out if isinstance(one, Epoch)] == ["right"]


@pytest.mark.parametrize("packet", [1, 50])
def test_markers_beside_an_amplifier_that_stamps_from_0_end_at_once(packet: int) -> None:
    """Its stamps are its own time. Ten seconds of it tell that from samples that are still to come."""
    data, stamps = made(4000)
    intake = Intake(SIGNAL, EEG, IntakeSettings())
    out: list[Output] = []
    for start in range(0, 4000, packet):
        came = slice(start, start + packet)
        out += intake(Chunk(data[:, came], stamps[came], float(stamps[came][-1]) + 86_400))
    last = float(stamps[-1]) + 86_400
    for i in range(400):
        out += intake(Marker(f"image-{i}", last + i / 100, last + i / 100))
    ends = [one for one in out if isinstance(one, Ended)]
    assert [(one.outcome, one.onset.key) for one in ends] == [("lost_data", f"image-{i}") for i in range(400)]
    assert ends[0].reason == "stamped 86400 s after the newest sample: markers and EEG have different clocks"


def test_a_backlog_is_no_other_clock() -> None:
    """Two minutes of samples that waited, brought at twice their rate: markers of now wait for them."""
    n = int(240 * SFREQ)
    data, stamps = made(n)
    intake = Intake(SIGNAL, EEG, IntakeSettings(rate_tolerance=0.9))
    out: list[Output] = []
    shown = stamps[0] + 200.0
    for start in range(0, n, 100):
        came = slice(start, start + 100)
        arrival = float(stamps[0] + 120.0 + (stamps[came][-1] - stamps[0]) / 2)
        if arrival >= shown > 0:
            out, shown = [*out, *intake(Marker("right", float(shown), arrival))], -1.0
        out += intake(Chunk(data[:, came], stamps[came], arrival))
    assert [one.onset.key for one in out if isinstance(one, Epoch)] == ["right"]


@pytest.mark.parametrize("first_count", [0, 2**24 - 700, 2**25])
def test_a_counter_beyond_what_can_be_counted_leaves_it_to_the_stamps(first_count: int) -> None:
    data, stamps = made(3000, first_count=first_count)
    gone = np.concatenate([np.arange(8) + at for at in range(400, 2900, 200)])
    settings = IntakeSettings(counter=COUNTER)
    intake = Intake(SIGNAL, EEG, settings)
    out = play(intake, np.delete(data, gone, axis=1), np.delete(stamps, gone))
    assert intake.clock.missing == len(gone)
    warned = [one.reason for one in out if isinstance(one, Notice) and one.state == "warning"]
    assert [("2^24" in reason) for reason in warned] == [True] * bool(first_count)


def test_trigger_values_that_are_rounded_are_said() -> None:
    data, stamps = made(600)
    data[-2] += 2**24
    out = play(Intake(SIGNAL, EEG, IntakeSettings(trigger=TriggerSettings("TRIG", 0xFF))), data, stamps)
    assert not [one for one in out if isinstance(one, Onset | Refused)]
    assert ["rounded" in one.reason for one in out if isinstance(one, Notice) and one.state == "warning"] == [True]
    data[-2] = 256 * (data[-2] - 2**24) + 2**24  # the same bits further up are exact
    settings = IntakeSettings(trigger=TriggerSettings("TRIG", 0xFF00))
    assert sum(isinstance(one, Onset) for one in play(Intake(SIGNAL, EEG, settings), data, stamps)) == 11


def test_a_refused_stream_leaves_the_books_in_order() -> None:
    """The packet that shows that the scale is wrong may bring an onset as well."""
    data, stamps = made(2000, period=5)
    sd = dict.fromkeys(NAMES, 1e7)
    intake = Intake(SIGNAL, EEG, IntakeSettings(trigger=TRIGGER), channel_sd=sd)
    out: list[Output] = []

    def feed() -> None:
        for first in range(0, 2000, 10):
            rows = slice(first, first + 10)
            out.extend(intake(Chunk(data[:, rows], stamps[rows], float(stamps[rows][-1]))))

    with pytest.raises(StreamMismatch, match="scale"):
        feed()
    out += intake.close(float(stamps[-1]))
    onsets = sum(isinstance(one, Onset) for one in out)
    assert onsets == sum(isinstance(one, Epoch | Ended) for one in out) > 100


def test_codes_of_a_trigger_channel_count_as_markers() -> None:
    """``calibrate --onsets N`` ends by them."""
    data, stamps = made(500)
    listener = Listener(EEG, IntakeSettings(trigger=TRIGGER))
    for first in range(0, 500, 10):
        rows = slice(first, first + 10)
        listener(Chunk(data[:, rows], stamps[rows], float(stamps[rows][-1])))
    assert (listener.arrived.markers, listener.arrived.onsets) == (9, 9)
