"""Intervals around what was counted."""

from __future__ import annotations

from scipy.stats import beta


def binomial_interval(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share of ``n`` queries.

    It takes them as independent, which repetitions of the same few stimuli are not quite.
    """
    hits = round(share * n)
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return low, high
