"""Figures of retrieval, of two classes, of many labels, and of representations.

Ranks are 0-based; of equal scores the lowest index comes first. Shapes: n queries, G candidates, L labels.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata, spearmanr

from streamdec.types import Bool, Float64

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


def auc(scores: npt.NDArray[Any], positive: Bool) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties half; NaN without both kinds."""
    n_positive = int(np.sum(positive))
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return math.nan
    place = rankdata(scores)
    return float((place[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def average_precision(scores: npt.NDArray[Any], positive: Bool) -> float:
    """Mean precision at the places of the positives, of equal scores all at once; NaN without positives.

    ``scores`` (n,), ``positive`` (n,) bool.
    """
    if not np.any(positive):
        return math.nan
    order = np.argsort(-np.asarray(scores), kind="stable")
    hits = np.cumsum(np.asarray(positive)[order])
    last = np.append(np.diff(np.asarray(scores)[order]) != 0, True)  # of a run of equal scores
    precision = hits[last] / (np.flatnonzero(last) + 1)
    return float(np.sum(np.diff(hits[last], prepend=0) * precision) / hits[-1])


class MultiLabel(msgspec.Struct, frozen=True):
    """Figures of CLIP-MUSED (Zhou et al. 2024, arXiv 2402.08994), means over ``n_labels`` that could be measured.

    ``mean_average_precision`` over labels that have positives, ``auc`` over labels that have both kinds; ``hamming``
    share of wrong decisions, over all labels.
    """

    mean_average_precision: float
    auc: float
    hamming: float
    n_labels: int


def multi_label(scores: npt.NDArray[np.floating[Any]], labels: Bool, threshold: float = 0.5) -> MultiLabel:
    """Score multi-label decisions.

    Parameters
    ----------
    scores : array of shape (n, L)
        Probabilities, or anything that ``threshold`` cuts.
    labels : array of shape (n, L), bool
    threshold : float
        A label is given from this score on.
    """
    precisions = np.array([average_precision(scores[:, i], labels[:, i]) for i in range(labels.shape[1])])
    areas = np.array([auc(scores[:, i], labels[:, i]) for i in range(labels.shape[1])])
    measured, both = np.isfinite(precisions), np.isfinite(areas)
    return MultiLabel(
        float(precisions[measured].mean()) if measured.any() else math.nan,
        float(areas[both].mean()) if both.any() else math.nan,
        float(np.mean((scores >= threshold) != labels)),
        int(measured.sum()),
    )


def dissimilarity(embeddings: npt.NDArray[np.floating[Any]]) -> Float64:
    """Representational dissimilarity matrix: 1 - cosine of every pair, (n, D) -> (n, n)."""
    wide = np.asarray(embeddings, np.float64)
    rows = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    out: Float64 = 1 - rows @ rows.T
    return out


def rsa(one: npt.NDArray[np.floating[Any]], other: npt.NDArray[np.floating[Any]]) -> float:
    """Representational similarity (Kriegeskorte et al. 2008, doi:10.3389/neuro.06.004.2008).

    Spearman correlation of the upper triangles of two dissimilarity matrices (n, n); NaN below three items.
    """
    upper = np.triu_indices(len(one), 1)
    if len(one) < 3:
        return math.nan
    return float(spearmanr(one[upper], other[upper]).statistic)
