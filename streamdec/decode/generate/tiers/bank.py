"""The caption that is always there: the nearest sentence of a bank, in the space of image and text features."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import safetensors.numpy

from ....errors import BundleError, StreamdecError
from ...evidence import softmax
from ...gallery import Gallery, top
from ..generator import OpenGenerator
from ..job import Request, Result, Tier
from .base import plain
from .network import Network
from .query import Query


class BankTier:
    """Compares the embedding with every sentence, exactly, by cosine.

    Parameters
    ----------
    generator : OpenGenerator
        With a bank.

    Raises
    ------
    BundleError
        Its files are not what they should be.
    EngineError
        One of its networks cannot be loaded or has other sizes.
    """

    name: Tier = "bank"

    def __init__(self, generator: OpenGenerator) -> None:
        bank = generator.manifest.bank
        assert bank is not None, "opened for a generator without a bank"
        dim, self._scale = generator.manifest.dim, bank.scale
        self._query = Query(generator)
        features = _features(bank.features, generator.read(bank.features))
        try:
            sentences = msgspec.json.decode(generator.read(bank.sentences), type=list[str])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BundleError(bank.sentences, got=str(error), allowed="a JSON list of texts") from error
        try:
            ids = [str(i) for i in range(len(sentences))]
            self._bank = Gallery(features, ids, [plain(sentence) for sentence in sentences])
        except StreamdecError as error:
            raise BundleError(f"text bank {bank.features}: {error}") from error
        if not len(self._bank):
            raise BundleError(f"text bank {bank.sentences}", got="no sentences", allowed="1 or more")
        self._adapter = Network(generator, bank.adapter) if bank.adapter else None
        if self._adapter is not None:
            self._adapter.expect(input=(1, dim), output=(1, self._bank.dim))
        elif self._bank.dim != dim:
            raise BundleError(f"text bank {bank.features}", got=f"{self._bank.dim} dims", allowed=dim)

    def run(self, request: Request) -> Result:
        """Answer a request: the best sentence and its probability among all."""
        embedding = self._query(request)
        if self._adapter is not None:
            embedding = self._adapter(embedding)
        scores = self._bank.scores(embedding[0])
        (best,) = top(scores, 1)
        probability = softmax(self._scale * scores.astype(np.float64))[best]
        return Result(text=self._bank.labels[best], probability=float(probability))


def _features(name: str, data: bytes) -> Any:
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BundleError(name, got=str(error), allowed="safetensors") from error
    if "features" not in tensors:
        raise BundleError(name, got=f"arrays {sorted(tensors)}", allowed="'features'")
    return tensors["features"]
