"""A session of the small bundle, kept in its folder: by the recorder's own process, without LSL and in no time."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
from small_bundle import MARKERS, eeg_info, events, presentation

from streamdec.config import Config
from streamdec.decode import bundle as bundles
from streamdec.serve import engines, session
from streamdec.session import MemoryOutlet
from streamdec.sessions.log import Log
from streamdec.sessions.minutes import Kept, Minutes
from streamdec.types import Chunk, Connection, Event

START = 1000.0
LOST = slice(2010, 2060)
"""Samples that never came."""
FLAT = 2
"""Row of a channel that is flat for some seconds."""


def script(n_events: int) -> list[Event]:
    """What comes in: also a channel that is flat for a while, and a gap."""
    data, onsets, keys = presentation(n_events, soa=0.5, seed=3)
    data[FLAT, 3000:4000] = 1.0
    played = events(data, onsets, keys, itertools.cycle((10, 3, 25)), START)
    whole: list[Event] = [Connection("eeg", "connected", START, info=eeg_info())]
    for event in played:
        if isinstance(event, Chunk):
            first = round((event.stamps[0] - START) * 250)
            kept = [k for k in range(len(event.stamps)) if not LOST.start <= first + k < LOST.stop]
            if kept:
                whole.append(Chunk(np.ascontiguousarray(event.data[:, kept]), event.stamps[kept], event.arrival))
        else:
            whole.append(event)
    return whole


def keep(parent: Path, bundle: Path, n_events: int = 80) -> Path:
    """Run a session over the script; its folder."""
    opened, config = bundles.read(bundle), Config(bundle=str(bundle))
    now = START

    def clock() -> float:
        return now

    log = Log(lambda line: None)
    log.session = "0123456789abcdef0123456789abcdef"
    minutes = Minutes(_Numbered(log.session), log)
    eeg = eeg_info()
    kept = Kept(parent, log.session, opened, eeg, MARKERS, msgspec.json.encode(config), log, clock)
    minutes.keep(kept)
    live = session(opened, eeg, minutes, config, engines(opened, config), clock, kept.recorder)
    live.start(eeg, MARKERS)
    for event in script(n_events):
        now = event.arrival + 0.004
        live.step(event)
    live.close("stopped")
    kept.close()
    return kept.path


class _Numbered(MemoryOutlet):
    """Numbers the messages and gives their headers, as the publisher does."""

    def __init__(self, session: str) -> None:
        super().__init__()
        self._session = session
        self._seqs: dict[str, int] = {}

    def publish(self, message, payloads=()):  # type: ignore[no-untyped-def]
        seq = self._seqs[message.topic] = self._seqs.get(message.topic, 0) + 1
        super().publish(message, payloads)
        return msgspec.json.encode(msgspec.structs.replace(message, session=self._session, seq=seq))
