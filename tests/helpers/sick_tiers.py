"""Tiers for the tests of the processes: what they do stands in the stimulus key of each request.

``fast`` answers at once. ``sleep:S`` sleeps S seconds in each unit. ``hang`` never comes back, and hears nothing.
``die`` ends the process as a crash does, ``exit`` with an exception of no kind we know, ``eat`` by memory.
``epoch`` refuses a request without its epoch. ``refuse`` raises what a tier raises. ``dirty`` answers with what steers
a terminal, ``huge`` with a picture beyond all limits. A worker process opens them by name, in place of the real ones.
"""

from __future__ import annotations

import os
import resource
import signal
import time
import zlib
from collections.abc import Callable

import numpy as np

from streamdec.decode.generate.generator import OpenGenerator
from streamdec.decode.generate.job import LADDER, Kind, Request, Result, Tier
from streamdec.decode.generate.tiers.base import Progress, Worked, made_up
from streamdec.decode.generate.tiers.query import vector
from streamdec.errors import EngineError

DIM = 12
UNITS = 4
PNG = b"\x89PNG\r\n\x1a\n"


class SickTier:
    """One tier that does as it is told."""

    def __init__(self, kind: Kind, name: Tier) -> None:
        self.name = name
        self.units = (1, UNITS)
        self.example = made_up(kind, DIM)

    def warm_up(self) -> None:
        """Nothing to warm."""

    def run(
        self, request: Request, units: int, deadline: float, clock: Callable[[], float], progress: Progress
    ) -> Result:
        """Do what the key says."""
        vector(request, DIM)
        what, _, how = request.key.partition("/")[0].partition(":")
        if what == "hang":
            while True:
                time.sleep(60)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "exit":
            raise ZeroDivisionError("one of no kind we know")
        if what == "eat":
            # A limit of its own, so that it meets its end and not the machine's.
            resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
            np.ones(1 << 40, np.uint8)
        if what == "epoch" and request.epoch is None:
            raise EngineError("the request", got="no epoch")
        if what == "refuse":
            raise EngineError("the model", got="a bad day")
        result = Result(wanted=UNITS)
        for done in range(1, units + 1):
            if clock() >= deadline:
                break
            if what == "sleep":
                time.sleep(float(how))
            result = self._result(request, what, done)
            if not progress(result, done):
                break
        return result

    def _result(self, request: Request, what: str, done: int) -> Result:
        if request.kind == "caption":
            text = "a \x1b[31mred\x07 thing\n" if what == "dirty" else f"{request.key} {zlib.crc32(request.embedding)}"
            return Result(text=text, units=done, wanted=UNITS)
        size = (9 << 20) if what == "huge" else 1000
        return Result(image=PNG + bytes(size), units=done, wanted=UNITS)


def open_tiers(generator: OpenGenerator, kind: Kind, device: str, threads: int) -> list[Worked]:
    """All tiers of a kind that the generator names."""
    return [SickTier(kind, name) for name in LADDER[kind][1:] if getattr(generator.manifest, name) is not None]


def open_slowly(generator: OpenGenerator, kind: Kind, device: str, threads: int) -> list[Worked]:
    """As :func:`open_tiers`, for ever."""
    time.sleep(600)
    return []


def open_pictures_alone(generator: OpenGenerator, kind: Kind, device: str, threads: int) -> list[Worked]:
    """As :func:`open_tiers` for pictures, as :func:`open_slowly` for captions."""
    return (open_slowly if kind == "caption" else open_tiers)(generator, kind, device, threads)


def open_none(generator: OpenGenerator, kind: Kind, device: str, threads: int) -> list[Worked]:
    """A model that is not there."""
    raise EngineError("model some/model is not on this machine", do="bring it")
