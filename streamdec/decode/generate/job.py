"""What goes between the hot loop, the dispatcher and the workers: a request, what came of it, and its tiers.

A request is one kind of result wanted for one decision. It ends in exactly one :class:`Answer` or :class:`Drop`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from ...types import Candidate, Float32

Kind: TypeAlias = Literal["caption", "reconstruction"]
KINDS: tuple[Kind, Kind] = ("caption", "reconstruction")

Tier: TypeAlias = Literal["bank", "llm", "nearest", "latent", "diffusion"]
LADDER: dict[Kind, tuple[Tier, ...]] = {
    "caption": ("bank", "llm"),
    "reconstruction": ("nearest", "latent", "diffusion"),
}
"""Tiers of each kind, cheap to good. The first of a kind needs no worker: the dispatcher answers it itself."""


_MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


class Request(msgspec.Struct, frozen=True, eq=False, tag=True):
    """One kind of result, wanted for one decision.

    ``id`` counts requests of a session from 1. ``key`` stimulus key; ``repetitions`` behind the evidence. ``due`` LSL
    clock at which the epoch's last sample was due; ``deadline`` LSL clock: ``due`` + the kind's budget.
    ``candidates`` of the decision, best first. ``embedding`` (dim,) float32, the encoder's output on the evidence, NOT
    normalised. ``epoch`` (n_chans, n_times) float32 the evidence after the chain, None where no tier reads it.
    """

    id: int
    kind: Kind
    key: str
    repetitions: int
    due: float
    deadline: float
    candidates: tuple[Candidate, ...]
    embedding: Float32
    epoch: Float32 | None = None


class Result(msgspec.Struct, frozen=True):
    """What a tier makes of a request.

    ``text`` of a caption. ``image`` an encoded picture: PNG, JPEG or WebP. ``probability`` where the tier has
    one. ``source`` the gallery id of a nearest image. ``units`` tokens or diffusion steps that were done, of at most
    ``wanted``: fewer where time ran out.
    """

    text: str = ""
    image: bytes = b""
    probability: float | None = None
    source: str = ""
    units: int = 1
    wanted: int = 1

    @property
    def media(self) -> str:
        """Media type of the picture, "" where there is none of a known kind."""
        return next((media for magic, media in _MAGIC.items() if self.image.startswith(magic)), "")


class Answer(msgspec.Struct, frozen=True, tag=True):
    """A result for the request ``id``, or, where ``partial``, what there is of it so far.

    ``tier`` that made it, ``worker`` in which, "" for the dispatcher. ``started`` and ``finished`` LSL clock.
    """

    id: int
    tier: Tier
    result: Result
    started: float
    finished: float
    worker: str = ""
    partial: bool = False


class Drop(msgspec.Struct, frozen=True, tag=True):
    """The request ``id`` ends without a result, for ``reason``."""

    id: int
    reason: str
