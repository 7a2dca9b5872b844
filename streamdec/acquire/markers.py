"""Markers -> onsets: marker streams and trigger channels."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from typing import Literal

import msgspec
import numpy as np

from ..errors import ConfigError
from ..types import ClockOffset, Float32, Float64, Marker, Onset
from .clock import settled

_SAME_INSTANT = 1e-3  # s: the same text within this is the same marker, sent twice
_REMEMBERED = 64  # markers a duplicate is looked for among
_STRAGGLER = 100  # a "seq" at most this far behind came out of order; further behind, numbering began anew
_INTEGER = re.compile(r"[+-]?\d+\.0*")


class MarkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a marker names a stimulus.

    A marker is a text, a number, or a JSON object whose ``field`` holds one of them; 17 and 17.0 are "17". ``pattern``,
    a regular expression with a group ``key``, must match all of that text. ``keys`` translates what the group caught
    into the stimulus key; where it is given, what it does not list is garbage. ``ignore``: markers that match it whole,
    as received or as taken out of the JSON object, name no stimulus (catch trials, block starts), nor do JSON objects
    without ``field``. ``latency`` seconds after the marker (or the edge of the trigger channel) at which the image
    comes on; None: what the bundle was calibrated to, else 0.
    """

    pattern: str = "(?P<key>.+)"
    field: str = "id"
    ignore: str = ""
    keys: dict[str, str] = {}
    latency: float | None = None

    def __post_init__(self) -> None:
        _Names(self)
        if not math.isfinite(self.latency or 0.0):
            raise ConfigError("markers.latency", got=self.latency, allowed="finite seconds, or none")


class TriggerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A trigger channel of the EEG stream. Its codes name stimuli as :class:`MarkerSettings` says.

    ``channel`` its label; ``mask`` the bits that carry the code (the catch code 99999 of THINGS-EEG2 needs 17:
    0x1FFFF). Samples come as float32: the mask's bits must be among the 24 highest that the channel ever sets.
    """

    channel: str
    mask: int = 0xFFFF


class Refused(msgspec.Struct, frozen=True):
    """A marker that is no onset: to be counted, and named."""

    text: str
    reason: Literal["ignored", "duplicate", "garbage"]


def _compile(pattern: str, what: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"markers.{what} {pattern!r}", got=error, allowed="a regular expression") from error


class _Names:
    """Marker text -> stimulus key."""

    def __init__(self, settings: MarkerSettings) -> None:
        self._pattern = _compile(settings.pattern, "pattern")
        if "key" not in self._pattern.groupindex:
            raise ConfigError("markers.pattern", got=settings.pattern, allowed="a group (?P<key>...)")
        self._ignore = _compile(settings.ignore, "ignore") if settings.ignore else None
        self._keys = settings.keys

    def ignores(self, text: str) -> bool:
        return self._ignore is not None and self._ignore.fullmatch(text) is not None

    def key(self, text: str) -> str | None:
        """Find the key in ``text``; None where it names no stimulus."""
        found = self._pattern.fullmatch(text)
        name = found.group("key") if found else None
        return self._keys.get(name) if self._keys and name else name or None


class MarkerReader:
    """Markers of one stream -> onsets on the LSL clock.

    Parameters
    ----------
    settings : MarkerSettings

    Attributes
    ----------
    lost : int
        Markers known to be lost: holes in the ``seq`` of JSON markers.

    Raises
    ------
    ConfigError
        ``pattern`` or ``ignore`` is no regular expression, or ``pattern`` has no group ``key``.
    """

    def __init__(self, settings: MarkerSettings = MarkerSettings()) -> None:  # noqa: B008 - frozen
        self.lost = 0
        self._names = _Names(settings)
        self._field = settings.field
        self._offset: float | None = None
        self._seq: int | None = None
        self._seen: deque[tuple[str, float]] = deque(maxlen=_REMEMBERED)

    def offset(self, offset: ClockOffset) -> None:
        """Take a measured clock offset of the marker stream. It holds for the markers that come after."""
        self._offset = settled(self._offset, offset)

    def restart(self) -> None:
        """Forget the clock offset and the numbering: the connection is new."""
        self._offset = self._seq = None

    def __call__(self, marker: Marker) -> Onset | Refused:
        """Read a marker."""
        text = marker.value.strip()
        if not math.isfinite(marker.stamp):
            return Refused(text, "garbage")
        if any(text == known and abs(marker.stamp - stamp) <= _SAME_INSTANT for known, stamp in self._seen):
            return Refused(text, "duplicate")
        self._seen.append((text, marker.stamp))
        name: str | None = text
        if text.startswith("{"):
            try:
                fields = json.loads(text)
            except (ValueError, RecursionError):
                return Refused(text, "garbage")
            self._count(fields.get("seq"))
            name = _scalar(fields.get(self._field, ""))
            if name == "":
                return Refused(text, "ignored")
        if name is None:
            return Refused(text, "garbage")
        name = _integer(name)
        if self._names.ignores(text) or self._names.ignores(name):
            return Refused(text, "ignored")
        key = self._names.key(name)
        if key is None:
            return Refused(text, "garbage")
        return Onset(key, marker.stamp + (self._offset or 0.0), text, marker.arrival)

    def _count(self, seq: object) -> None:
        if not isinstance(seq, int):
            return
        ahead = seq - self._seq if self._seq is not None else 1
        if ahead > 0:
            self.lost += ahead - 1
            self._seq = seq
        elif -_STRAGGLER <= ahead < 0 and self.lost:
            self.lost -= 1
        elif ahead < 0:
            self._seq = seq


class TriggerReader:
    """Rising bits of a trigger channel -> onsets.

    An edge is a sample at which a bit under the mask rises. Its code is the value one sample later, unless that is 0
    already: the lines of a parallel port need not switch together. An edge is therefore reported with the sample after
    it. What the channel shows at first is no edge. Where bits fall and the others stay for two samples, it may be
    the next code of a device that holds them or the end of another signal on the lines: garbage, not an onset.

    Parameters
    ----------
    trigger : TriggerSettings
    markers : MarkerSettings
        How a code names a stimulus.

    Raises
    ------
    ConfigError
        The mask is not between 1 and 2**31 - 1, or as :class:`MarkerReader`.

    Attributes
    ----------
    rounded : bool
        A value was too high for float32 to carry the mask's lowest bit. Such samples count as unchanged.
    """

    def __init__(self, trigger: TriggerSettings, markers: MarkerSettings = MarkerSettings()) -> None:  # noqa: B008 - frozen
        if not 0 < trigger.mask < 2**31:
            raise ConfigError("trigger.mask", got=trigger.mask, allowed="a bit mask from 1 to 0x7FFFFFFF, such as 0xFF")
        self._mask, self.rounded = trigger.mask, False
        self._highest = min(float(trigger.mask & -trigger.mask) * 2**24, 2.0**31)
        self._names = _Names(markers)
        self._state: int | None = None  # the masked value before the next sample
        self._edge: tuple[int, int, float, bool] | None = None  # code, position, time, of one sample ago; did bits rise

    def reset(self) -> None:
        """Forget the channel's state, for a break in the stream: what it shows next is no edge."""
        self._state = self._edge = None

    def flush(self, arrival: float) -> list[Onset | Refused]:
        """End an edge whose next sample will not come; its code is what it showed."""
        out: list[Onset | Refused] = []
        if self._edge is not None:
            self._end_edge(self._edge[0], arrival, out)
        return out

    def __call__(self, samples: Float32, position: int, times: Float64, arrival: float) -> list[Onset | Refused]:
        """Read the channel's next samples.

        Parameters
        ----------
        samples : ndarray, shape (n,), float32
            The channel as it came, unscaled. What is no 32 bit integer, such as NaN, counts as unchanged.
        position : int
            Ring position of the first.
        times : ndarray, shape (n,), float64
            LSL clock.
        arrival : float
            LSL clock.
        """
        if not len(samples):
            return []
        codes = self._codes(samples)
        if self._state is None:
            self._state = int(codes[0])
        changed = np.flatnonzero(codes[1:] != codes[:-1]) + 1
        if self._edge is None and not len(changed) and codes[0] == self._state:
            return []
        out: list[Onset | Refused] = []
        settling = -1  # the sample that completes an edge is none itself
        if self._edge is not None:
            settling = 0 if self._edge[3] else -1
            self._end_edge(int(codes[0]), arrival, out)
        for i in dict.fromkeys((0, *changed.tolist())):
            before, code = int(codes[i - 1]) if i else self._state, int(codes[i])
            if i == settling or code in (before, 0):
                continue
            rises = bool(code & ~before)
            self._edge = (code, position + i, float(times[i]), rises)
            if rises:
                settling = i + 1
            if i + 1 < len(codes):
                self._end_edge(int(codes[i + 1]), arrival, out)
        self._state = int(codes[-1])
        return out

    def _codes(self, samples: Float32) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        valid = np.abs(samples) < self._highest
        if valid.all():
            return np.rint(samples).astype(np.int64) & self._mask
        self.rounded = self.rounded or bool(((samples >= self._highest) & np.isfinite(samples)).any())
        codes = np.rint(np.where(valid, samples, 0)).astype(np.int64) & self._mask
        latest = np.maximum.accumulate(np.where(valid, np.arange(len(samples)), -1))
        return np.where(latest >= 0, codes[latest], self._state or 0)

    def _end_edge(self, code: int, arrival: float, out: list[Onset | Refused]) -> None:
        assert self._edge is not None
        first, position, time, rises = self._edge
        self._edge = None
        if not rises and code != first:
            return  # lines let go one after the other
        text = str(code or first)
        key = self._names.key(text)
        if self._names.ignores(text):
            out.append(Refused(text, "ignored"))
        elif key is None or not rises:
            out.append(Refused(text, "garbage"))
        else:
            out.append(Onset(key, time, text, arrival, position))


def _scalar(value: object) -> str | None:
    """Text of a JSON value; None where it is no text and no number."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _integer(text: str) -> str:
    return text.split(".")[0] if _INTEGER.fullmatch(text) else text
