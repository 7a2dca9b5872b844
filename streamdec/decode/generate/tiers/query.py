"""The embedding of a request as the tiers take it: checked, and as what it lets expect of the image's."""

from __future__ import annotations

import numpy as np

from ....errors import EngineError
from ....types import Float32
from ..generator import OpenGenerator
from ..job import Request
from .network import Network


class Query:
    """Reads the embedding of a request.

    Parameters
    ----------
    generator : OpenGenerator
    threads : int
        Within one operation.

    Raises
    ------
    EngineError
        The generator's query network cannot be loaded or has other sizes.
    """

    def __init__(self, generator: OpenGenerator, threads: int = 1) -> None:
        manifest = generator.manifest
        self._dim = manifest.dim
        self._network = Network(generator, manifest.query, threads) if manifest.query else None
        if self._network is not None:
            self._network.expect(input=(1, self._dim), output=(1, self._dim))

    def __call__(self, request: Request) -> Float32:
        """Give (1, dim).

        Raises
        ------
        EngineError
            The embedding has another size, or NaN or infinity.
        """
        embedding = vector(request, self._dim)
        return embedding if self._network is None else self._network(embedding)


def vector(request: Request, dim: int) -> Float32:
    """Give a request's embedding as it is, as (1, dim).

    Raises
    ------
    EngineError
        It has another size, or NaN or infinity.
    """
    embedding = request.embedding
    if embedding.shape != (dim,) or embedding.dtype != np.float32:
        raise EngineError(
            f"embedding of {request.key!r}", got=f"{embedding.dtype} {embedding.shape}", allowed=f"float32 ({dim},)"
        )
    if not np.isfinite(embedding).all():
        raise EngineError(f"embedding of {request.key!r}", got="NaN or infinity", allowed="finite values")
    return embedding[None]
