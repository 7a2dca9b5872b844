"""What the tiers cost on the workers that run them: quantiles of the newest jobs, kept in a file between sessions.

A job of n units (tokens, diffusion steps; 1 for one-pass tiers) costs ``first + (n - 1) * each`` seconds: ``first``
holds the first unit and all that goes before and after the units, such as the caption that a picture is drawn by;
``each`` is one further unit.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ...errors import ConfigError, EngineError
from .job import Tier

SCHEMA = 1
_DOUBT = 0.995
_BUSY = 2.0  # times its warm-up that a job may have cost in a session before


class Cost:
    """What one tier costs on one device: a quantile over its newest jobs.

    Without a measurement it is 0: the tier is tried, and the ladder's guard stands in when it takes too long. The
    first ones come from the worker's warm-up.

    Parameters
    ----------
    quantile : float
        Above 0, up to 1, of each of the two parts: the smallest value that so large a share of the measurements does
        not exceed. Their sum errs to the dear side.
    newest : int
        Measurements that count.
    first, each : sequence of float
        Measurements to begin with, oldest first, seconds.
    """

    def __init__(
        self, quantile: float = 0.95, newest: int = 64, first: Sequence[float] = (), each: Sequence[float] = ()
    ) -> None:
        if not 0 < quantile <= 1:
            raise ConfigError("quantile of the costs", got=quantile, allowed="above 0, up to 1")
        if newest < 1:
            raise ConfigError("measurements of a cost", got=newest, allowed="1 or more")
        self.quantile = quantile
        self._first = deque(first, newest)
        self._each = deque(each, newest)
        self._summarise()

    @property
    def first(self) -> tuple[float, ...]:
        """Measured seconds of the first unit and all around the units, oldest first."""
        return tuple(self._first)

    @property
    def each(self) -> tuple[float, ...]:
        """Measured seconds of each further unit, oldest first."""
        return tuple(self._each)

    def seconds(self, units: int) -> float:
        """Tell how long a job of ``units`` takes."""
        return self._quantiles[0] + (units - 1) * self._quantiles[1]

    def units_within(self, seconds: float, most: int) -> int:
        """Tell how many units, ``most`` at most, are done in ``seconds``: 0 where not even one is."""
        if self.seconds(most) <= seconds:
            return most
        first, each = self._quantiles
        if first > seconds:
            return 0
        units = min(most, 1 + math.floor((seconds - first) / each))
        return units if self.seconds(units) <= seconds else units - 1  # the division may round up

    def add(self, seconds: float, units: int = 1, each: float | None = None) -> None:
        """Learn from one job, from its start to its answer.

        Parameters
        ----------
        seconds : float
            The whole job.
        units : int
            That it did, 1 or more.
        each : float, optional
            Seconds between its units, where that is known; else the job is split as those before it, or evenly.
        """
        if units > 1:
            if each is None:
                expected = self.seconds(units)
                each = self._quantiles[1] * seconds / expected if expected else seconds / units
            self._each.append(each)
            seconds = max(0.0, seconds - (units - 1) * each)
        else:
            self._each = _doubted(self._each)  # not measured by this job
        self._first.append(seconds)
        self._summarise()

    def warmed(self, runs: Sequence[tuple[float, int, float | None]]) -> None:
        """Learn from a worker's warm-up: the first measurements, or a bound on those of the sessions before.

        Another session's busy hour would keep a tier out for minutes that runs well now. So nothing of it counts for
        more than twice the warm-up's dearest run; a few dear jobs teach it anew.

        Parameters
        ----------
        runs : sequence of (float, int, float or None)
            Each as :meth:`add` takes it.
        """
        now = Cost(1.0, max(1, len(runs)))
        for seconds, units, each in runs:
            now.add(seconds, units, each)
        if not self._first:
            self._first.extend(now.first)
            self._each.extend(now.each)
        elif runs:
            self._first = _capped(self._first, _BUSY * max(now.first))
            self._each = _capped(self._each, _BUSY * max(now.each, default=math.inf))
        self._summarise()

    def doubt(self) -> None:
        """Believe the measurements a little less: this estimate kept its tier out.

        What never runs is never measured, so one bad hour would keep a tier out for good. Half is left after 139
        times; then it is tried again, and a few dear jobs keep it out again.
        """
        self._first = _doubted(self._first)
        self._each = _doubted(self._each)
        self._summarise()

    def _summarise(self) -> None:
        self._quantiles = (_quantile(self._first, self.quantile), _quantile(self._each, self.quantile))


def _doubted(measurements: deque[float]) -> deque[float]:
    return deque([_DOUBT * value for value in measurements], measurements.maxlen)


def _capped(measurements: deque[float], most: float) -> deque[float]:
    return deque([min(value, most) for value in measurements], measurements.maxlen)


def _quantile(measurements: deque[float], quantile: float) -> float:
    ordered = sorted(measurements)
    return ordered[math.ceil(quantile * len(ordered)) - 1] if ordered else 0.0


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tier: Tier
    device: str
    host: str
    first: list[float]
    each: list[float]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    generator: str
    costs: list[_Entry]


class Costs:
    """The costs of a generator's tiers, by device and host, from session to session.

    A file that is not there, damaged, or of another generator is as none: the costs are measured again.

    Parameters
    ----------
    folder : Path, optional
        Where the files are, one per generator; without it nothing is kept.
    generator : str
        sha256 of the generator.
    quantile, newest
        As :class:`Cost` has them.
    """

    def __init__(self, folder: Path | None, generator: str, quantile: float = 0.95, newest: int = 64) -> None:
        self.path = folder / f"{generator[:16]}.json" if folder is not None else None
        self.generator = generator
        self._quantile, self._newest = quantile, newest
        self._costs = {
            (entry.tier, entry.device, entry.host): Cost(quantile, newest, entry.first, entry.each)
            for entry in self._read()
        }

    def of(self, tier: Tier, device: str, host: str) -> Cost:
        """Give the cost of a tier on a device of a host, always the same object."""
        return self._costs.setdefault((tier, device, host), Cost(self._quantile, self._newest))

    def items(self) -> list[tuple[tuple[Tier, str, str], Cost]]:
        """List what is known, by tier, device and host."""
        return sorted(self._costs.items(), key=lambda item: item[0])

    def save(self) -> None:
        """Write the file, whole or not at all.

        Raises
        ------
        EngineError
            It cannot be written.
        """
        if self.path is None:
            return
        entries = [_Entry(*key, list(cost.first), list(cost.each)) for key, cost in self._costs.items()]
        partial = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.encode(_File(SCHEMA, self.generator, entries)))
            partial.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise EngineError(f"{self.path} cannot be written", got=error.strerror) from error

    def _read(self) -> list[_Entry]:
        if self.path is None:
            return []
        try:
            file = msgspec.json.decode(self.path.read_bytes(), type=_File)
        except (OSError, msgspec.DecodeError):
            return []
        sound = all(value >= 0 for entry in file.costs for value in (*entry.first, *entry.each))  # JSON has no NaN
        return file.costs if sound and (file.schema, file.generator) == (SCHEMA, self.generator) else []
