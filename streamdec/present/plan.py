"""What is shown when, in frames of a screen: order and timing of :mod:`streamdec.simulate.schedule`."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from ..errors import ConfigError
from ..simulate.schedule import Int64, Timing, order

_OFF = 0.005  # relative: a screen of 59.94 Hz makes 0.1 s last 0.1001 s


class PresentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How images are presented.

    ``on`` seconds that an image stays; ``timing`` when they follow each other, and the share of sequences with a catch
    image; ``repetitions`` presentations of each image; ``block`` sequences between breaks; ``rest`` seconds that a
    break lasts, None: until the space bar is pressed; ``seed`` draws the order; ``catch`` file of the catch image, ""
    for one that is drawn; ``size``, ``screen``, ``patch``, ``pace`` as in :class:`.screen.PygameScreen`; ``name`` of
    the marker stream; ``plain`` markers are plain texts.
    """

    on: float = 0.1
    timing: Timing = Timing()
    repetitions: int = 1
    block: int = 56
    rest: float | None = None
    seed: int = 0
    catch: str = ""
    size: float = 0.5
    screen: int = 0
    patch: str = "bottom left"
    pace: float = 0.0
    name: str = "streamdec-present"
    plain: bool = False

    def __post_init__(self) -> None:
        timing = self.timing
        if not 0 < self.on < timing.soa < math.inf:
            raise ConfigError("on", got=f"{self.on:g} s", allowed=f"above 0, below the SOA of {timing.soa:g} s")
        if not (0 < self.size <= 1):
            raise ConfigError("size", got=self.size, allowed="above 0, at most 1: the screen's height")
        if not 0 <= timing.targets <= 1:
            raise ConfigError("catches", got=timing.targets, allowed="0 to 1: a share of the sequences")
        if min(self.repetitions, self.block, timing.per_sequence) < 1:
            got = f"{self.repetitions}, {self.block}, {timing.per_sequence}"
            raise ConfigError("repetitions, block, sequence", got=got, allowed="1 or more each")
        pauses = {"before": timing.before, "after": timing.after, "rest": self.rest or 0.0, "pace": self.pace}
        for what, value in pauses.items():
            if not 0 <= value < math.inf:
                raise ConfigError(what, got=value, allowed="0 or more")


class Frames(msgspec.Struct, frozen=True):
    """The timing in frames: an image is there for ``on`` of ``soa``; ``before`` and ``after`` a sequence is a blank."""

    on: int
    soa: int
    before: int
    after: int


def frames(settings: PresentSettings, refresh: float) -> Frames:
    """Count the frames of a screen that refreshes at ``refresh`` Hz.

    Raises
    ------
    ConfigError
        ``on`` or the SOA is no whole number of frames.
    """
    timing = settings.timing
    on, soa = _whole("on", settings.on, refresh), _whole("soa", timing.soa, refresh)
    return Frames(on, soa, round(timing.before * refresh), round(timing.after * refresh))


def sequences(n_images: int, settings: PresentSettings) -> list[Int64]:
    """List each sequence's codes: 1 for the first image, 2 for the second, ..., or TARGET."""
    codes = order(np.arange(n_images), repetitions=settings.repetitions, seed=settings.seed, timing=settings.timing)
    size = settings.timing.per_sequence
    return [codes[first : first + size] for first in range(0, len(codes), size)]


def _whole(what: str, seconds: float, refresh: float) -> int:
    n = round(seconds * refresh)
    if n >= 1 and abs(n / refresh - seconds) <= _OFF * seconds:
        return n
    below = max(1, int(seconds * refresh))
    near = " or ".join(f"{k / refresh:.4f} s ({k} frame{'s' * (k > 1)})" for k in (below, below + 1))
    raise ConfigError(
        what,
        got=f"{seconds:g} s: {seconds * refresh:.2f} frames",
        allowed=f"whole frames of this screen's {refresh:.2f} Hz, such as {near}",
        do="take one of these, or set the screen to another rate",
    )
