"""A counter channel against streams with a known loss: stamps that hide it, and stamps that feign one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_bundle import SFREQ, ScriptedInlet, eeg_info, events, presentation, write_bundle

from streamdec.acquire.clock import SampleClock
from streamdec.acquire.counter import CounterReader, CounterSettings
from streamdec.calibrate.block import placed
from streamdec.config import Config
from streamdec.decode import bundle as bundles
from streamdec.errors import ConfigError
from streamdec.feed import schema
from streamdec.intake import Intake, IntakeSettings
from streamdec.serve import engines, replay
from streamdec.signal.spec import Signal
from streamdec.types import Chunk


def place(counts, stamps, sfreq, modulo, chunks):
    """Positions of the samples, and the clock."""
    clock, counter = SampleClock(sfreq), CounterReader(CounterSettings("n", modulo), sfreq)
    positions = []
    edges = itertools.takewhile(lambda edge: edge < len(counts), itertools.accumulate(chunks, initial=0))
    for low, high in itertools.pairwise([*edges, len(counts)]):
        lost = counter(counts[low:high].astype(np.float32), stamps[low:high])
        positions += [run.position + np.arange(run.stop - run.start) for run in clock.place(stamps[low:high], lost)]
    return np.concatenate(positions), clock


def kept(n, lost):
    """Sample numbers that are left of ``n`` when (first, how many) are ``lost``."""
    gone = np.concatenate([np.arange(first, first + many) for first, many in lost]) if lost else np.empty(0, int)
    return np.setdiff1d(np.arange(n), gone)


@pytest.mark.parametrize("chunks", [1, 10, 333])
def test_a_loss_that_the_stamps_hide(chunks):
    """A driver that stamps what it gets at the nominal rate: the stamps say that nothing is missing."""
    numbers = kept(5000, [(1000, 3), (2000, 60), (2300, 1), (4000, 200)])
    stamps = 50 + np.arange(len(numbers)) / 250
    positions, clock = place(numbers % 256, stamps, 250.0, 256, itertools.repeat(chunks))
    np.testing.assert_array_equal(positions, numbers)
    assert (clock.gaps, clock.missing, clock.segments) == (4, 264, 1)


@settings(max_examples=40, deadline=None)
@given(
    losses=st.lists(st.tuples(st.integers(200, 3800), st.integers(1, 230)), max_size=6),
    modulo=st.sampled_from([16, 100, 256, 65536]),
    chunks=st.lists(st.integers(1, 700), min_size=20, max_size=20),
    true_stamps=st.booleans(),
)
def test_whatever_is_lost_the_positions_are_right(losses, modulo, chunks, true_stamps):
    """With true stamps whole laps are told too; with stamps that hide it, what is less than a lap."""
    numbers = kept(4000, losses)
    gaps = np.diff(numbers)
    assume(true_stamps or gaps.max() < min(modulo, 250))  # 1 s more than the stamps allow is a counter that began anew
    stamps = 50 + (numbers if true_stamps else np.arange(len(numbers))) / 250
    positions, clock = place(numbers % modulo, stamps, 250.0, modulo, chunks)
    whole = np.cumsum(np.concatenate([[0], np.where(gaps - 1 < 250, gaps, 1)]))  # 1 s or more: a new segment
    np.testing.assert_array_equal(positions, whole)
    assert clock.missing == (gaps - 1).sum()


def test_late_stamps_without_a_loss_are_lateness():
    stamps = 50 + np.arange(8000) / 250
    stamps[3000:3020] += 0.1
    stamps[5000:5200] += 0.03 * np.sin(np.linspace(0, np.pi, 200))
    positions, clock = place(np.arange(8000) % 65536, stamps, 250.0, 65536, itertools.repeat(10))
    np.testing.assert_array_equal(positions, np.arange(8000))
    assert (clock.gaps, clock.missing) == (0, 0)
    without = SampleClock(250.0)
    for low in range(0, 8000, 10):
        without.place(stamps[low : low + 10])
    assert without.gaps  # the stamps alone look like a loss


def test_times_go_on_after_a_gap():
    numbers = kept(5000, [(2500, 40)])
    stamps = 50 + numbers / 250
    clock, counter = SampleClock(250.0), CounterReader(CounterSettings("n", 256), 250.0)
    times = []
    for low in range(0, len(numbers), 10):
        chunk = slice(low, low + 10)
        lost = counter((numbers[chunk] % 256).astype(np.float32), stamps[chunk])
        times += [run.times for run in clock.place(stamps[chunk], lost)]
    np.testing.assert_allclose(np.concatenate(times), stamps, atol=1e-6)


def test_a_counter_that_begins_anew_loses_what_the_stamps_say():
    numbers = np.concatenate([np.arange(1000, 3000), np.arange(2000)])
    stamps = 50 + np.arange(4000) / 250
    stamps[2000:] += 0.2
    positions, clock = place(numbers, stamps, 250.0, 1 << 24, itertools.repeat(10))
    assert positions[1999] == 1999
    assert positions[2000] == 2050
    assert clock.missing == 50


def test_what_is_no_number_and_what_stands_still_is_no_loss():
    counts = np.arange(1000, dtype=np.float64) % 256
    counts[100:110] = np.nan
    counts[300] = np.inf
    counts[500] = counts[499]
    with np.errstate(invalid="ignore"):
        positions, clock = place(counts, 50 + np.arange(1000) / 250, 250.0, 256, itertools.repeat(7))
    np.testing.assert_array_equal(positions[:500], np.arange(500))
    assert clock.missing <= 1  # the count after the one that stood still is two ahead


def hidden_loss():
    """A stream, 5 samples of it lost where only the counter shows it."""
    data, onsets, keys = presentation(12)
    gone = int(onsets[3]) - 60
    counted = []
    n = 0
    for event in events(data, onsets, keys, itertools.repeat(10)):
        if isinstance(event, Chunk):
            numbers = np.arange(n, n + len(event.stamps))
            n += len(numbers)
            keep = (numbers < gone) | (numbers >= gone + 5)
            rows = np.vstack([event.data, numbers % 256]).astype(np.float32)[:, keep]
            event = Chunk(rows, (event.stamps - np.where(numbers >= gone, 5 / SFREQ, 0))[keep], event.arrival)
        counted.append(event)
    info = eeg_info()
    info = type(info)(
        **{f: getattr(info, f) for f in info.__struct_fields__}
        | {"n_chans": info.n_chans + 1, "ch_names": (*info.ch_names, "COUNT"), "units": (*info.units, "")}
    )
    return counted, info


def test_epochs_behind_a_hidden_loss_are_the_right_samples(tmp_path):
    """The same brain, 5 samples lost where the stamps do not show it: decisions stay right with a counter."""
    bundle = bundles.read(write_bundle(tmp_path / "b.zip"))
    counted, info = hidden_loss()
    config = Config(intake=IntakeSettings(counter=CounterSettings("COUNT", 256)))
    outlet, counts = replay(config, ScriptedInlet(counted, info), bundle, engines(bundle, config))
    assert (counts.gaps, counts.missing_samples) == (1, 5)
    wrong = Config(intake=IntakeSettings(counter=CounterSettings("Count", 256)))
    with pytest.raises(ConfigError, match=r"counter channel; got 'Count'; allowed: .*COUNT"):
        replay(wrong, ScriptedInlet(counted, info), bundle, engines(bundle, config))
    assert [m.key for m in outlet.messages if isinstance(m, schema.Retrieval)]


def test_calibration_measures_on_the_clock_that_the_loop_cuts_by(monkeypatch):
    counted, info = hidden_loss()
    settings = IntakeSettings(counter=CounterSettings("COUNT", 256))
    live: list[np.ndarray] = []
    wanted = 1.001 * SFREQ  # what the bundle was trained at, the stream says another rate
    intake = Intake(Signal(info.ch_names[:-1], wanted, 0.0, 0.1), info, settings)
    place = intake.clock.place

    def seen(stamps, lost=None):
        runs = place(stamps, lost)
        live.extend(run.times for run in runs)
        return runs

    monkeypatch.setattr(intake.clock, "place", seen)
    for event in counted:
        intake(event)
    data, times, _ = placed(ScriptedInlet(counted, info), [0], settings, wanted)
    assert data.shape[1] == len(times) == sum(map(len, live))
    np.testing.assert_array_equal(times, np.concatenate(live))


@pytest.mark.parametrize("modulo", [2, -1, 1 << 25])
def test_a_modulo_that_cannot_be(modulo):
    with pytest.raises(ConfigError, match=r"counter\.modulo"):
        CounterSettings("n", modulo)
