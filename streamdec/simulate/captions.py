"""Sentences that say what is on an image of the procedural world, and what a sentence says, read back.

The words are the world's: every sentence is true of its image, and all of them use the words of :data:`WORDS` only.
"""

from __future__ import annotations

import itertools
import re

import msgspec

from ..errors import DataError
from .world import COLOURS, LAYOUTS, SHAPES, TEXTURES, Concept, Look

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "texture": tuple(TEXTURES),
    "layout": tuple(LAYOUTS),
    "size": ("small", "medium", "large"),
    "place": (
        *("upper left", "top", "upper right"),
        *("left", "middle", "right"),
        *("lower left", "bottom", "lower right"),
    ),
    "ground": ("dark", "grey", "bright"),
}
"""What a sentence can say, and the values of each: the concept's, then three that differ between its images."""

PHRASINGS = 5
"""How many ways there are to say the same."""

_NUMBERS = {"single": "one", "pair": "two", "row": "three", "cluster": "five"}
_PLACES = {"top": "at the top", "middle": "in the middle", "bottom": "at the bottom"}
# Look is uniform in these ranges (world.py): thirds.
_SIZE_EDGES = (0.8 + 0.4 / 3, 1.2 - 0.4 / 3)
_PLACE_EDGES = (-0.2 / 3, 0.2 / 3)
_GROUND_EDGES = (0.35, 0.55)


class Attributes(msgspec.Struct, frozen=True):
    """What an image shows or a sentence says, each one of :data:`ATTRIBUTES`, or None where nothing is said of it."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    layout: str | None = None
    size: str | None = None
    place: str | None = None
    ground: str | None = None


def attributes(concept: Concept, look: Look | None = None) -> Attributes:
    """Tell what an image shows; without its look, what all images of the concept do."""
    of_concept = Attributes(concept.shape, concept.colour, concept.texture, concept.layout)
    if look is None:
        return of_concept
    row, column = (sum(along > edge for edge in _PLACE_EDGES) for along in (look.y, look.x))
    return msgspec.structs.replace(
        of_concept,
        size=ATTRIBUTES["size"][sum(look.size > edge for edge in _SIZE_EDGES)],
        place=ATTRIBUTES["place"][3 * row + column],
        ground=ATTRIBUTES["ground"][sum(look.ground > edge for edge in _GROUND_EDGES)],
    )


def describe(said: Attributes, phrasing: int = 0) -> str:
    """Say it in a sentence.

    Parameters
    ----------
    said : Attributes
        Shape and layout must be given; of what is None the sentence says nothing.
    phrasing : int
        Which of the :data:`PHRASINGS` ways.

    Returns
    -------
    str
        Such as "a large blue striped ring pair on a dark ground, to the left": :func:`parse` gives ``said`` again.

    Raises
    ------
    DataError
        No shape or no layout, a value that is not of :data:`ATTRIBUTES`, or no such phrasing.
    """
    for name, values in ATTRIBUTES.items():
        value = getattr(said, name)
        if value not in values and (value is not None or name in ("shape", "layout")):
            raise DataError(f"caption: {name}", got=value, allowed=", ".join(values))
    if not 0 <= phrasing < PHRASINGS:
        raise DataError("caption: phrasing", got=phrasing, allowed=f"0..{PHRASINGS - 1}")
    shape, layout = str(said.shape), str(said.layout)
    together = "" if layout == "single" else layout
    ground = f"on a {said.ground} ground" if said.ground else ""
    place = _PLACES.get(said.place, f"to the {said.place}") if said.place else ""
    tail = ", ".join(part for part in (ground, place) if part)
    plain = _join(said.size, said.colour, said.texture, shape, together)
    if phrasing == 0:
        return _join(_with_article(plain), tail)
    if phrasing == 1:
        things = _join(said.size, said.colour, said.texture, _plural(shape) if together else shape)
        return _join(f"a {layout} of {things}" if together else _with_article(things), tail)
    if phrasing == 2:
        things = _join(_NUMBERS[layout], said.size, said.texture, said.colour, _plural(shape) if together else shape)
        return ", ".join(part for part in (things, place, ground) if part)
    if phrasing == 3:
        return ": ".join(part for part in (", ".join(p for p in (place, ground) if p), _with_article(plain)) if part)
    return _join("a picture of", _with_article(plain), tail)


def parse(text: str) -> Attributes:
    """Read what a sentence says: the first word of a kind counts, words it does not know are passed over.

    A shape without a word of number or layout is a single one if it stands in the singular.
    """
    words = re.findall(r"[a-z]+", text.lower())
    shape, layout = _first(words, _SHAPE_WORDS), _first(words, _LAYOUT_WORDS)
    if layout is None and shape in words:
        layout = "single"
    down, across = _first(words, _DOWN), _first(words, _ACROSS)
    place = None
    if down or across or "middle" in words:
        place = ATTRIBUTES["place"][3 * (0 if down == "upper" else 2 if down == "lower" else 1) + _COLUMN[across]]
    of = {name: _first(words, dict(zip(ATTRIBUTES[name], ATTRIBUTES[name], strict=True))) for name in _PLAIN}
    return Attributes(shape=shape, layout=layout, place=place, **of)


def _join(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def _with_article(things: str) -> str:
    return f"{'an' if things.startswith(('orange', 'arrow', 'hourglass')) else 'a'} {things}"


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _first(words: list[str], known: dict[str, str]) -> str | None:
    return next((known[word] for word in words if word in known), None)


_PLAIN = ("colour", "texture", "size", "ground")
_SHAPE_WORDS = {word: shape for shape in SHAPES for word in (shape, _plural(shape))}
_LAYOUT_WORDS = {word: layout for layout, number in _NUMBERS.items() for word in (layout, number)}
_DOWN = {"upper": "upper", "top": "upper", "lower": "lower", "bottom": "lower"}
_ACROSS = {"left": "left", "right": "right"}
_COLUMN = {"left": 0, None: 1, "right": 2}


def _words() -> tuple[str, ...]:
    """Collect the words of all sentences: of each shape, and of every value of the other attributes."""
    found: set[str] = set()
    for shape, layout in itertools.product(SHAPES, LAYOUTS):
        for phrasing in range(PHRASINGS):
            found.update(re.findall(r"\w+|[^\w\s]", describe(Attributes(shape=shape, layout=layout), phrasing)))
    for name in ("colour", "texture", "size", "place", "ground"):
        for value, phrasing in itertools.product(ATTRIBUTES[name], range(PHRASINGS)):
            said = msgspec.structs.replace(Attributes(shape="disc", layout="single"), **{name: value})
            found.update(re.findall(r"\w+|[^\w\s]", describe(said, phrasing)))
    both = Attributes("disc", None, None, "single", None, "left", "dark")
    for phrasing in range(PHRASINGS):
        found.update(re.findall(r"\w+|[^\w\s]", describe(both, phrasing)))
    return tuple(sorted(found))


WORDS = _words()
"""Every word and sign of the sentences, sorted."""
