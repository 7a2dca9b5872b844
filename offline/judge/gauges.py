"""What results are measured with: each gauge looks at results, and compares what it sees with the truth.

The figures of pictures are those of MindEye and its heirs, those of captions Thought2Text's; see the modules that
compute them. ``attributes`` and ``two-way`` are the procedural world's own: what its images show is known, and
:mod:`.classifier` says what a picture shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.errors import DataError
from streamdec.simulate.captions import ATTRIBUTES, Attributes, parse
from streamdec.types import Float64

from . import captions, classifier, networks, pictures
from .truth import Truth

Rows: TypeAlias = tuple[npt.NDArray[Any], ...]
"""What a gauge sees of n results: arrays of n rows, of features, texts or :class:`Attributes`."""


class Options(msgspec.Struct, frozen=True):
    """How to judge.

    ``figures`` that are wanted and must be there; none: all that can be had. ``weights`` folder of the networks' files;
    ``bert`` model of BERTScore, by name or folder; ``device`` as torch names it.
    """

    figures: frozenset[str] = frozenset()
    weights: Path | None = None
    bert: str = "roberta-large"
    device: str = "cpu"


class Gauge(NamedTuple):
    """``real`` of all stimuli; ``look`` at n results; ``compare`` n rows of each: (n,) float64 per figure."""

    real: Rows
    look: Callable[[npt.NDArray[Any]], Rows]
    compare: Callable[[Rows, Rows], dict[str, Float64]]


_Open: TypeAlias = Callable[[Truth, Sequence[str], Options], Gauge]


class Maker(NamedTuple):
    """A gauge still to be opened, for stimuli by key: ConfigError or DataError where it cannot be had."""

    figures: tuple[str, ...]
    open: _Open


def _of_sentences(opened: Callable[[Options], captions.Scorer]) -> _Open:
    def make(truth: Truth, keys: Sequence[str], options: Options) -> Gauge:
        lacking = [key for key in keys if key not in truth.references]
        if lacking:
            raise DataError(f"sentence about {lacking[0]!r}", got="none", do="give a table of them: --captions")
        score = opened(options)

        def look(texts: npt.NDArray[Any]) -> Rows:
            return (objects([captions.first_sentence(text) for text in texts]),)

        told = objects([truth.references[key] for key in keys])
        return Gauge(look(told), look, lambda real, made: score(list(real[0]), list(made[0])))

    return make


def _of_pixels(compare: Callable[[Any, Any], Float64], name: str) -> _Open:
    def make(truth: Truth, keys: Sequence[str], options: Options) -> Gauge:
        return Gauge(
            (truth.pictures(keys),), lambda made: (made,), lambda real, made: {name: compare(real[0], made[0])}
        )

    return make


def _of_network(names: tuple[str, ...]) -> _Open:
    def make(truth: Truth, keys: Sequence[str], options: Options) -> Gauge:
        look = networks.opened(names, options.weights, options.device)

        def compare(real: Rows, made: Rows) -> dict[str, Float64]:
            return {
                name: (
                    pictures.two_way if networks.LAYERS[name].figure == "two_way" else pictures.correlation_distance
                )(*both)
                for name, *both in zip(names, real, made, strict=True)
            }

        return Gauge(look(truth.pictures(keys)), look, compare)

    return make


def attribute_hits(said: Sequence[Attributes], shown: Sequence[Attributes]) -> dict[str, Float64]:
    """Tell of each attribute whether it is right, 1 or 0 for each of n; of what is not said it is not.

    ``attributes`` is the mean of them.
    """
    hits = {
        name: np.array(
            [getattr(one, name) == getattr(other, name) for one, other in zip(said, shown, strict=True)], np.float64
        )
        for name in ATTRIBUTES
    }
    return {"attributes": np.mean(list(hits.values()), axis=0), **hits}


def _attributes_said(truth: Truth, keys: Sequence[str], options: Options) -> Gauge:
    return Gauge(
        (_shown(truth, keys),),
        lambda texts: (objects([parse(text) for text in texts]),),
        lambda real, made: attribute_hits(list(made[0]), list(real[0])),
    )


def _of_world(truth: Truth, keys: Sequence[str], options: Options) -> Gauge:
    shown = _shown(truth, keys)
    look = classifier.opened(options.device)

    def compare(real: Rows, made: Rows) -> dict[str, Float64]:
        return {"two-way": pictures.two_way(real[1], made[1]), **attribute_hits(list(made[0]), list(real[0]))}

    return Gauge((shown, look(truth.pictures(keys))[1]), look, compare)


def _shown(truth: Truth, keys: Sequence[str]) -> npt.NDArray[Any]:
    lacking = [key for key in keys if key not in truth.attributes]
    if lacking:
        raise DataError(f"what {lacking[0]!r} shows", got="unknown", allowed="stimuli of the procedural world")
    return objects([truth.attributes[key] for key in keys])


def objects(values: Sequence[Any]) -> npt.NDArray[Any]:
    """Make an array (n,) of any things."""
    out = np.empty(len(values), object)
    out[:] = values
    return out


_ATTRIBUTES = ("attributes", *ATTRIBUTES)

OF_CAPTIONS: tuple[Maker, ...] = (
    Maker(("BLEU-1", "BLEU-4"), _of_sentences(lambda options: captions.bleu())),
    Maker(("ROUGE-1", "ROUGE-2", "ROUGE-L"), _of_sentences(lambda options: captions.rouge())),
    Maker(("METEOR",), _of_sentences(lambda options: captions.meteor())),
    Maker(("BERTScore",), _of_sentences(lambda options: captions.bert_score(options.bert, options.device))),
    Maker(_ATTRIBUTES, _attributes_said),
)
OF_PICTURES: tuple[Maker, ...] = (
    Maker(("PixCorr",), _of_pixels(pictures.pix_corr, "PixCorr")),
    Maker(("SSIM",), _of_pixels(pictures.ssim, "SSIM")),
    *(Maker(names, _of_network(names)) for names in networks.groups()),
    Maker(("two-way", *_ATTRIBUTES), _of_world),
)
LOWER = tuple(name for name, layer in networks.LAYERS.items() if layer.figure == "distance")
"""Figures that are better the lower."""
