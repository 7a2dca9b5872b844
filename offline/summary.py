"""Means over subjects and seeds, and how much they vary over each.

One rule: a subject's figure is the mean over its seeds; the mean is over subjects, and so is the first deviation. The
second deviation is that of the mean over subjects from seed to seed, which is what a single published number hides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np


class Mean(msgspec.Struct, frozen=True):
    """``value`` the mean over subjects; ``over_subjects``, ``over_seeds`` sample deviations, None for fewer than two.

    ``n_subjects``, ``n_seeds`` that are in it; ``n_runs`` figures in all. Seeds that lack a subject do not count in
    ``over_seeds``.
    """

    value: float
    over_subjects: float | None
    over_seeds: float | None
    n_subjects: int
    n_seeds: int
    n_runs: int


def summarise(values: Mapping[tuple[str, int], float]) -> Mean:
    """Summarise figures by (subject, seed); at least one."""
    subjects = sorted({subject for subject, _ in values})
    seeds = sorted({seed for _, seed in values})
    of_subject = [np.mean([v for (subject, _), v in values.items() if subject == one]) for one in subjects]
    whole = [seed for seed in seeds if all((subject, seed) in values for subject in subjects)]
    of_seed = [np.mean([values[subject, seed] for subject in subjects]) for seed in whole]
    return Mean(
        float(np.mean(of_subject)), _deviation(of_subject), _deviation(of_seed), len(subjects), len(seeds), len(values)
    )


def _deviation(values: list[np.floating[Any]]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
