"""SampleClock: positions and times against stamps with a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdec.acquire.clock import ClockSettings, SampleClock, settled
from streamdec.errors import ConfigError
from streamdec.types import ClockOffset


def play(stamps, sfreq, chunks=10, clock=None):
    """Place ``stamps``; return the clock, times, positions, and the breaks as (index, missing, new segment)."""
    clock = clock or SampleClock(sfreq)
    sizes = [chunks] * math.ceil(len(stamps) / chunks) if isinstance(chunks, int) else chunks
    times, positions, breaks, i = [], [], [], 0
    for size in sizes:
        chunk = stamps[i : i + size]
        runs = clock.place(chunk)
        assert [run.start for run in runs] == [0, *[run.stop for run in runs[:-1]]][: len(runs)]
        assert not runs or runs[-1].stop == len(chunk)
        for run in runs:
            times.append(run.times)
            positions.append(run.position + np.arange(run.stop - run.start))
            if run.missing or run.new_segment:
                breaks.append((i + run.start, run.missing, run.new_segment))
        i += len(chunk)
    return clock, np.concatenate(times), np.concatenate(positions), breaks


def even(n, sfreq, start=1000.0):
    return start + np.arange(n) / sfreq


START = (0, 0, True)


def faulty(rng):
    """All faults in one stream of 40 s at 250 Hz: jitter, late packets, gaps of all sizes, steps, ramp, garbage."""
    true = even(10_000, 250.0) + 2e-4 * np.maximum(0, np.arange(10_000) - 4000) / 250
    stamps = true + rng.normal(0, 0.0008, len(true))
    stamps[1000:1009] += 0.03
    stamps[2000:] += 0.5
    stamps[3000:] += 3.0
    stamps[5000:] -= 0.2
    stamps[6000] = math.nan
    stamps[6001] = math.inf
    stamps[7000:7010] = 1e6
    return stamps


@pytest.mark.parametrize("sfreq", [100.0, 128.0, 250.0, 1000.0, 4000.0])
@pytest.mark.parametrize("ppm", [0.0, 50.0, -200.0])
def test_exact_stamps_come_back(sfreq, ppm):
    stamps = even(int(20 * sfreq), sfreq * (1 + ppm * 1e-6))
    clock, times, positions, breaks = play(stamps, sfreq)
    assert np.abs(times - stamps).max() < 1e-6
    np.testing.assert_array_equal(positions, np.arange(len(stamps)))
    assert breaks == [START]
    assert clock.drift_ppm == pytest.approx(ppm, abs=0.01)
    assert clock.jitter < 1e-9


@pytest.mark.parametrize("chunks", [1, 7, 100_000])
def test_packing_does_not_matter(chunks, rng):
    stamps = faulty(rng)
    _, times, positions, breaks = play(stamps, 250.0, 10)
    _, other_times, other_positions, other_breaks = play(stamps, 250.0, chunks)
    np.testing.assert_array_equal(times, other_times)
    np.testing.assert_array_equal(positions, other_positions)
    assert breaks == other_breaks


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.sampled_from([0.01] * 12 + [0.011, 0.0099, 0.0, 0.02, 0.05, 0.3, 1.5, -0.03, -2.0, 1e9, math.nan, math.inf]),
        min_size=1,
        max_size=400,
    ),
    cuts=st.lists(st.integers(0, 400), max_size=30),
)
def test_any_stamps_any_packing(steps, cuts):
    with np.errstate(invalid="ignore"):
        stamps = np.nan_to_num(np.cumsum(np.nan_to_num(steps, nan=0.01, posinf=0.01)))
    stamps[[i for i, step in enumerate(steps) if not math.isfinite(step)]] = math.nan
    edges = [0, *sorted(min(cut, len(stamps)) for cut in cuts), len(stamps)]
    clock, times, positions, breaks = play(stamps, 100.0, 1)
    _, other_times, other_positions, other_breaks = play(stamps, 100.0, np.diff(edges).tolist())
    np.testing.assert_array_equal(times, other_times)
    np.testing.assert_array_equal(positions, other_positions)
    assert breaks == other_breaks
    assert np.isfinite(times).all()
    assert 50 <= clock.sfreq_effective <= 200
    # Positions count every sample once and advance besides only by what is missing.
    missing = {i: n for i, n, _ in breaks}
    expected = np.arange(len(stamps)) + np.cumsum([missing.get(i, 0) for i in range(len(stamps))])
    np.testing.assert_array_equal(positions, expected)
    begins = [i for i, _, new in breaks if new]
    for first, last in zip(begins, [*begins[1:], len(stamps)], strict=True):
        assert (np.diff(times[first:last]) >= 0).all()
    assert clock.segments == len(begins)


def test_gaps_in_exact_stamps_are_counted_to_the_sample():
    true = even(20_000, 1000.0)
    lost = np.r_[5000:5500, 9000, 9100:9102, 12_000:14_000]
    stamps = np.delete(true, lost)
    clock, times, positions, breaks = play(stamps, 1000.0)
    np.testing.assert_allclose(times, stamps, rtol=0, atol=1e-6)
    assert breaks == [START, (5000, 500, False), (8500, 1, False), (8599, 2, False), (11_497, 0, True)]
    assert (clock.gaps, clock.missing, clock.segments) == (4, 2503, 2)
    # Up to the long gap a position is a true sample index.
    np.testing.assert_array_equal(positions[:11_497], np.delete(np.arange(20_000), lost)[:11_497])


@pytest.mark.parametrize("remainder", [0.0, 0.3, 0.49, 0.51, 0.9])
def test_a_pause_that_is_no_whole_number_of_samples(remainder):
    stamps = even(4000, 1000.0)
    stamps[2000:] += (20 + remainder) / 1000
    _, times, _, breaks = play(stamps, 1000.0)
    assert breaks == [START, (2000, 20 + round(remainder), False)]
    np.testing.assert_allclose(times, stamps, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sfreq", [250.0, 1000.0])
@pytest.mark.parametrize("sd", [0.0002, 0.001, 0.005])
@pytest.mark.parametrize("seed", range(5))
def test_jitter_is_no_gap(sfreq, sd, seed):
    true = even(int(60 * sfreq), sfreq)
    clock, times, _, breaks = play(true + np.random.default_rng(seed).normal(0, sd, len(true)), sfreq)
    assert breaks == [START]
    # The end of a line fitted to n stamps strays twice as far as their median, whose deviation is 1.25 sd / sqrt(n).
    n = np.minimum(np.arange(len(true)), 30 * sfreq)
    stray = 2 * 1.25 * sd / np.sqrt(np.maximum(n, 1))
    settled = slice(int(sfreq), None)
    assert (np.abs(times - true)[settled] < 5 * stray[settled]).all()
    assert np.abs(times - true)[10 * int(sfreq) :].max() * sfreq < 0.5
    assert clock.jitter == pytest.approx(sd, rel=0.2)
    assert clock.sfreq_effective == pytest.approx(sfreq, rel=1e-3)


@pytest.mark.parametrize("sd", [0.0003, 0.001, 0.003])
@pytest.mark.parametrize("lost", [7, 30, 400])
@pytest.mark.parametrize("seed", range(5))
def test_gap_within_jitter_is_right_two_tenths_of_a_second_later(sd, lost, seed):
    true = even(30_000, 1000.0)
    jittered = true + np.random.default_rng(seed).normal(0, sd, len(true))
    gone = slice(15_000, 15_000 + lost)
    true, jittered = np.delete(true, gone), np.delete(jittered, gone)
    _, times, _, _ = play(jittered, 1000.0)
    # Two blocks: a gap smaller than the jitter shows by its persistence only.
    assert np.abs(times - true)[15_200:].max() < 1e-3


def test_packets_that_come_late_are_no_gaps(rng):
    """Every ninth packet 31 ms late, as some headsets stamp them: taken for a gap once, then known."""
    true = even(15_000, 250.0)
    stamps = true + 0.031 * ((np.arange(15_000) // 9) % 9 == 8)
    clock, times, _, breaks = play(stamps, 250.0, 9)
    assert breaks == [START, (72, 8, False), (81, 0, True)]
    assert np.abs(times - true)[81:].max() < 1e-6
    assert clock.segments == 2


def radio(n, sfreq, packet, rng):
    """Stamps of a radio link: packets wait in a queue that fills and empties, and are stamped on arrival."""
    true = even(n, sfreq)
    first = np.arange(n) // packet * packet
    waits = np.zeros(n // packet + 1)
    for i, noise in enumerate(rng.normal(0, packet / sfreq, len(waits) - 1)):
        waits[i + 1] = 0.8 * waits[i] + 0.3 * noise
    arrival = true[np.minimum(first + packet - 1, n - 1)] + np.abs(waits[first // packet])
    return true, np.maximum.accumulate(arrival) + (np.arange(n) - first) * 2e-4


@pytest.mark.parametrize(("sfreq", "packet"), [(128.0, 5), (250.0, 4), (250.0, 12), (500.0, 12), (1000.0, 25)])
def test_bursts_of_a_radio_link_are_no_gaps(sfreq, packet, rng):
    true, stamps = radio(int(120 * sfreq), sfreq, packet, rng)
    clock, times, _, breaks = play(stamps, sfreq, packet)
    assert breaks == [START]
    assert clock.sfreq_effective == pytest.approx(sfreq, rel=5e-3)
    assert np.ptp((times - true)[int(10 * sfreq) :]) < 3 * packet / sfreq  # follows the queue, not the packets
    assert 1 < clock.least_gap / packet < 12


@pytest.mark.parametrize(("sfreq", "packet"), [(128.0, 5), (250.0, 4), (250.0, 12), (500.0, 12), (1000.0, 25)])
def test_a_loss_beyond_the_bursts_of_a_radio_link_is_found(sfreq, packet, rng):
    stamps = radio(int(60 * sfreq), sfreq, packet, rng)[1]
    clock, *_ = play(stamps, sfreq, packet)
    lost = 2 * clock.least_gap
    at = int(30 * sfreq)
    clock, _, _, breaks = play(np.delete(stamps, slice(at, at + lost)), sfreq, packet)
    assert len(breaks) == 2
    i, missing, new_segment = breaks[1]
    assert not new_segment
    assert at <= i < at + 0.3 * sfreq
    assert abs(missing - lost) <= clock.least_gap  # as well as a burst lets one count
    assert clock.missing == missing


@settings(max_examples=40, deadline=None)
@given(
    bursts=st.lists(st.tuples(st.integers(1, 30), st.floats(-0.02, 0.1)), min_size=20, max_size=120),
    lost=st.dictionaries(st.integers(0, 119), st.integers(1, 60), max_size=3),
    cuts=st.lists(st.integers(0, 3000), max_size=30),
)
def test_bursts_in_any_packing(bursts, lost, cuts):
    """Samples stamped on arrival in bursts, some of them lost: the packing decides nothing."""
    stamps, n = [], 0
    for i, (size, wait) in enumerate(bursts):
        n += size + lost.get(i, 0)
        stamps += [1000 + n / 250 + wait + 1e-4 * k for k in range(size)]
    stamps = np.array(stamps)
    edges = [0, *sorted(min(cut, len(stamps)) for cut in cuts), len(stamps)]
    one, times, positions, breaks = play(stamps, 250.0, 1)
    other, other_times, other_positions, other_breaks = play(stamps, 250.0, np.diff(edges).tolist())
    np.testing.assert_array_equal(times, other_times)
    np.testing.assert_array_equal(positions, other_positions)
    assert breaks == other_breaks
    assert one.least_gap == other.least_gap


@settings(max_examples=40, deadline=None)
@given(
    sfreq=st.sampled_from([128.0, 250.0, 500.0, 1000.0]),
    lost=st.integers(3, 100),
    after=st.floats(1.1, 8.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_steady_amplifier_loses_nothing_unseen(sfreq, lost, after, seed):
    """Stamps exact to 0.05 ms: three samples or more are found at once, and counted to the sample."""
    true = even(int(9 * sfreq), sfreq)
    stamps = true + np.random.default_rng(seed).normal(0, 5e-5, len(true))
    at = int(after * sfreq)
    kept = np.r_[:at, at + lost : len(true)]
    clock, times, positions, breaks = play(stamps[kept], sfreq)
    assert breaks == [START, (at, lost, False)]
    np.testing.assert_array_equal(positions, kept)
    assert np.abs(times - true[kept])[int(sfreq) :].max() < 5e-4
    assert clock.least_gap <= 3


@pytest.mark.parametrize("burst", [5, 12, 25, 30, 60])
def test_samples_stamped_in_bursts(burst):
    """Samples stamped together on arrival, blocks of them even: a line through them, half a burst late."""
    true = even(12_000, 250.0)
    stamps = np.repeat(true[burst - 1 :: burst], burst) + np.tile(np.arange(burst) * 1e-5, 12_000 // burst)
    _, times, _, breaks = play(stamps, 250.0, burst)
    assert breaks == [START]
    lateness = (times - true)[3000:] * 250
    assert lateness.max() - lateness.min() < 1
    assert np.median(lateness) == pytest.approx((burst - 1) / 2, abs=0.5)


@pytest.mark.parametrize("true_rate", [976.0, 999.95, 1000.05, 1024.0])
def test_wrong_nominal_rate_with_deduced_stamps(true_rate):
    """liblsl deduces the stamps within a push from the nominal rate; only the last of each push is true."""
    true = even(30_000, true_rate)
    stamps = np.repeat(true[9::10], 10) + np.tile(np.arange(-9, 1) / 1000, 3000)
    clock, times, _, breaks = play(stamps, 1000.0)
    assert breaks == [START]
    assert np.abs(times - true).max() < 0.3e-3
    assert clock.sfreq_effective == pytest.approx(true_rate, rel=1e-5)


@pytest.mark.parametrize("ramp", [1e-4, 1e-3])
def test_clock_that_changes_its_pace(ramp):
    seconds = np.arange(60_000) / 1000
    stamps = 1000 + seconds + ramp * np.maximum(0, seconds - 20)
    _, times, _, breaks = play(stamps, 1000.0)
    assert breaks == [START]
    assert np.abs(times - stamps).max() < 1e-3


@pytest.mark.parametrize("step", [0.05, 0.5, 5.0, 2e5])
def test_backward_step_opens_a_segment(step):
    stamps = even(4000, 1000.0, start=3e5)
    stamps[2000:] -= step
    _, times, positions, breaks = play(stamps, 1000.0)
    assert breaks == [START, (2000, 0, True)]
    np.testing.assert_allclose(times, stamps, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(positions, np.arange(4000))


def test_small_backward_step_within_jitter(rng):
    true = even(20_000, 1000.0)
    true[10_000:] -= 0.01
    _, times, _, breaks = play(true + rng.normal(0, 0.002, len(true)), 1000.0)
    assert len(breaks) == 2
    assert breaks[1][2]
    assert np.abs(times - true)[10_200:].max() < 1e-3


def test_restart_and_stall_and_queue_overflow(rng):
    clock = SampleClock(250.0)
    before = even(2000, 250.0) + rng.normal(0, 0.0005, 2000)
    play(before, 250.0, clock=clock)
    clock.restart("amplifier back")
    (run,) = clock.place(even(10, 250.0, start=5.0))
    assert (run.position, run.missing, run.new_segment, run.reason) == (2000, 0, True, "amplifier back")
    true = even(500, 250.0, start=5.0 + 3.04)  # 3 s dropped by a full queue, then the rest in one burst
    _, times, _, breaks = play(true, 250.0, 500, clock=clock)
    assert breaks == [START]
    np.testing.assert_allclose(times, true, rtol=0, atol=1e-4)


def test_offset_holds_for_samples_after_it_only():
    stamps = even(300, 1000.0)
    clock = SampleClock(1000.0)
    clock.offset(ClockOffset("eeg", 0.5, 1e-4, 0.0))
    (run,) = clock.place(stamps[:100])
    np.testing.assert_allclose(run.times, stamps[:100] + 0.5, rtol=0, atol=1e-9)
    clock.offset(ClockOffset("eeg", 0.5008, 1e-4, 0.0))
    (after,) = clock.place(stamps[100:200])
    np.testing.assert_allclose(run.times, stamps[:100] + 0.5, rtol=0, atol=1e-9)
    np.testing.assert_allclose(after.times, stamps[100:200] + 0.5007, rtol=0, atol=1e-9)
    assert not after.new_segment
    clock.offset(ClockOffset("eeg", 7.5, 1e-4, 0.0))
    (stepped,) = clock.place(stamps[200:])
    assert stepped.new_segment
    assert clock.offset_value == pytest.approx(7.4999)
    clock.restart("")
    clock.offset(ClockOffset("eeg", -100.0, 1e-4, 0.0))
    assert clock.offset_value == -100.0


def test_settled_moves_only_as_far_as_the_measurement_asks():
    def measured(value, uncertainty):
        return ClockOffset("eeg", value, uncertainty, 0.0)

    assert settled(None, measured(0.2, 0.1)) == 0.2
    assert settled(None, measured(-0.0002, 0.0003)) == 0.0  # one machine
    assert settled(None, measured(-0.0002, math.nan)) == -0.0002
    assert settled(0.25, measured(0.2, 0.1)) == 0.25
    assert settled(1.0, measured(0.2, 0.1)) == pytest.approx(0.3)
    assert settled(-1.0, measured(0.2, 0.1)) == pytest.approx(0.1)
    assert settled(1.0, measured(0.2, math.nan)) == 0.2


def test_nothing_in_nothing_out():
    clock = SampleClock(250.0)
    assert clock.place(np.empty(0)) == []
    assert clock.segments == 0


def test_stamps_are_not_written_to(rng):
    stamps = faulty(rng)
    kept = stamps.copy()
    stamps.setflags(write=False)
    play(stamps, 250.0)
    np.testing.assert_array_equal(stamps, kept)


def test_longest_gap_is_a_setting():
    stamps = np.delete(even(3000, 1000.0), slice(1000, 1300))
    for longest, expected in ((1.0, (1000, 300, False)), (0.2, (1000, 0, True))):
        clock = SampleClock(1000.0, ClockSettings(longest_gap=longest))
        assert play(stamps, 1000.0, clock=clock)[3] == [START, expected]


@pytest.mark.parametrize("sfreq", [0.0, -1.0, math.inf, math.nan])
def test_irregular_streams_are_refused(sfreq):
    with pytest.raises(ConfigError):
        SampleClock(sfreq)


def test_memory_does_not_grow():
    clock = SampleClock(100.0)
    arrays = [value for value in vars(clock).values() if isinstance(value, np.ndarray)]
    play(even(30_000, 100.0), 100.0, 500, clock=clock)
    assert [id(a) for a in arrays] == [id(v) for v in vars(clock).values() if isinstance(v, np.ndarray)]
