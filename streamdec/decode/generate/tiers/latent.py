"""A picture in one pass: a low-level latent by regression, and its decoder, exported as one network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....errors import EngineError
from ....types import Float32
from ..generator import OpenGenerator
from ..job import Request, Result, Tier
from .base import Progress, made_up, png
from .network import Network
from .query import Query


class LatentTier:
    """Runs the network on the embedding, or on the evidence epoch.

    Parameters
    ----------
    generator : OpenGenerator
        With a latent tier.
    threads : int
        Within one operation.

    Raises
    ------
    EngineError
        A network cannot be loaded or has other sizes.
    """

    name: Tier = "latent"
    units = (1, 1)

    def __init__(self, generator: OpenGenerator, threads: int = 1) -> None:
        latent = generator.manifest.latent
        assert latent is not None, "opened for a generator without a latent tier"
        dim = generator.manifest.dim
        self._query = Query(generator, threads) if latent.reads == "embedding" else None
        self._network = Network(generator, latent.network, threads)
        self._network.expect(
            input=(1, dim) if latent.reads == "embedding" else (1, None, None), output=(1, 3, None, None)
        )
        epoch = np.zeros(self._network.input[1:], np.float32) if latent.reads == "epoch" else None
        self.example = made_up("reconstruction", dim, epoch)

    def warm_up(self) -> None:
        """Run a few times."""
        for _ in range(3):
            self._picture(self.example)

    def run(
        self, request: Request, units: int, deadline: float, clock: Callable[[], float], progress: Progress
    ) -> Result:
        """Draw; there is nothing to end early."""
        result = Result(image=self._picture(request))
        progress(result, 1)
        return result

    def _picture(self, request: Request) -> bytes:
        values = self._epoch(request) if self._query is None else self._query(request)
        return png(self._network(values)[0])

    def _epoch(self, request: Request) -> Float32:
        wanted = self._network.input[1:]
        epoch = request.epoch
        if epoch is None or epoch.shape != wanted or epoch.dtype != np.float32:
            got = "none" if epoch is None else f"{epoch.dtype} {epoch.shape}"
            raise EngineError(f"epoch of {request.key!r}", got=got, allowed=f"float32 {wanted}")
        if not np.isfinite(epoch).all():
            raise EngineError(f"epoch of {request.key!r}", got="NaN or infinity", allowed="finite values")
        return epoch[None]
