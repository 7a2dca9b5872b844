"""The epochs of a recording, cut as the live loop cuts them."""

from __future__ import annotations

from streamdec.acquire.inlet import Inlet
from streamdec.intake import IntakeSettings, cutting
from streamdec.signal.spec import Signal
from streamdec.types import Ended, Epoch


def cut(inlet: Inlet, signal: Signal, settings: IntakeSettings) -> tuple[list[Epoch], list[Ended]]:
    """Cut every epoch: those that there are, and the onsets without one."""
    made = list(cutting(inlet, signal, settings))
    return [each for each in made if isinstance(each, Epoch)], [each for each in made if isinstance(each, Ended)]
