"""Events -> clean epochs: clock, channels, filters, ring, epochs, quality.

Live decoding, replay and offline preparation of a recording run this one class over the same events, so they cut the
same samples. What it hands out depends on the events and their order alone, never on the time of day.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from .acquire.clock import ClockSettings, Run
from .acquire.counter import CounterSettings
from .acquire.inlet import Inlet
from .acquire.markers import MarkerReader, MarkerSettings, Refused, TriggerReader, TriggerSettings
from .acquire.placement import Placement, row
from .errors import StreamMismatch
from .signal.epochs import Epochs, EpochSettings
from .signal.filters import StreamFilter
from .signal.montage import interpolate_bad, map_channels
from .signal.quality import Quality, QualitySettings, check_scale, robust_sd, unit_factor
from .signal.rate import Rate
from .signal.ring import Ring
from .signal.scope import Scope
from .signal.spec import Signal
from .types import Chunk, ClockOffset, Connection, Ended, Epoch, Event, Float32, Marker, Onset, StreamInfo, StreamRole

_SCALE_AFTER = 3.0  # seconds of signal before its scale is judged
_SCALE_BY = 300  # samples of each channel, spread over them: plenty for a factor of 5, and all would hold the loop up
_RATE_AFTER = 10.0  # seconds of stamps before the effective rate is judged
_RATE_EXCESS = 0.1  # samples may come this much faster than they are due
_RATE_BREAKS = 10  # segments by then, from which on the stamps say nothing of the rate
_AHEAD = 10.0  # seconds by which a marker may be ahead of the newest sample, if its own stamp or the EEG's is to blame
_CAUGHT_UP = 1.0  # seconds by which samples that lie behind their arrival come nearer to it, in a backlog


class IntakeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the stream is taken in.

    ``ring_seconds`` how late a marker may come (plus the epoch). ``unit`` overrides the header's, such as "volts".
    ``positional`` take the bundle's channels by position, for streams without labels. ``max_interpolated_channels``
    how many of the bundle's channels may be missing or bad. ``rate_tolerance`` accepted deviation of the effective
    rate, as a fraction; a quarter of it warns. ``trigger`` take onsets from a channel of the EEG stream instead of a
    marker stream; ``counter`` a channel that counts the samples: it tells what was lost, not the stamps.
    ``catch_up_seconds`` an epoch completed later than this after it was due is flagged "catch_up".
    """

    ring_seconds: float = 30.0
    unit: str = ""
    positional: bool = False
    max_interpolated_channels: int = 4
    rate_tolerance: float = 0.02
    catch_up_seconds: float = 0.25
    clock: ClockSettings = ClockSettings()
    markers: MarkerSettings = MarkerSettings()
    trigger: TriggerSettings | None = None
    counter: CounterSettings | None = None
    epochs: EpochSettings = EpochSettings()
    quality: QualitySettings = QualitySettings()


class Notice(msgspec.Struct, frozen=True):
    """Something about a stream that the feed should say. ``time`` LSL clock."""

    state: Literal["connected", "stalled", "resumed", "lost", "found", "refused", "gap", "warning", "ended"]
    stream: StreamRole
    reason: str
    time: float


Output: TypeAlias = Onset | Refused | Epoch | Ended | Notice
_NOTHING: tuple[Output, ...] = ()


class Intake:
    """One session's way from events to epochs.

    Parameters
    ----------
    signal : Signal
        What the decoder wants: channels, rate, window, filters.
    eeg : StreamInfo
        The EEG stream.
    settings : IntakeSettings
    horizons : tuple of float
        Seconds after the onset at which an epoch is handed out, ascending; the last is the signal's ``tmax``.
        Default: ``(tmax,)``.
    channel_sd : mapping of str to float
        Robust standard deviation per channel, microvolt, that the decoder was trained on; empty switches the scale
        check off.

    Raises
    ------
    StreamMismatch
        The stream does not fit: rate, channels, unit. The scale and the effective rate are judged once enough samples
        are in.
    """

    def __init__(
        self,
        signal: Signal,
        eeg: StreamInfo,
        settings: IntakeSettings = IntakeSettings(),  # noqa: B008 - frozen
        horizons: tuple[float, ...] = (),
        channel_sd: dict[str, float] | None = None,
    ) -> None:
        self.signal, self.eeg, self.settings = signal, eeg, settings
        if abs(eeg.sfreq - signal.sfreq) > settings.rate_tolerance * signal.sfreq:
            raise StreamMismatch(
                f"rate of stream {eeg.name!r}",
                got=f"{eeg.sfreq:g} Hz",
                allowed=f"{signal.sfreq:g} Hz",
                do="set the amplifier to this rate or train a bundle at the stream's rate",
            )
        self.rate = Rate(signal.sfreq)
        self.map = map_channels(
            eeg.ch_names, signal.ch_names, settings.max_interpolated_channels, positional=settings.positional
        )
        interpolate_bad(signal.ch_names, self.map.missing)  # the dear part of it, for any bad channels to come
        self._picks = None if self._is_identity(self.map.picks, eeg.n_chans) else self.map.picks
        self._present = tuple(name for name in signal.ch_names if name not in self.map.missing)
        self._factor = self._unit_factors()
        self._placement = Placement(eeg, signal.sfreq, settings.clock, settings.counter)
        self.clock = self._placement.clock
        self.filter = StreamFilter(signal.filters, signal.sfreq, len(self._present))
        horizons = horizons or (signal.tmax,)
        windows = tuple((h, *signal.until(h).window) for h in horizons)
        longest = max(windows[-1][2], self.rate.to_samples(_SCALE_AFTER))
        held = self.rate.to_samples(settings.ring_seconds) + longest
        self.ring = Ring(len(self._present), held, longest)
        judged = signal.filters and settings.quality != QualitySettings.off()
        self._raw = Ring(len(self._present), held, longest) if judged else None
        """The same samples before the filters, to judge the channels by."""
        self.epochs = Epochs(self.ring, self.rate, windows, settings.epochs)
        self.quality = Quality(self._present, settings.quality)
        self.scope = Scope(self.ring, self._raw, self.rate, self.quality)
        self.markers = MarkerReader(settings.markers)
        self._latency = settings.markers.latency or 0.0
        self.trigger = self._trigger_reader()
        self._channel_sd = channel_sd or {}
        self._scale_due = self.rate.to_samples(_SCALE_AFTER) if self._channel_sd else None
        self._rate_due: int | None = self.rate.to_samples(_RATE_AFTER)
        self._first_arrival, self._came = np.inf, 0  # samples since the first chunk, until the rate is judged
        self._connected_at = self._first_behind = self._least_behind = np.inf
        self._behind_gap = -1  # position behind the newest gap that the trigger channel was not read over
        self._refusal: StreamMismatch | None = None
        self._warned: set[str] = set()

    def __call__(self, event: Event) -> Iterable[Output]:
        """Take one event in; hand out what it completed, in order.

        Raises
        ------
        StreamMismatch
            The samples have the wrong scale or the stream runs at the wrong rate.
        """
        if self._refusal is not None:
            raise self._refusal
        if isinstance(event, Chunk):
            return self._chunk(event)
        if isinstance(event, Marker):
            return self._onset(self.markers(event), event.arrival)
        if isinstance(event, ClockOffset):
            (self.clock if event.stream == "eeg" else self.markers).offset(event)
            return _NOTHING
        return self._connection(event)

    def close(self, arrival: float) -> list[Ended]:
        """End every open onset as ``cancelled``. ``arrival`` LSL clock."""
        return self.epochs.close(arrival)

    def _chunk(self, chunk: Chunk) -> Iterable[Output]:
        out: list[Output] = []
        data = chunk.data if self._picks is None else chunk.data[self._picks]
        if self._factor is not None:
            data = data * self._factor
        runs = self._placement(chunk)
        if self._placement.uncounted:
            self._warn("counts beyond 2^24 cannot be read: reset the counter, or leave out intake.counter", chunk, out)
        for run in runs:
            if run.missing or run.new_segment:
                self._discontinuity(run, chunk.arrival, out)
            self.ring.write(self.filter(data[:, run.start : run.stop]), run.times)
            if self._raw is not None:
                self._raw.write(data[:, run.start : run.stop], run.times)
            if self.trigger is not None:
                samples = chunk.data[self._trigger_row, run.start : run.stop]
                for onset in self.trigger(samples, run.position, run.times, chunk.arrival):
                    if isinstance(onset, Onset) and onset.position == self._behind_gap:
                        out += [onset, Ended(onset, "lost_data", "it came while samples were lost", chunk.arrival)]
                    else:
                        out.extend(self._onset(onset, chunk.arrival))
        behind = chunk.arrival - self.ring.newest
        if behind < self._least_behind:
            if self._connected_at == np.inf:
                self._connected_at, self._first_behind = chunk.arrival, behind
            self._least_behind = behind
        if self.trigger is not None and self.trigger.rounded:
            self._warn("trigger values beyond 2^24 are rounded: clear the upper bits at the device", chunk, out)
        try:
            self._judge(chunk, out)
        except StreamMismatch as error:
            self._refusal = error  # with the next event: what this one brought is on the books by then
        self._advance(chunk.arrival, out)
        return out or _NOTHING

    def _judge(self, chunk: Chunk, out: list[Output]) -> None:
        """Judge the stream's scale and rate, once enough of it is in."""
        if self._scale_due is not None and self.ring.end >= self._scale_due:
            self._scale_due = None
            out.extend(self._check_scale(chunk.arrival))
        if self._rate_due is not None:
            self._came += len(chunk.stamps) if chunk.arrival > self._first_arrival else 0
            self._first_arrival = min(self._first_arrival, chunk.arrival)
            if self.ring.end >= self._rate_due:
                self._rate_due = None
                out.extend(self._check_rate(chunk.arrival))

    def _warn(self, what: str, chunk: Chunk, out: list[Output]) -> None:
        """Say it once."""
        if what not in self._warned:
            self._warned.add(what)
            out.append(Notice("warning", "eeg", what, chunk.arrival))

    def _onset(self, onset: Onset | Refused, arrival: float) -> list[Output]:
        """An onset goes on the books before whatever it completes at once (late markers are served from the ring)."""
        if isinstance(onset, Refused):
            return [onset]
        # Two streams may share a clock that is not LSL's, and samples may come late: neither is a fault.
        ahead = onset.time - self.ring.newest  # NaN before the first sample: it is waited for
        early = onset.time - onset.arrival
        if ahead > _AHEAD and (early > _AHEAD or (early > -_AHEAD and self._lies_behind(onset.arrival))):
            reason = f"stamped {ahead:.0f} s after the newest sample: markers and EEG have different clocks"
            return [onset, Ended(onset, "lost_data", reason, arrival)]
        if self._latency:
            onset = msgspec.structs.replace(onset, time=onset.time + self._latency, position=None)
        out: list[Output] = [onset]
        refused = self.epochs.onset(onset)
        if refused is not None:
            out.append(refused)
        else:
            self._advance(arrival, out)
        return out

    def _lies_behind(self, arrival: float) -> bool:
        """Whether the samples have been stamped long before they arrive, and are not catching up."""
        known = arrival - self._connected_at > _AHEAD
        return known and self._least_behind > _AHEAD and self._first_behind - self._least_behind < _CAUGHT_UP

    def _advance(self, arrival: float, out: list[Output]) -> None:
        for end in self.epochs.advance(arrival):
            cleaned = self._clean(end, arrival) if isinstance(end, Epoch) else end
            if cleaned is not None:
                out.append(cleaned)

    def _connection(self, event: Connection) -> list[Output]:
        if event.state == "found":
            if event.stream == "eeg":
                self._placement.restart(event.reason)
                self._connected_at = self._first_behind = self._least_behind = np.inf
            else:
                self.markers.restart()
        return [Notice(event.state, event.stream, event.reason, event.arrival)]

    def _discontinuity(self, run: Run, arrival: float, out: list[Output]) -> None:
        """Keep the ring aligned over what is missing. Filters ride over a gap that epochs may, else they start anew."""
        bridged = not run.new_segment and run.missing <= self.settings.epochs.interpolate_missing
        if self.trigger is not None and not bridged:
            for onset in self.trigger.flush(arrival):
                out.extend(self._onset(onset, arrival))
            self._behind_gap = run.position  # an edge there rose at some time within the gap
            if run.new_segment:
                self.trigger.reset()
        if run.missing:
            for ring in filter(None, (self.ring, self._raw)):
                ring.skip(run.missing, float(run.times[0]))
        if run.new_segment:
            self.epochs.segment(run.position, run.reason)
        if bridged:
            self.filter(np.full((len(self._present), run.missing), np.nan, np.float32))
        else:
            self.filter.reset()
            self.epochs.settling(run.position + self.filter.settling)
        if run.position:
            out.append(Notice("gap", "eeg", run.reason or f"{run.missing} samples missing", arrival))

    def _clean(self, epoch: Epoch, arrival: float) -> Epoch | Ended | None:
        """Judge the channels, fill in what may be filled in, bring the epoch to the bundle's channels.

        A bad epoch at an early horizon is only passed over: the onset ends with its last horizon.
        """
        n_times = epoch.data.shape[1]
        verdict = self.quality.check(epoch.data, None if self._raw is None else self._raw.view(epoch.first, n_times))
        filled = len(self.map.missing) + len(verdict.bad)
        reject = verdict.reject
        if not reject and filled > self.settings.max_interpolated_channels:
            reject = f"{filled} channels missing or bad ({', '.join(verdict.bad)})"
        if reject:
            return Ended(epoch.onset, "rejected", reject, arrival) if epoch.final else None
        flags = epoch.flags
        if arrival - epoch.due > self.settings.catch_up_seconds:
            flags = (*flags, "catch_up")
        if not filled:
            return msgspec.structs.replace(epoch, flags=flags) if flags else epoch
        wanted = self.signal.ch_names
        interpolated = tuple(name for name in wanted if name in verdict.bad or name in self.map.missing)
        good = [row for row, name in enumerate(self._present) if name not in verdict.bad]
        try:
            data: Float32 = interpolate_bad(wanted, interpolated) @ epoch.data[good]
        except StreamMismatch as error:  # no good channel has a known position
            return Ended(epoch.onset, "rejected", str(error), arrival) if epoch.final else None
        return msgspec.structs.replace(epoch, data=data, interpolated_channels=interpolated, flags=flags)

    def _check_scale(self, arrival: float) -> list[Output]:
        n = self.rate.to_samples(_SCALE_AFTER)
        measured = robust_sd(self.ring.view(self.ring.end - n, n)[:, :: max(1, n // _SCALE_BY)])
        trained = np.array([self._channel_sd.get(name, np.nan) for name in self._present])
        warning = check_scale(measured, trained)
        return [Notice("warning", "eeg", warning, arrival)] if warning else []

    def _check_rate(self, arrival: float) -> list[Output]:
        effective, tolerance = self.clock.sfreq_effective, self.settings.rate_tolerance
        # Stamps deduced from a nominal rate far too low step back with every packet: no line goes through them.
        # Where they do not, samples that come faster than they are due are a backlog.
        broken = self.clock.segments >= _RATE_BREAKS
        if broken and self._came > (1 + _RATE_EXCESS) * self.signal.sfreq * (arrival - self._first_arrival) > 0:
            effective = self._came / (arrival - self._first_arrival)
        off = abs(effective / self.signal.sfreq - 1)
        if off > tolerance:
            raise StreamMismatch(
                f"effective rate of stream {self.eeg.name!r}",
                got=f"{effective:.3f} Hz over {_RATE_AFTER:g} s",
                allowed=f"{self.signal.sfreq:g} Hz ± {100 * tolerance:g} %",
                do="check the amplifier's rate, or raise intake.rate_tolerance",
            )
        if off > tolerance / 4:
            return [
                Notice("warning", "eeg", f"effective rate {effective:.3f} Hz, not {self.signal.sfreq:g} Hz", arrival)
            ]
        return []

    def _unit_factors(self) -> np.ndarray[tuple[int, int], np.dtype[np.float32]] | None:
        units = self.eeg.units or ("",) * self.eeg.n_chans
        said = [self.settings.unit or units[pick] for pick in self.map.picks]
        factors = np.array([unit_factor(unit) for unit in said], np.float32)
        return None if np.all(factors == 1) else factors[:, None]

    def _trigger_reader(self) -> TriggerReader | None:
        if self.settings.trigger is None:
            return None
        self._trigger_row = row("trigger", self.settings.trigger.channel, self.eeg)
        return TriggerReader(self.settings.trigger, self.settings.markers)

    @staticmethod
    def _is_identity(picks: np.ndarray[tuple[int], np.dtype[np.intp]], n_chans: int) -> bool:
        return len(picks) == n_chans and bool(np.all(picks == np.arange(n_chans)))


def cutting(inlet: Inlet, signal: Signal, settings: IntakeSettings) -> Iterator[Epoch | Ended]:
    """Cut every epoch of a recording as the live loop would have cut it, one after the other.

    Parameters
    ----------
    inlet : Inlet
        A recording as an inlet, not yet open.
    signal : Signal
    settings : IntakeSettings

    Yields
    ------
    Epoch or Ended
        In the order the live loop would have decided them; onsets without an epoch, and why.
    """
    with inlet:
        inlet.open(0.0)
        intake = Intake(signal, inlet.eeg, settings)
        now = 0.0
        while (event := inlet.pull(0.0)) is not None:
            now = event.arrival
            yield from (output for output in intake(event) if isinstance(output, Epoch | Ended))
            if isinstance(event, Connection) and event.state == "ended":
                break
        yield from intake.close(now)
