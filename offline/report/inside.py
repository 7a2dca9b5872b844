"""What a run's decoder does, looked at from outside: embeddings, which channels matter, what it takes for what.

Everything here goes through the encoder as evaluation does and needs no gradient, so it holds for every method, ridge
too.
Shapes: n queries, G candidates, D embedding.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from streamdec.decode.gallery import Gallery, top, unit
from streamdec.errors import ConfigError, DataError
from streamdec.signal.chain import Chain
from streamdec.types import Float32, Float64

from .. import evaluate, metrics
from ..data.store import Int64, Item, Prepared
from ..evaluate import About
from ..experiment import Opened


class Look(msgspec.Struct, frozen=True, eq=False):
    """A run's view of the test part, all repetitions averaged.

    ``means`` (n, n_chans, n_times) epochs; ``queries`` (n, D) unit embeddings; ``candidates`` (n, D) unit embeddings of
    their own items; ``scores`` (n, G) cosines; ``target`` (n,) own candidate; ``items`` (G,) of the gallery; ``images``
    folder of their files; ``ch_names`` of the epochs.
    """

    about: About
    means: Float32
    queries: Float32
    candidates: Float32
    scores: Float32
    target: Int64
    items: tuple[Item, ...]
    images: Path
    ch_names: tuple[str, ...]

    @property
    def shown(self) -> list[Item]:
        """Item of each query."""
        return [self.items[i] for i in self.target]


class Case(msgspec.Struct, frozen=True):
    """A query's own candidate, its 0-based rank, and the first five candidates with their cosines."""

    own: int
    rank: int
    first: tuple[int, ...]
    cosines: tuple[float, ...]


def look(test: Opened) -> Look:
    """Encode the averaged queries of a test part."""
    means, shown, _ = test.averaged()
    queries = unit(test.encode(means))
    meta = test.prepared.meta
    return Look(
        test.about,
        means,
        queries,
        test.gallery.features[shown],
        evaluate.scores(queries, test.gallery),
        shown,
        test.part.items,
        Path(meta.images),
        Chain(meta.signal, test.prepared.arrays).ch_names,
    )


def occlusion(encode: Callable[[Float32], Float32], means: Float32, gallery: Gallery, target: Int64) -> Float64:
    """How much each channel adds to a decoder's margin: what is lost when it is 0 in every query.

    The margin is the cosine with the own candidate minus the mean cosine with the others. Channels that tell the same
    stand in for each other, so that each may look useless; no figure of single channels shows what they do together.

    Parameters
    ----------
    encode : callable
        (n, n_chans, n_times) -> (n, D).
    means : array of shape (n, n_chans, n_times), float32
    gallery : Gallery
    target : array of shape (n,), int

    Returns
    -------
    array of shape (n_chans,), float64
        Mean over queries, in cosine; below 0 where the decoder does better without.
    """
    whole = margin(encode(means), gallery, target)
    out = np.empty(means.shape[1])
    blind = means.copy()
    for channel in range(means.shape[1]):
        blind[:, channel] = 0
        out[channel] = np.mean(whole - margin(encode(blind), gallery, target))
        blind[:, channel] = means[:, channel]
    return out


def margin(queries: Float32, gallery: Gallery, target: Int64) -> Float64:
    """Cosine with the own candidate minus the mean cosine with the others: (n,)."""
    cosines = unit(queries).astype(np.float64) @ gallery.features.T
    own = cosines[np.arange(len(target)), target]
    out: Float64 = own - (cosines.sum(axis=1) - own) / max(len(gallery) - 1, 1)
    return out


def cases(seen: Look, n: int, seed: int = 0) -> tuple[list[Case], list[Case]]:
    """Draw queries whose own candidate came first, and such whose did not, at most ``n`` of each; chosen by chance."""
    rank = metrics.ranks(seen.scores, seen.target)
    order = np.random.default_rng(seed).permutation(len(rank))
    drawn = []
    for wanted in (rank == 0, rank > 0):
        rows = [i for i in order if wanted[i]][:n]
        drawn.append([_case(seen, int(i), int(rank[i])) for i in rows])
    return drawn[0], drawn[1]


def _case(seen: Look, row: int, rank: int) -> Case:
    first = top(seen.scores[row], 5)
    cosines = tuple(float(seen.scores[row, g]) for g in first)
    return Case(int(seen.target[row]), rank, tuple(int(g) for g in first), cosines)


def categories(prepared: Prepared, table: Path | None) -> dict[str, str]:
    """Category of each test item, by id; items without one are left out.

    Of simulated images their shapes. Else from ``table``, TSV or CSV with a header: the items are looked for in every
    column, by id, file, label or concept; of the columns whose heading has "category" in it, the one that tells of most
    items is taken, as the concept table of THINGS has several with gaps. Without a table nothing is known.

    Raises
    ------
    DataError
        The table cannot be read.
    ConfigError
        It has no such column, or none of the items.
    """
    items = prepared.meta.items.get("test", ())
    attributes = Path(prepared.meta.images) / "image_attributes.tsv"
    if attributes.exists():
        return _shapes(attributes, items)
    if table is None:
        return {}
    rows = _read(table)
    headings = [name for name in rows[0] if "category" in name.lower()] if rows else []
    if not headings:
        raise ConfigError(
            f"columns of {table}", got=", ".join(rows[0]) if rows else "none", allowed="one with category"
        )
    spelt = {_spelling(name) for item in items for name in _names(item)}
    key = max(rows[0], key=lambda name: len(spelt & {_spelling(row[name]) for row in rows}))
    found: dict[str, str] = {}
    for heading in headings:
        told = {_spelling(row[key]): (row[heading] or "").strip() for row in rows}
        of_item = {item.id: told[name] for item in items for name in map(_spelling, _names(item)) if told.get(name)}
        found = max(found, of_item, key=len)
    if not found:
        raise ConfigError(f"{table}", got="none of the test items", allowed="a column with their labels or ids")
    return found


def most_frequent(of_item: Sequence[str | None], n: int) -> list[str]:
    """The ``n`` categories with most items, at least two each."""
    counted = Counter(category for category in of_item if category)
    return [name for name, count in counted.most_common(n) if count > 1]


def _names(item: Item) -> tuple[str, ...]:
    concept = item.concept.rpartition("/")[2]
    return item.id, item.image, item.label, concept, concept.partition("_")[2]


def _spelling(name: str | None) -> str:
    return (name or "").strip().lower().replace("_", " ")


def _read(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file, delimiter="," if table.suffix.lower() == ".csv" else "\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"categories {table}", got=error, allowed="a table, .tsv or .csv") from error


def _shapes(attributes: Path, items: Sequence[Item]) -> dict[str, str]:
    """Shapes of simulated images, from their one-hot columns ``shape=...``."""
    of_file = {
        row["file"]: next((name[6:] for name in row if name.startswith("shape=") and float(row[name])), "")
        for row in _read(attributes)
    }
    return {item.id: of_file[item.image] for item in items if of_file.get(item.image)}
