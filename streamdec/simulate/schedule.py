"""What is shown when: rapid serial visual presentation as in THINGS-EEG2 (Gifford et al. 2022).

Images follow each other every 200 ms in sequences of 20, with a blank before and a pause after each; 6 of 56 sequences
hold one catch image that the subject looks out for.
"""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..signal.rate import Rate
from .world import Split

Int64 = npt.NDArray[np.int64]

TARGET = 99999
"""Code of the catch image in the official trigger channel."""
CATCH = "catch"
"""Marker of a catch image."""


class Timing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When images follow each other.

    ``soa`` stimulus onset asynchrony, s; ``per_sequence`` images in a sequence; ``before`` blank before and ``after``
    pause (response and inter-trial) after a sequence, s; ``targets`` share of the sequences with a catch image.
    """

    soa: float = 0.2
    per_sequence: int = 20
    before: float = 0.75
    after: float = 2.75
    targets: float = 6 / 56


class Schedule(msgspec.Struct, frozen=True, eq=False):
    """The presentations of one run.

    ``samples`` (n,) onsets, samples from the run's start at ``sfreq`` Hz, ascending; ``codes`` (n,) what is shown: 1
    for the split's first image, 2 for the second, ..., or TARGET; ``n_times`` samples of the run.
    """

    split: Split
    sfreq: float
    samples: Int64
    codes: Int64
    n_times: int


def order(
    images: npt.ArrayLike, *, repetitions: int = 1, seed: int | tuple[int, ...] = 0, timing: Timing | None = None
) -> Int64:
    """Put images in random order ``repetitions`` times, one round after the other, with catch images among them.

    Parameters
    ----------
    images : array_like of int, shape (n,)
        0-based indices, each once.
    repetitions : int
        Presentations of each image.
    seed : int or tuple of int
        Draws order and catch images.
    timing : Timing, optional
        THINGS-EEG2's when omitted; its sequences get at most one catch image each.

    Returns
    -------
    array of shape (n_presentations,), int64
        Codes: 1 for image 0, 2 for image 1, ..., or TARGET. No image follows itself.

    Raises
    ------
    ConfigError
        When there is nothing to show.
    """
    timing = timing or Timing()
    shown = np.asarray(images, np.int64)
    if shown.ndim != 1 or not len(shown) or repetitions < 1:
        raise ConfigError(
            "rsvp", got=f"{shown.size} images x {repetitions}", allowed="at least one image, shown at least once"
        )
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(shown + 1) for _ in range(repetitions)]
    for last, following in itertools.pairwise(rounds):
        if last[-1] == following[0]:
            following[[0, -1]] = following[[-1, 0]]
    codes = np.concatenate(rounds)

    size = timing.per_sequence
    n_targets = round(timing.targets * len(codes) / (size - timing.targets))
    n_sequences = -(-(len(codes) + n_targets) // size)
    holders = np.sort(rng.choice(n_sequences, min(n_targets, n_sequences), replace=False))
    slots = np.minimum(holders * size + rng.integers(0, size, len(holders)), len(codes) + len(holders) - 1)
    return np.insert(codes, slots - np.arange(len(slots)), TARGET)


def rsvp(
    split: Split,
    images: npt.ArrayLike,
    *,
    repetitions: int = 1,
    seed: int | tuple[int, ...] = 0,
    sfreq: float = 1000.0,
    timing: Timing | None = None,
) -> Schedule:
    """Show each image ``repetitions`` times: all of them in random order, then all again in another.

    Parameters
    ----------
    split : {"train", "test"}
        Where the images are from.
    images : array_like of int, shape (n,)
        0-based indices into the split, each once.
    repetitions : int
        Presentations of each image.
    seed : int or tuple of int
        Draws order and catch images.
    sfreq : float
        Rate of the schedule, Hz.
    timing : Timing, optional
        THINGS-EEG2's when omitted.

    Returns
    -------
    Schedule
        No image follows itself. The last sequence may be shorter than the others.

    Raises
    ------
    ConfigError
        When there is nothing to show.
    """
    timing = timing or Timing()
    codes = order(images, repetitions=repetitions, seed=seed, timing=timing)
    rate = Rate(sfreq)
    sequence, place = np.divmod(np.arange(len(codes)), timing.per_sequence)
    length = timing.before + timing.per_sequence * timing.soa + timing.after
    seconds = sequence * length + timing.before + place * timing.soa
    samples = np.array([rate.to_samples(s) for s in seconds], np.int64)
    return Schedule(split, sfreq, samples, codes, rate.to_samples(float(seconds[-1]) + timing.soa + timing.after))
