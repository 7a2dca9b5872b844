"""How well images are found, with intervals: from the similarities of held-out queries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..decode.evidence import calibrate, softmax
from ..decode.manifest import Accuracy
from ..types import Bool, Float32, Float64, Int64

_DRAWS = 2000
_MAX_SCALE = 1000.0


def groups(image: Int64, repetitions: int) -> list[Int64]:
    """Deal the epochs of each image out, in their order, to as many full groups of ``repetitions`` as there are."""
    out: list[Int64] = []
    for each in np.unique(image):
        index = np.flatnonzero(image == each)
        full = len(index) // repetitions
        out += list(index[: full * repetitions].reshape(full, repetitions))
    return out


def ranks(similarities: Float32, target: Int64) -> Int64:
    """Rank of the shown image, from 1, by the gallery's tie rule: (n, G), (n,) -> (n,)."""
    own = similarities[np.arange(len(target)), target][:, None]
    before = np.arange(similarities.shape[1]) < target[:, None]
    ahead = (similarities > own) | ((similarities == own) & before)
    return np.asarray(1 + np.count_nonzero(ahead, axis=1), np.int64)


def accuracy(similarities: Float32, image: Int64, repetitions: int, log_probability: Float64) -> Accuracy:
    """Sum up decisions on ``image`` (n,), similarities (n, G).

    Decisions on one image are alike. The intervals of shares are Wilson's, for as many independent decisions as the
    scatter between images speaks for; that of the median rank resamples images.
    """
    rank = ranks(similarities, image)
    images, owner = np.unique(image, return_inverse=True)
    of_image = [rank[owner == i] for i in range(len(images))]
    draws = np.random.default_rng(0).integers(0, len(images), (_DRAWS, len(images)))
    medians = [np.median(np.concatenate([of_image[i] for i in draw])) for draw in draws]
    low, high = np.percentile(medians, (2.5, 97.5))
    return Accuracy(
        repetitions,
        len(rank),
        len(images),
        similarities.shape[1],
        *share(rank <= 1, owner),
        *share(rank <= 5, owner),
        float(np.median(rank)),
        (float(low), float(high)),
        float(log_probability.mean()),
    )


def share(hit: Bool, owner: Int64) -> tuple[float, tuple[float, float]]:
    """Share of hits (n,) and its 95 % interval (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    ``owner`` (n,) number of the image that each decision was on, from 0.
    """
    n, k, p = len(hit), int(owner.max()) + 1, float(hit.mean())
    between = np.bincount(owner, hit - p)
    variance = k / max(k - 1, 1) * float(between @ between) / n**2
    independent = p * (1 - p) / variance if variance > 0 else k
    independent = min(max(independent, k), n)
    z = 1.96
    middle = p + z**2 / (2 * independent)
    reach = z * math.sqrt(p * (1 - p) / independent + z**2 / (4 * independent**2))
    scale = 1 + z**2 / independent
    return p, (max((middle - reach) / scale, 0.0), min((middle + reach) / scale, 1.0))


def log_probabilities(similarities: Float32, target: Int64, scale: float | None = None) -> Float64:
    """Natural logarithm of the shown image's probability, (n,); without a scale with the one that suits them best."""
    scale = temperature(similarities, target) if scale is None else scale
    return np.log(softmax(scale * similarities.astype(np.float64))[np.arange(len(target)), target])


def temperature(similarities: Float32, target: Int64) -> float:
    """Scale from similarity to probability, see :func:`streamdec.decode.evidence.calibrate`."""
    return calibrate(similarities, target, _MAX_SCALE)


def gain(new: Float64, old: Float64, image: Int64) -> tuple[float, float]:
    """Mean over images of the gain per image, and its standard error; (n,) each."""
    difference = new - old
    per_image = np.array([difference[image == each].mean() for each in np.unique(image)])
    return float(per_image.mean()), float(per_image.std(ddof=1) / np.sqrt(len(per_image)))


def better(scores: Sequence[Float64], image: Int64, margin: float = 1.0) -> int:
    """Choose among ways to decode the same epochs, the first being to leave all as it is.

    Returns
    -------
    int
        The one with the best mean score (over images), if it gains more than ``margin`` standard errors over the
        first; else 0.
    """
    gains = [gain(score, scores[0], image) for score in scores]
    best = int(np.argmax([each for each, _ in gains]))
    mean, error = gains[best]
    return best if mean > margin * error else 0
