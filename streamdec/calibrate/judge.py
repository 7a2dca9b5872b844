"""How well images are found, with intervals: from the similarities of held-out queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..decode.evidence import calibrate, softmax
from ..decode.manifest import Accuracy
from ..types import Float32, Float64, Int64

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

    The intervals resample images, as decisions on one image are alike.
    """
    rank = ranks(similarities, image)
    images, owner = np.unique(image, return_inverse=True)
    rng = np.random.default_rng(0)
    of_image = [rank[owner == i] for i in range(len(images))]
    draws = rng.integers(0, len(images), (_DRAWS, len(images)))
    resampled = [np.concatenate([of_image[i] for i in draw]) for draw in draws]

    def interval(measure: Callable[[Int64], float]) -> tuple[float, float]:
        low, high = np.percentile([measure(each) for each in resampled], (2.5, 97.5))
        return float(low), float(high)

    def share(k: int) -> Callable[[Int64], float]:
        return lambda each: float(np.mean(each <= k))

    def median(each: Int64) -> float:
        return float(np.median(each))

    return Accuracy(
        repetitions,
        len(rank),
        len(images),
        similarities.shape[1],
        share(1)(rank),
        interval(share(1)),
        share(5)(rank),
        interval(share(5)),
        median(rank),
        interval(median),
        float(log_probability.mean()),
    )


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
