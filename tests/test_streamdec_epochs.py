from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import mne
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdec.errors import ConfigError
from streamdec.signal.epochs import Epochs, EpochSettings
from streamdec.signal.rate import Rate
from streamdec.signal.ring import Ring
from streamdec.types import Ended, Epoch, Float32, Float64, Onset

SFREQ = 100.0
RATE = Rate(SFREQ)
WINDOW = (0.2, -10, 31)


def onset(key: str, time: float, position: int | None = None) -> Onset:
    return Onset(key=key, time=time, text=key, arrival=0.0, position=position)


def numbered(first: int, n: int, start: float = 0.0) -> tuple[Float32, Float64]:
    count = np.arange(first, first + n)
    return np.stack([count, -count]).astype(np.float32), start + count / SFREQ


class Rig:
    """A ring and what cuts from it; remembers all ends in the order they came."""

    def __init__(
        self,
        windows: tuple[tuple[float, int, int], ...] = (WINDOW,),
        n_times: int = 3000,
        settings: EpochSettings = EpochSettings(),  # noqa: B008 - frozen
    ) -> None:
        self.ring = Ring(2, n_times, max(n for _, _, n in windows))
        self.epochs = Epochs(self.ring, RATE, windows, settings)
        self.ends: list[Epoch | Ended] = []
        self.now = 0.0

    def write(self, n: int, start: float = 0.0) -> None:
        self.now += 1
        self.ring.write(*numbered(self.ring.end, n, start))
        self.ends += self.epochs.advance(self.now)

    def skip(self, n: int, start: float = 0.0) -> None:
        self.ring.skip(n, start + (self.ring.end + n) / SFREQ)

    def onset(self, key: str, time: float, position: int | None = None) -> None:
        self.now += 1
        refused = self.epochs.onset(onset(key, time, position))
        self.ends += [refused] if refused is not None else self.epochs.advance(self.now)

    @property
    def epoch(self) -> Epoch:
        (end,) = self.ends
        assert isinstance(end, Epoch)
        return end

    @property
    def ended(self) -> Ended:
        (end,) = self.ends
        assert isinstance(end, Ended)
        return end


@dataclass(frozen=True)
class Stream:
    """A whole recording: what the ring gets, in three clock segments with holes between and missing samples within."""

    times: Float64
    missing: frozenset[int]
    segments: tuple[int, ...]
    gaps: tuple[tuple[int, int], ...]


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    lengths = draw(st.lists(st.integers(1, 120), min_size=1, max_size=3))
    steps = draw(st.lists(st.floats(0.6, 1.4), min_size=7, max_size=7))
    times, segments, now = [], [], draw(st.floats(0, 1e5))
    for length in lengths:
        segments.append(len(times))
        for k in range(length):
            times.append(now)
            now += steps[k % 7] / SFREQ
        now += draw(st.floats(0.02, 0.4))
    gaps, last = [], 0
    for first in sorted(draw(st.sets(st.integers(1, len(times) - 1), max_size=4))) if len(times) > 1 else []:
        room = min([start for start in [*segments, len(times)] if start > first]) - first
        n = draw(st.integers(1, 4))
        # a gap lies between samples of one segment
        if first > last and first not in segments and n < room:
            gaps.append((first, n))
            last = first + n
    missing = frozenset(k for first, n in gaps for k in range(first, first + n))
    return Stream(np.array(times), missing, tuple(segments), tuple(gaps))


def with_gaps_on_a_line(stream: Stream) -> Float64:
    times = stream.times.copy()
    for first, n in stream.gaps:
        for k in range(n):
            times[first + k] = times[first - 1] + (times[first + n] - times[first - 1]) * (k + 1) / (n + 1)
    return times


def play(stream: Stream, packets: list[int], onsets: list[tuple[float, int]], windows, config) -> dict[str, list]:
    """Write the stream in packets; onset i comes in before sample ``onsets[i][1]``, at a packet's border."""
    rig = Rig(windows, settings=config)
    times = with_gaps_on_a_line(stream)
    at, turn = 0, 0
    left = sorted(range(len(onsets)), key=lambda i: (onsets[i][1], i))
    gaps = dict(stream.gaps)
    while at < len(times):
        while left and onsets[left[0]][1] <= at:
            i = left.pop(0)
            rig.onset(str(i), onsets[i][0])
        if at in stream.segments and at:
            rig.epochs.segment(at, "restart")
        if at in gaps:
            n = gaps[at]
            rig.ring.skip(n, times[at + n])
            at += n
        borders = [*stream.segments, *gaps, len(times)]
        stop = min(at + packets[turn % len(packets)], min(border for border in borders if border > at))
        turn += 1
        count = np.arange(at, stop)
        rig.ring.write(np.stack([count, -count]).astype(np.float32), times[at:stop])
        rig.ends += rig.epochs.advance(0.0)
        at = stop
    for i in left:
        rig.onset(str(i), onsets[i][0])
    rig.ends += rig.epochs.close(0.0)
    assert rig.epochs.open == 0
    by_key: dict[str, list] = {str(i): [] for i in range(len(onsets))}
    for end in rig.ends:
        by_key[end.onset.key].append(end)
    return by_key


def expected(stream: Stream, time: float, windows, limit: int) -> list[tuple]:
    """Brute force: the nearest sample of the segment that holds the time, then slices of the whole."""
    times = with_gaps_on_a_line(stream)
    half, bounds = 0.5 / SFREQ, [*stream.segments, len(times)]
    for start, stop in reversed(list(pairwise(bounds))):
        inside = times[start] <= time <= times[stop - 1]
        if inside or 0 < times[start] - time < half * (1 - 3e-6) or -half * (1 + 1e-6) <= times[stop - 1] - time < 0:
            sample = start + int(np.argmin(np.abs(times[start:stop] - (time - 1e-9))))
            break
    else:
        return [("lost_data",)] if time <= times[-1] else [("cancelled",)]
    if sample == len(times) - 1 and time > times[-1]:
        return [("cancelled",)]  # the next sample might have been nearer
    last = stop == len(times)
    out: list[tuple] = []
    if sample + min(first for _, first, _ in windows) < start:
        return [("lost_data",)]
    for horizon, first, n in windows:
        a, b = sample + first, sample + first + n
        if b > stop:
            return [*out, ("cancelled",) if last else ("lost_data",)]
        lost = [k for k in range(a, b) if k in stream.missing]
        rows = np.arange(a, b, dtype=float)
        runs = [list(run) for run in np.split(lost, np.flatnonzero(np.diff(lost) > 1) + 1)] if lost else []
        if any(len(run) > limit for run in runs) or len(lost) == n:
            return [*out, ("lost_data",)]
        kept = [k - a for k in range(a, b) if k not in stream.missing]
        rows = np.interp(np.arange(n), kept, rows[kept])
        out.append((horizon, a, sample, len(lost), rows))
    return out


windows_of = st.sampled_from(
    [
        (WINDOW,),
        ((0.0, -3, 4),),
        ((0.05, 2, 4),),
        ((0.1, -5, 16), (0.3, -5, 36)),
        ((0.05, -2, 8), (0.1, -2, 13), (0.2, -2, 23)),
    ]
)


@given(
    streams(),
    st.lists(st.tuples(st.integers(0, 400), st.integers(-20, 20), st.integers(0, 500)), min_size=1, max_size=12),
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    windows_of,
    st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_every_onset_has_the_end_it_should_whatever_the_packets(
    stream: Stream,
    markers: list[tuple[int, int, int]],
    packets: list[int],
    windows: tuple[tuple[float, int, int], ...],
    limit: int,
) -> None:
    times = with_gaps_on_a_line(stream)
    steps = np.append(np.diff(times), 1 / SFREQ)
    steps[[start - 1 for start in stream.segments[1:]]] = 1 / SFREQ
    onsets = []
    for near, eighths, when in markers:  # on samples, on ties, in between and in holes
        sample = near % len(times)
        step = steps[sample] if 0 <= eighths <= 8 else 1 / SFREQ
        onsets.append((float(times[sample] + eighths / 8 * step), when))
    config = EpochSettings(interpolate_missing=limit)
    ends = play(stream, packets, onsets, windows, config)
    for i, (time, _) in enumerate(onsets):
        got, wanted = ends[str(i)], expected(stream, time, windows, limit)
        assert len(got) == len(wanted), (got, wanted)
        for end, want in zip(got, wanted, strict=True):
            if isinstance(end, Ended):
                assert end.outcome == want[0]
                continue
            horizon, first, sample, n_missing, rows = want
            assert (end.horizon, end.first, end.onset_sample, end.n_interpolated) == (horizon, first, sample, n_missing)
            np.testing.assert_allclose(end.data, [rows, -rows], atol=1e-4)
            assert end.residual == pytest.approx(time - times[sample], abs=1e-9)
            assert end.due == pytest.approx(times[first + len(rows) - 1], abs=1e-9)
            assert end.final == (horizon == windows[-1][0])
        assert sum(isinstance(end, Ended) or end.final for end in got) == 1
    again = play(stream, [1], onsets, windows, config)
    for key, got in ends.items():
        for end, other in zip(got, again[key], strict=True):
            if isinstance(end, Epoch):
                np.testing.assert_array_equal(end.data, other.data)
                assert (end.residual, end.due) == (other.residual, other.due)


@given(st.permutations(range(8)), st.integers(1, 50))
def test_ends_come_in_the_order_of_the_onsets(order: list[int], packet: int) -> None:
    rig = Rig()
    rig.write(100)
    for i in order:
        rig.onset(str(i), 1.0 + 0.05 * i)
    for _ in range(0, 100, packet):
        rig.write(packet)
    assert [end.onset.key for end in rig.ends] == sorted(str(i) for i in order)


def test_epochs_equal_mnes_sample_for_sample() -> None:
    rng = np.random.default_rng(4)
    data = rng.standard_normal((2, 2000)).astype(np.float32)
    events = np.sort(rng.choice(np.arange(50, 1900), 40, replace=False))
    raw = mne.io.RawArray(data.astype(float), mne.create_info(2, SFREQ, "eeg"), verbose="error")
    cut = mne.Epochs(
        raw,
        np.c_[events, 0 * events, 1 + 0 * events],
        tmin=-0.2,
        tmax=0.8,
        baseline=None,
        preload=True,
        verbose="error",
    )
    first, n = RATE.window(-0.2, 0.8)
    ring = Ring(2, 500, n)
    epochs = Epochs(ring, RATE, ((0.8, first, n),))
    got = []
    for event in events:
        assert epochs.onset(onset("x", float(event) / SFREQ)) is None
    assert epochs.open == 40
    for at in range(0, 2000, 16):
        ring.write(data[:, at : at + 16], np.arange(at, at + 16) / SFREQ)
        got += [end.data for end in epochs.advance(0.0) if isinstance(end, Epoch)]
    np.testing.assert_array_equal(np.stack(got), cut.get_data(copy=False))


def test_overlapping_epochs_and_their_copies() -> None:
    rig = Rig()
    for i in range(50):
        rig.onset(str(i), 0.2 + 0.01 * i)
    assert rig.epochs.open == 50
    rig.write(60)
    assert len(rig.ends) == 20
    first = rig.ends[0]
    assert isinstance(first, Epoch)
    assert not np.shares_memory(first.data, rig.ring.view(first.first, 31))
    before = first.data.copy()
    rig.write(5000)
    np.testing.assert_array_equal(first.data, before)


@pytest.mark.parametrize(
    ("time", "sample"), [(1.0, 100), (1.0049, 100), (1.005, 100), (1.0051, 101), (0.9951, 100), (0.995, 99)]
)
def test_the_nearest_sample_ties_down(time: float, sample: int) -> None:
    for late in (False, True):
        rig = Rig()
        if late:
            rig.write(300)
        rig.onset("x", time)
        if not late:
            rig.write(300)
        assert rig.epoch.onset_sample == sample
        assert rig.epoch.residual == pytest.approx(time - sample / SFREQ)
        np.testing.assert_array_equal(rig.epoch.data[0], np.arange(sample - 10, sample + 21))
        assert rig.epoch.due == pytest.approx((sample + 20) / SFREQ)


def test_a_trigger_names_its_sample() -> None:
    rig = Rig()
    rig.write(150)
    rig.onset("x", 1.0032, position=100)
    assert (rig.epoch.onset_sample, rig.epoch.first) == (100, 90)
    assert rig.epoch.residual == pytest.approx(0.0032)
    rig = Rig(n_times=100)
    rig.write(300)
    rig.onset("x", 1.0, position=100)
    assert rig.ended.outcome == "late"


def test_late_markers_are_served_while_the_ring_lasts() -> None:
    rig = Rig(n_times=1000)
    rig.write(1500)
    rig.onset("in", 5.10)
    assert rig.epoch.first == 500
    rig.ends.clear()
    rig.onset("half", 5.09)
    assert rig.ended.outcome == "late"
    assert "10 s" in rig.ended.reason
    rig.ends.clear()
    rig.onset("gone", 1.0)
    assert rig.ended.outcome == "late"


def test_an_epoch_longer_than_what_comes_at_once() -> None:
    rig = Rig(n_times=100)
    rig.onset("x", 1.0)
    rig.write(95)
    rig.write(400)
    assert rig.ended.outcome == "late"


def test_onsets_before_the_first_sample() -> None:
    rig = Rig()
    rig.onset("waits", -1.0)
    rig.onset("too", 0.05)
    assert rig.ends == []
    rig.write(10)
    assert [(end.onset.key, end.outcome) for end in rig.ends if isinstance(end, Ended)] == [
        ("waits", "lost_data"),
        ("too", "lost_data"),
    ]


def test_no_epoch_spans_a_new_segment() -> None:
    rig = Rig()
    rig.write(100)
    rig.onset("cut", 0.95)
    rig.onset("whole", 0.5)
    rig.onset("hole", 5.0)
    rig.epochs.segment(100, "reconnected")
    rig.write(5, start=10.0)
    outcomes = {end.onset.key: end for end in rig.ends}
    assert isinstance(outcomes["whole"], Epoch)
    assert isinstance(outcomes["cut"], Ended)
    assert (outcomes["cut"].outcome, outcomes["cut"].reason) == ("lost_data", "reconnected")
    assert isinstance(outcomes["hole"], Ended)
    assert outcomes["hole"].outcome == "lost_data"
    rig.ends.clear()
    rig.onset("early", 11.03)
    assert rig.ended.outcome == "lost_data"  # its baseline would come from before the restart
    rig.ends.clear()
    rig.write(60, start=10.0)
    rig.onset("new", 11.2)
    assert rig.epoch.onset_sample == 120


@pytest.mark.parametrize(("time", "sample"), [(0.995, 99), (0.9951, None), (1.004, None), (9.9951, 100), (9.995, None)])
def test_half_a_sample_into_a_hole(time: float, sample: int | None) -> None:
    rig = Rig(windows=((0.0, 0, 1),))
    rig.write(100)
    rig.epochs.segment(100, "reconnected")
    rig.write(50, start=9.0)
    rig.onset("x", time)
    if sample is None:
        assert rig.ended.outcome == "lost_data"
    else:
        assert rig.epoch.onset_sample == sample


def test_a_clock_that_steps_back() -> None:
    rig = Rig()
    rig.write(500, start=100.0)
    rig.epochs.segment(500, "backward step")
    rig.write(500)  # the same positions, 100 s earlier
    rig.onset("old", 103.0)
    assert rig.epoch.onset_sample == 300
    rig.ends.clear()
    rig.onset("new", 7.0)
    assert rig.epoch.onset_sample == 700


def test_an_early_horizon_first_and_one_end() -> None:
    rig = Rig(windows=((0.1, -10, 21), (0.3, -10, 41)))
    rig.onset("a", 1.0)
    rig.write(111)
    early = rig.epoch
    assert (early.horizon, early.final, early.data.shape) == (0.1, False, (2, 21))
    assert rig.epochs.open == 1
    rig.epochs.segment(111, "")
    rig.write(50, start=3.0)
    assert isinstance(rig.ends[1], Ended)
    assert rig.ends[1].outcome == "lost_data"
    assert rig.epochs.open == 0
    rig = Rig(windows=((0.1, -10, 21), (0.3, -10, 41)))
    rig.onset("a", 1.0)
    rig.write(200)
    assert [(end.horizon, end.final) for end in rig.ends if isinstance(end, Epoch)] == [(0.1, False), (0.3, True)]


def test_missing_samples_are_filled_in_only_as_told() -> None:
    for limit, n in [(0, 1), (2, 3)]:
        rig = Rig(settings=EpochSettings(interpolate_missing=limit))
        rig.write(100)
        rig.skip(n)
        rig.write(100)
        rig.onset("x", 1.0)
        assert rig.ended.outcome == "lost_data"
        assert f"{n} samples" in rig.ended.reason
    rig = Rig(settings=EpochSettings(interpolate_missing=3))
    rig.write(95)
    rig.skip(3)
    rig.write(10)
    rig.skip(1)
    rig.write(100)
    rig.onset("x", 1.0)
    np.testing.assert_allclose(rig.epoch.data[0], np.arange(90, 121), rtol=1e-6)
    assert rig.epoch.n_interpolated == 4


def test_nan_in_one_channel_is_not_a_missing_sample() -> None:
    rig = Rig()
    data, times = numbered(0, 200)
    data[0, 100] = np.nan
    rig.ring.write(data, times)
    rig.onset("x", 1.0)
    assert rig.epoch.n_interpolated == 0
    assert np.isnan(rig.epoch.data[0, 10])


def test_epochs_say_that_filters_settle() -> None:
    rig = Rig()
    rig.write(100)
    rig.epochs.settling(150)
    rig.write(200)
    for key, time in [("before", 0.5), ("touches", 0.85), ("in", 1.3), ("still", 1.59), ("settled", 1.6)]:
        rig.onset(key, time)
    flags = {end.onset.key: end.flags for end in rig.ends if isinstance(end, Epoch)}
    settling = ("settling",)
    assert flags == {"before": (), "touches": settling, "in": settling, "still": settling, "settled": ()}


def test_what_is_open_at_the_end_is_cancelled() -> None:
    rig = Rig()
    rig.write(100)
    for key, time in [("c", 50.0), ("b", 0.99), ("a", 0.95)]:
        rig.onset(key, time)
    ends = rig.epochs.close(7.0)
    assert [(end.onset.key, end.outcome, end.arrival) for end in ends] == [(k, "cancelled", 7.0) for k in "abc"]
    assert rig.epochs.open == 0
    assert rig.epochs.close(8.0) == []


def test_open_onsets_are_bounded() -> None:
    rig = Rig(settings=EpochSettings(max_open=3))
    for i in range(5):
        rig.onset(str(i), 100.0 + i)
    assert [(end.onset.key, end.outcome) for end in rig.ends if isinstance(end, Ended)] == [
        ("3", "cancelled"),
        ("4", "cancelled"),
    ]
    assert rig.epochs.open == 3


@pytest.mark.parametrize("time", [float("nan"), float("inf")])
def test_a_time_that_is_no_number(time: float) -> None:
    rig = Rig()
    rig.onset("x", time)
    assert rig.ended.outcome == "lost_data"


@pytest.mark.parametrize(
    ("windows", "config", "match"),
    [
        ((), EpochSettings(), "epoch windows"),
        (((0.3, 0, 31), (0.2, 0, 21)), EpochSettings(), "ending later"),
        (((0.3, 0, 32),), EpochSettings(), "1 to 31"),
        ((WINDOW,), EpochSettings(max_open=0), "max_open"),
        ((WINDOW,), EpochSettings(interpolate_missing=-1), "interpolate_missing"),
    ],
)
def test_settings_are_checked(windows: tuple[tuple[float, int, int], ...], config: EpochSettings, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Epochs(Ring(2, 100, 31), RATE, windows, config)
