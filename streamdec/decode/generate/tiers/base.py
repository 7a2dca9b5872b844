"""What a tier is, what it may assume of a request, and what tiers share.

The first tier of a kind (``bank``, ``nearest``) answers in well under a millisecond, in the dispatcher, without torch.
The others run in workers, one request at a time, unit by unit: a unit is a token or a diffusion step.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from ....errors import BundleError, EngineError
from ....types import Candidate, Float32
from ..job import Kind, Request, Result, Tier

Progress = Callable[[Result, int], bool]
"""``(result so far, units done) -> go on``. False where the job was cancelled; a result may have nothing to show."""


class First(Protocol):
    """A tier that answers at once."""

    name: Tier

    def run(self, request: Request) -> Result:
        """Answer a request.

        Raises
        ------
        EngineError
            It cannot be done: NaN in the embedding, no candidates.
        """


class Worked(Protocol):
    """A tier that runs in a worker.

    Attributes
    ----------
    name : str
        One of the kind's.
    units : tuple of int
        Fewest and most units of a run; (1, 1) for a tier of one pass.
    example : Request
        Made up, of the real shapes: to warm up on, and to measure what a run costs.
    """

    name: Tier
    units: tuple[int, int]
    example: Request

    def warm_up(self) -> None:
        """Run on the example until compiling and caching are over."""

    def run(
        self, request: Request, units: int, deadline: float, clock: Callable[[], float], progress: Progress
    ) -> Result:
        """Work on a request.

        Parameters
        ----------
        request : Request
        units : int
            As many as there is time for, within ``self.units``.
        deadline : float
            By ``clock``. Once it has come no further unit is begun, and what there is becomes the result.
        clock : callable
            Monotonic, seconds.
        progress : callable
            Called after each unit. Once it returns False the result so far is returned at once, without further work.

        Returns
        -------
        Result
            With neither text nor image where the run was ended before there was anything to show.

        Raises
        ------
        EngineError
            The request cannot be done: NaN in the embedding, another size, a model that fails.
        """


def plain(text: str) -> str:
    """Make one line of printable characters: whatever steers a terminal becomes a space, and spaces become one."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def told(error: Exception) -> str:
    """Give the beginning of what an error of another package says, in one line."""
    text = plain(str(error)) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


@contextmanager
def opening(what: str, allowed: str) -> Iterator[None]:
    """Whatever transformers, diffusers and safetensors raise on files that are not what they should be, as BundleError.

    What they happen to meet has no common base.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        SafetensorError,
    ) as error:
        raise BundleError(what, got=told(error), allowed=allowed) from error


def png(pixels: Float32) -> bytes:
    """Encode a picture (3, height, width), RGB, 0..1 (beyond is cut), as PNG."""
    from PIL import Image

    # Level 1 of 9: the pictures go over a socket on this machine, and time counts.
    rounded = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.moveaxis(rounded, 0, 2)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def made_up(kind: Kind, dim: int, epoch: Float32 | None = None) -> Request:
    """Make an example request: a random embedding of unit length per dimension, a candidate, no deadline."""
    embedding = np.random.default_rng(0).standard_normal(dim, dtype=np.float32)
    candidate = Candidate("example", "an example", 1.0, 1.0)
    return Request(0, kind, "example", 1, 0.0, float("inf"), (candidate,), embedding, epoch)


def seed(request: Request) -> int:
    """Give the seed of a request's noise: of its stimulus key, so that the same evidence gives the same picture."""
    return zlib.crc32(request.key.encode())


def check_device(device: str) -> None:
    """Look whether torch can use a device.

    Raises
    ------
    EngineError
        There is none of this name here.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise EngineError(f"device {device}", got=told(error), allowed="cpu, or what torch finds here") from error
