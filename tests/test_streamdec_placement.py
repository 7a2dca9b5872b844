"""Stamps and a counter channel together say where samples belong."""

from __future__ import annotations

import numpy as np
import pytest

from streamdec.acquire.clock import ClockSettings
from streamdec.acquire.counter import CounterSettings
from streamdec.acquire.placement import Placement
from streamdec.errors import ConfigError
from streamdec.types import Chunk, StreamInfo

SFREQ = 250.0
EEG = StreamInfo("amp", "EEG", 2, SFREQ, "float32", ch_names=("Cz", "n"))
COUNTER = CounterSettings("n", 256)


def positions(place: Placement, kept: np.ndarray, stamps: np.ndarray) -> list[int]:
    """Positions of samples that were numbered ``kept`` when taken, in packets of 25."""
    data = np.stack([np.zeros(len(kept)), kept % 256]).astype(np.float32)
    found: list[int] = []
    for start in range(0, len(kept), 25):
        came = slice(start, start + 25)
        for run in place(Chunk(data[:, came], stamps[came], float(stamps[came][-1]))):
            found += range(run.position, run.position + len(run.times))
    return found


@pytest.mark.parametrize("counted", [True, False])
def test_the_counter_tells_what_bursts_of_stamps_hide(rng: np.random.Generator, counted: bool) -> None:
    """A radio link: packets stamped together, up to 60 ms late, single samples lost on the way."""
    taken = np.arange(5000)
    kept = np.setdiff1d(taken, np.arange(1000, 4000, 300))
    stamps = 50.0 + np.repeat(kept[24::25] / SFREQ + rng.uniform(0.0, 0.06, len(kept) // 25), 25)
    kept = kept[: len(stamps)]
    place = Placement(EEG, SFREQ, ClockSettings(), COUNTER if counted else None)
    found = positions(place, kept, np.maximum.accumulate(stamps))
    assert (found == kept.tolist()) == counted
    assert not place.uncounted


def test_a_stream_that_was_found_again_counts_from_where_it_likes() -> None:
    place = Placement(EEG, SFREQ, ClockSettings(), COUNTER)
    first = positions(place, np.arange(500), 5 + np.arange(500) / SFREQ)
    place.restart("found again")
    again = positions(place, np.arange(77, 577), 905 + np.arange(500) / SFREQ)
    assert first + again == list(range(1000))
    assert (place.clock.segments, place.clock.gaps) == (2, 0)


def test_a_counter_channel_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="counter channel; got 'count'; allowed: Cz, n"):
        Placement(EEG, SFREQ, ClockSettings(), CounterSettings("count"))
