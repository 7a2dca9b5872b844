"""The reconstruction that is always there: the picture of the best candidate, as the bundle holds it."""

from __future__ import annotations

from ....errors import EngineError
from ...bundle import Bundle
from ..job import Request, Result, Tier


class NearestTier:
    """Shows the best candidate; without a picture where the bundle has none of it.

    Parameters
    ----------
    bundle : Bundle
    """

    name: Tier = "nearest"

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def run(self, request: Request) -> Result:
        """Answer a request."""
        if not request.candidates:
            raise EngineError(f"request for {request.key!r}", got="no candidates", do="ask for a top_k of 1 or more")
        best = request.candidates[0]
        picture = self._bundle.thumbnail(best.id) or b""
        return Result(image=picture, probability=best.probability, source=best.id)
