"""The evaluator: queries, a gallery and a protocol in, figures out. It scores with the live gallery's own code.

Shapes: n queries, G candidates, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from streamdec.decode.gallery import Gallery, unit
from streamdec.decode.manifest import GalleryKind
from streamdec.intervals import binomial_interval
from streamdec.types import Float32, Float64

from . import metrics
from .data.store import Int64, Part

CURVE = (1, 2, 4, 10, 20, 40, 80)
K_WAYS = (2, 4, 10, 50, 100, 200)
_ORDER_SEED = 20200220


class Retrieval(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one set of queries.

    ``gallery`` whether candidates are stimuli, class centres or classes; ``repetitions`` epochs behind each query,
    None where it differs; ``top1``, ``top5`` shares, with Clopper-Pearson 95 % intervals; ``chance`` of top-1;
    ``median_rank`` 1-based; ``mean_average_precision`` mean of 1 / rank; ``k_way`` expected top-1 among k candidates,
    in closed form.
    """

    gallery: GalleryKind
    n_queries: int
    n_candidates: int
    repetitions: int | None
    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]
    chance: float
    median_rank: float
    mean_average_precision: float
    k_way: dict[str, float]


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What was tested on what.

    ``simulated`` whether the data were. ``protocol`` whether any session of the subject was fitted ("intra") or other
    subjects' alone ("left_out"); ``data`` fingerprints of what was fitted, ``test_data`` of what is tested.
    """

    method: str
    dataset: str
    subject: str
    protocol: Literal["intra", "left_out"]
    simulated: bool
    offline_only: str
    seed: int
    data: tuple[str, ...]
    test_data: str


class Evaluation(About, frozen=True, kw_only=True):
    """What ``streamdec-train evaluate`` writes. Nothing in it is transductive: every query is scored alone.

    ``averaged`` all repetitions of each stimulus; ``curve`` over nested repetition counts, as far as every stimulus
    reaches; ``single`` every epoch alone; ``auc`` per class, for two-class and other class galleries; ``class_centre``
    the averaged queries against the centres of their concepts (:func:`class_centres`), which is another task than
    finding the stimulus. ``multi_label`` the labels that a method predicts from them, where the run has features in a
    role "labels".
    """

    single: Retrieval
    averaged: Retrieval | None = None
    curve: tuple[Retrieval, ...] = ()
    auc: dict[str, float] = {}
    class_centre: Retrieval | None = None
    multi_label: metrics.MultiLabel | None = None


def about_fields(about: About) -> dict[str, Any]:
    """Fields of :class:`About` of a record, to make another record of."""
    return {field.name: getattr(about, field.name) for field in msgspec.structs.fields(About)}


def scores(queries: Float32, gallery: Gallery) -> Float32:
    """Cosines (n, G) float32 of queries (n, D), one by one as the live loop takes them."""
    out = np.empty((len(queries), len(gallery)), np.float32)
    for row, query in zip(out, queries, strict=True):
        row[:] = gallery.scores(query)
    return out


def retrieval(queries: Float32, gallery: Gallery, target: Int64, repetitions: int | None = None) -> Retrieval:
    """Score queries against a gallery.

    Parameters
    ----------
    queries : array of shape (n, D), float32
    gallery : Gallery
        Its kind names the protocol: ``stimulus``, ``class_centre``, ``class``.
    target : array of shape (n,), int
        Index of each query's own candidate.
    repetitions : int, optional
        Epochs behind each query.
    """
    return from_scores(scores(queries, gallery), target, gallery.kind, repetitions)


def from_scores(
    values: Float32 | Float64, target: Int64, kind: GalleryKind, repetitions: int | None = None
) -> Retrieval:
    """Figures of scores (n, G)."""
    n, n_candidates = values.shape
    rank = metrics.ranks(values, target)
    top1, top5 = metrics.top_k(rank, 1), metrics.top_k(rank, 5)
    return Retrieval(
        gallery=kind,
        n_queries=n,
        n_candidates=n_candidates,
        repetitions=repetitions,
        top1=top1,
        top1_interval=binomial_interval(top1, n),
        top5=top5,
        top5_interval=binomial_interval(top5, n),
        chance=1 / n_candidates,
        median_rank=float(np.median(rank)) + 1,
        mean_average_precision=metrics.mean_average_precision(rank),
        k_way={str(k): metrics.k_way(rank, n_candidates, k) for k in K_WAYS if k <= n_candidates},
    )


def class_centres(features: Float32, concepts: Sequence[str]) -> Gallery:
    """Make a gallery of concepts: the mean of the unit features of each one's images.

    The "classification" of NICE (Song et al. 2024, arXiv 2308.13234): the images must not be the stimuli themselves.

    Parameters
    ----------
    features : array of shape (n, D), float32
        One row per image, of any length.
    concepts : sequence of str
        Of each image; candidates stand in the order in which they first occur.
    """
    place: dict[str, int] = {}
    of = np.array([place.setdefault(concept, len(place)) for concept in concepts])
    sums = np.zeros((len(place), features.shape[1]))
    np.add.at(sums, of, unit(features))
    return Gallery(sums / np.bincount(of)[:, None], list(place), list(place), "class_centre")


def nested(epochs_of: Sequence[Int64], counts: Sequence[int] = CURVE) -> dict[int, list[Int64]]:
    """Choose the epochs of each repetition count: of one fixed shuffle per stimulus, the first 1, the first 2, ...

    Counts that some stimulus does not reach are left out; the smallest number of repetitions is added.
    """
    least = min((len(indices) for indices in epochs_of), default=0)
    shuffled = [np.random.default_rng([_ORDER_SEED, i]).permutation(indices) for i, indices in enumerate(epochs_of)]
    wanted = sorted({n for n in counts if n < least} | {least}) if least else []
    return {n: [indices[:n] for indices in shuffled] for n in wanted}


def curve(encode: Callable[[Float32], Float32], part: Part, gallery: Gallery, target: Int64) -> tuple[Retrieval, ...]:
    """Figures over repetitions: mean of the epochs, then one encoding, as the live loop adds repetitions up.

    Parameters
    ----------
    encode : callable
        (n, n_chans, n_times) -> (n, D).
    part : Part
        Every item of it has a candidate; those that were not shown make no query.
    gallery : Gallery
    target : array of shape (n_items,), int
        Candidate of each item.
    """
    epochs_of = part.of_item()
    shown = [i for i, indices in enumerate(epochs_of) if len(indices)]
    chosen = nested([epochs_of[i] for i in shown])
    return tuple(retrieval(encode(part.means(indices)), gallery, target[shown], n) for n, indices in chosen.items())


def class_auc(values: Float32, target: Int64, labels: Sequence[str]) -> dict[str, float]:
    """Area under the ROC curve of each class against the others, by its score minus the best other one.

    With two classes both figures are the same, and with one-hot targets they are the regression output's own.
    """
    out: dict[str, float] = {}
    for i, label in enumerate(labels):
        others = np.delete(values, i, axis=1).max(axis=1)
        out[label] = metrics.auc(values[:, i].astype(np.float64) - others, target == i)
    return out
