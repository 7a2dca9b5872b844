"""A fitted run as a generator sees it: embeddings of images, embeddings of epochs, in one space."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from streamdec.decode.gallery import unit
from streamdec.errors import DataError
from streamdec.types import Bool, Float32

from ..data.joined import join
from ..data.store import Int64, Item
from ..experiment import open_run, stores_of, targets_of
from ..methods.base import Validation
from ..targets.store import Targets

_BLOCK = 1024  # stimuli


class Source:
    """The run whose embeddings a generator reads.

    Parameters
    ----------
    path : Path
        Run folder.
    images : mapping of str to Targets, optional
        Features of a set of images, per role of the run, that parts without EEG are fitted on; the run's own training
        images when omitted.

    Raises
    ------
    DataError
        The run is not fitted, or what it was fitted on is not there any more; features of different images.
    """

    def __init__(self, path: Path, images: Mapping[str, Targets] | None = None) -> None:
        _, self.meta, _, self.encoder = open_run(path)
        self.stores = stores_of(self.meta)
        self._joined = join(self.stores)
        self.targets = targets_of(self.meta)
        self._images = dict(images) if images else self.targets
        if images:
            first = next(iter(images.values()))
            for role, of_role in images.items():
                if of_role.meta.ids != first.meta.ids:
                    raise DataError(f"images of {role}", got=of_role.path, allowed=f"those of {first.path}")
            self.items: tuple[Item, ...] = tuple(_item(id_) for id_ in first.meta.ids)
        else:
            self.items = self._joined.items
        self.dim = self.encoder.dim

    @property
    def simulated(self) -> bool:
        """Whether any of the data was."""
        return any(store.meta.simulated for store in self.stores)

    def candidates(self) -> Float32:
        """Embeddings of the images: (n_images, dim), not normalised."""
        return self.encoder.candidates({role: of_role.of(self.items) for role, of_role in self._images.items()})

    def concepts(self) -> Int64:
        """Give each image the number of its concept: (n_images,)."""
        names = [item.concept for item in self.items]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    def shown(self) -> Shown:
        """Mean epochs of the training stimuli and their embeddings, all subjects of the run one after the other."""
        epochs, embeddings, places, unseen = [], [], [], []
        validation = msgspec.convert(self.meta.settings["validation"], Validation)
        held = self._joined.hold_out(validation.by, validation.share, self.meta.seed)
        joined = self._joined
        for subject, part, place, of_part in zip(joined.subjects, joined.parts, joined.places, held, strict=True):
            indices = [of_item for of_item in part.of_item() if len(of_item)]
            unseen.append(np.array([of_part[rows].all() for rows in indices]))
            means = part.means(indices)
            epochs.append(means)
            embeddings.append(self.encoder(means, subject))
            places.append(place[part.rows.item[[of_item[0] for of_item in indices]]])
        return Shown(
            epochs[0] if len(epochs) == 1 else np.concatenate(epochs),  # gigabytes
            np.concatenate(embeddings),
            np.concatenate(places),
            np.concatenate(unseen),
            joined.items,
        )

    def images_of(self, shown: Shown) -> Float32:
        """Embeddings of all training stimuli's images: (n_items, dim), not normalised."""
        return self.encoder.candidates({role: of_role.of(shown.items) for role, of_role in self.targets.items()})

    def right(self, shown: Shown) -> Bool:
        """Tell of each training stimulus whether the nearest of all training images shows its concept: (n,)."""
        gallery = unit(self.images_of(shown))
        concept = np.array([item.concept for item in shown.items])
        blocks = np.array_split(unit(shown.embeddings), max(1, len(shown.item) // _BLOCK))  # never all of them at once
        nearest = np.concatenate([np.argmax(block @ gallery.T, axis=1) for block in blocks])
        return np.asarray(concept[nearest] == concept[shown.item])


class Shown:
    """Training stimuli as the brain answered them.

    Attributes
    ----------
    epochs : array of shape (n, n_chans, n_times), float32
    embeddings : array of shape (n, dim), float32
    item : array of shape (n,), int64
        Index into ``items``.
    held : array of shape (n,), bool
        Whether the encoder was validated on it instead of trained (`ridge` is fitted anew on all of them).
    items : tuple of Item
    """

    def __init__(self, epochs: Float32, embeddings: Float32, item: Int64, held: Bool, items: Sequence[Item]) -> None:
        self.epochs, self.embeddings, self.item, self.held, self.items = epochs, embeddings, item, held, tuple(items)

    @property
    def of_sample(self) -> list[Item]:
        """Item of each sample."""
        return [self.items[i] for i in self.item]


def _item(id_: str) -> Item:
    """Make the item of CONCEPT/FILE, as folders of images have them; a number before the concept is no part of it."""
    concept = id_.rpartition("/")[0]
    return Item(id_, re.sub(r"^\d+_", "", concept).replace("_", " "), concept, id_)
