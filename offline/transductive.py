"""Scores that use the whole test set at once: they cannot be had live, and never stand in an :class:`Evaluation`.

Each corrects a fault of cosine retrieval by looking at all queries together: candidates that are near to everything
(CSLS), candidates taken twice (Sinkhorn), directions in which all queries vary (whitening). Published figures that
used one of them are not comparable with those that did not.

Shapes: n queries, G candidates, D embedding.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from streamdec.decode.gallery import Gallery, unit
from streamdec.types import Float32, Float64

from . import evaluate
from .data.store import Int64
from .evaluate import About, Retrieval


class Transductive(About, frozen=True, kw_only=True):
    """Figures of the same queries, all repetitions averaged, without and with the test set's help.

    ``alone`` every query on its own, as in an evaluation; ``csls``, ``sinkhorn``, ``whitened`` as the functions of
    this module.
    """

    alone: Retrieval
    csls: Retrieval
    sinkhorn: Retrieval
    whitened: Retrieval


def csls(scores: Float32, neighbours: int = 10) -> Float64:
    """Cross-domain similarity local scaling (Conneau et al. 2018, arXiv 1710.04087): 2 S - r_query - r_candidate.

    Parameters
    ----------
    scores : array of shape (n, G)
        Cosines.
    neighbours : int
        r is the mean of the highest ``neighbours`` of a row, and of a column; at most as many as there are.
    """
    wide = scores.astype(np.float64)
    of_query = _highest(wide, neighbours).mean(axis=1)
    of_candidate = _highest(wide.T, neighbours).mean(axis=1)
    out: Float64 = 2 * wide - of_query[:, None] - of_candidate
    return out


def sinkhorn(scores: Float32, temperature: float = 0.05, iterations: int = 100) -> Float64:
    """Log of a transport plan in which all candidates are taken alike (Cuturi 2013, arXiv 1306.0895).

    It presumes that every candidate was shown equally often, which only the experimenter knows.

    Parameters
    ----------
    scores : array of shape (n, G)
        Cosines.
    temperature : float
        Of exp(S / temperature), which rows and columns are scaled of; ours, as published figures name none.
    iterations : int
        Pairs of scalings; columns sum to n / G exactly, rows to 1 as far as it got.
    """
    plan = scores.astype(np.float64) / temperature
    n, n_candidates = plan.shape
    for _ in range(iterations):
        plan = plan - logsumexp(plan, axis=1, keepdims=True)
        plan = plan - logsumexp(plan, axis=0, keepdims=True) + np.log(n / n_candidates)
    return plan


def whitened(queries: Float32, shrinkage: float = 0.6) -> Float32:
    """Whiten queries by their own covariance: (n, D) -> (n, D), unit length.

    (1 - shrinkage) of the covariance and ``shrinkage`` of its mean variance on the diagonal, as SATTC's command line
    has it [inferred: that queries are centred first]; the square root is the symmetric one, which stays closest to the
    space the candidates are in.
    """
    rows = unit(queries).astype(np.float64)
    centred = rows - rows.mean(axis=0)
    # By the singular values: in the directions without variance, of which D > n leaves many, the diagonal is all.
    _, s, directions = np.linalg.svd(centred, full_matrices=False)
    variance = s**2 / len(rows)
    floor = shrinkage * variance.sum() / rows.shape[1]
    outside = 1 / np.sqrt(floor)
    gain = 1 / np.sqrt((1 - shrinkage) * variance + floor) - outside
    return unit(outside * centred + ((centred @ directions.T) * gain) @ directions)


def transductive(
    about: About, queries: Float32, gallery: Gallery, target: Int64, repetitions: int | None
) -> Transductive:
    """Make the record of queries (n, D) with their candidates (n,)."""
    alone = evaluate.scores(queries, gallery)

    def figures(values: Float32 | Float64) -> Retrieval:
        return evaluate.from_scores(values, target, gallery.kind, repetitions)

    return Transductive(
        **evaluate.about_fields(about),
        alone=figures(alone),
        csls=figures(csls(alone)),
        sinkhorn=figures(sinkhorn(alone)),
        whitened=figures(evaluate.scores(whitened(queries), gallery)),
    )


def _highest(rows: Float64, k: int) -> Float64:
    n = rows.shape[1]
    k = min(k, n)
    return np.partition(rows, n - k, axis=1)[:, n - k :]
