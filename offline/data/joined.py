"""The training parts of one or several stores, their items as one list: one subject, or many in one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from streamdec.errors import ConfigError, DataError
from streamdec.types import Bool

from . import splits
from .splits import HoldOut
from .store import Int64, Item, Part, Prepared


class Joined(msgspec.Struct, frozen=True, eq=False):
    """Stores side by side.

    ``items`` of all of them, each id once; ``subjects`` one name per store, as the stores say; ``parts`` their training
    parts; ``places`` per part the index in ``items`` of each of its own.
    """

    items: tuple[Item, ...]
    subjects: tuple[str, ...]
    parts: tuple[Part, ...]
    places: tuple[Int64, ...]
    kind: Literal["stimulus", "class"]
    shape: tuple[int, int]

    def hold_out(self, by: HoldOut, share: float, seed: int) -> tuple[Bool, ...]:
        """Choose the epochs of each part to validate on: the same concepts or images in all; classes always by time.

        Raises
        ------
        ConfigError
            Stimuli by time: what comes last are further repetitions of what is trained on.
        DataError
            It is all, or none, of a subject's epochs.
        """
        if self.kind == "class":
            return tuple(splits.last(len(part.rows.item), share) for part in self.parts)
        if by == "time":
            raise ConfigError("validation.by", got="time", allowed="concept or image: the items are stimuli")
        chosen = splits.choose(self.items, by, share, seed)
        held = tuple(chosen[place][part.rows.item] for part, place in zip(self.parts, self.places, strict=True))
        for subject, of_part in zip(self.subjects, held, strict=True):
            if of_part.all() or not of_part.any():
                raise DataError(f"validation of {subject}", got=f"{of_part.sum()} of {len(of_part)} epochs held out")
        return held


def check_alike(stores: Sequence[Prepared]) -> None:
    """Refuse stores that one model cannot be of.

    Raises
    ------
    ConfigError
        They differ in channels, rate, window, steps, or kind of items.
    """
    first = stores[0]
    for store in stores[1:]:
        for what in ("kind", "shape", "signal"):
            got, wanted = getattr(store.meta, what), getattr(first.meta, what)
            if got != wanted:
                raise ConfigError(f"{what} of {store.path}", got=got, allowed=f"as in {first.path}: {wanted}")


def join(stores: Sequence[Prepared]) -> Joined:
    """Put the training parts of stores side by side.

    Raises
    ------
    ConfigError
        They differ in channels, rate, window, steps, kind of items, or two are of one subject.
    """
    check_alike(stores)
    first = stores[0]
    subjects = tuple(store.meta.subject for store in stores)
    if len(set(subjects)) < len(subjects):
        raise ConfigError("subjects", got=", ".join(subjects), allowed="each once", do="name other stores")
    items: dict[str, Item] = {}
    parts = tuple(store.part("train") for store in stores)
    for part in parts:
        for item in part.items:
            items.setdefault(item.id, item)
    index = {id_: i for i, id_ in enumerate(items)}
    places = tuple(np.array([index[item.id] for item in part.items], np.int64) for part in parts)
    return Joined(tuple(items.values()), subjects, parts, places, first.meta.kind, first.meta.shape)
