"""Figures of retrieval and of two-class decoding. Ranks are 0-based; of equal scores the lowest index comes first.

Shapes: n queries, G candidates.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, rankdata

from streamdec.types import Bool

from .data.store import Int64


def ranks(scores: npt.NDArray[np.floating[Any]], target: Int64) -> Int64:
    """Place of each query's own candidate.

    Parameters
    ----------
    scores : array of shape (n, G)
        Higher is better.
    target : array of shape (n,), int
        Index of the true candidate.

    Returns
    -------
    array of shape (n,), int64
        0 for the first place; the tie rule is the live gallery's.
    """
    own: npt.NDArray[np.floating[Any]] = np.take_along_axis(scores, target[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < target[:, None]
    out: Int64 = np.sum((scores > own) | ((scores == own) & earlier), axis=1).astype(np.int64)
    return out


def top_k(rank: Int64, k: int) -> float:
    """Share of the queries whose own candidate is among the first ``k`` (R@k); ``rank`` (n,), 0-based."""
    return float(np.mean(rank < k))


def k_way(rank: Int64, n_candidates: int, k: int) -> float:
    """Compute the expected top-1 among the own candidate and k - 1 others drawn without replacement.

    Parameters
    ----------
    rank : array of shape (n,), int
        0-based, among all candidates.
    n_candidates : int
        G.
    k : int
        2..G.
    """
    below = n_candidates - 1 - np.asarray(rank)
    ways = [math.comb(int(b), k - 1) for b in below]
    return float(np.mean(ways) / math.comb(n_candidates - 1, k - 1))


def mean_average_precision(rank: Int64) -> float:
    """Mean over queries of 1 / (1-based rank): mAP with one relevant candidate each."""
    return float(np.mean(1.0 / (np.asarray(rank) + 1)))


def binomial_interval(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share of ``n`` queries."""
    hits = round(share * n)
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


def auc(scores: npt.NDArray[Any], positive: Bool) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties half; NaN without both kinds."""
    n_positive = int(np.sum(positive))
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return math.nan
    place = rankdata(scores)
    return float((place[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
