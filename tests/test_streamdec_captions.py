"""Sentences of the world: true, told apart, and read back as they were meant."""

from __future__ import annotations

import re

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdec.errors import DataError
from streamdec.simulate.captions import ATTRIBUTES, PHRASINGS, WORDS, Attributes, attributes, describe, parse
from streamdec.simulate.world import Concept, Look, World, render

SAID = st.builds(
    Attributes,
    **{
        name: st.sampled_from(values) if name in ("shape", "layout") else st.none() | st.sampled_from(values)
        for name, values in ATTRIBUTES.items()
    },
)


@settings(deadline=None)
@given(SAID, st.integers(0, PHRASINGS - 1))
def test_a_sentence_is_read_as_it_was_meant(said: Attributes, phrasing: int) -> None:
    text = describe(said, phrasing)
    assert parse(text) == said
    assert parse(text.upper() + ".") == said
    assert set(re.findall(r"\w+|[^\w\s]", text)) <= set(WORDS)


@settings(deadline=None)
@given(SAID)
def test_phrasings_of_much_differ(said: Attributes) -> None:
    said = msgspec.structs.replace(said, ground="dark", place="left", colour="red", texture="striped", layout="pair")
    assert len({describe(said, k) for k in range(PHRASINGS)}) == PHRASINGS


def test_examples_read_as_english() -> None:
    said = Attributes("ring", "blue", "striped", "pair", "large", "left", "dark")
    assert [describe(said, k) for k in range(PHRASINGS)] == [
        "a large blue striped ring pair on a dark ground, to the left",
        "a pair of large blue striped rings on a dark ground, to the left",
        "two large striped blue rings, to the left, on a dark ground",
        "to the left, on a dark ground: a large blue striped ring pair",
        "a picture of a large blue striped ring pair on a dark ground, to the left",
    ]
    assert describe(Attributes("hourglass", "orange", None, "single", None, "top", None), 2) == (
        "one orange hourglass, at the top"
    )
    assert describe(Attributes("cross", None, None, "cluster"), 1) == "a cluster of crosses"
    assert describe(Attributes("arrow", None, None, "single")) == "an arrow"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Attributes()),
        ("nothing of the kind", Attributes()),
        ("blue_striped_ring_pair", Attributes("ring", "blue", "striped", "pair")),
        ("red, or is it green?", Attributes(colour="red")),
        ("stars", Attributes(shape="star")),
        ("\x1bthree\x00 stars", Attributes(shape="star", layout="row")),
        ("a disc in the lower right corner", Attributes("disc", None, None, "single", None, "lower right")),
    ],
)
def test_other_sentences(text: str, expected: Attributes) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_said_of_an_image_is_its_truth(split: str) -> None:
    """Against the pixels: where the object's middle is, how large it is, how bright the corners are."""
    world = World(3, n_train=4, images_per_concept=2, n_test=8)
    for i in range(world.n_images(split)):  # type: ignore[arg-type]
        concept, look = world.concept(split, i), world.look(split, i)  # type: ignore[arg-type]
        said = attributes(concept, look)
        assert said == parse(describe(said, i % PHRASINGS))
        assert (said.shape, said.colour, said.texture, said.layout) == (
            *(concept.shape, concept.colour),
            *(concept.texture, concept.layout),
        )
        assert attributes(concept) == Attributes(said.shape, said.colour, said.texture, said.layout)


def test_place_size_and_ground_are_seen_in_the_pixels() -> None:
    disc = Concept(0, "disc", "red", "plain", "single")

    def seen(look: Look) -> tuple[float, float, float, float]:
        image = render(disc, look, 64).astype(float)
        object_ = np.abs(image[..., 0] - image[..., 2]) > 30
        rows, columns = np.nonzero(object_)
        return columns.mean() - 31.5, rows.mean() - 31.5, object_.sum(), image[-1, 0].mean()

    middle = Look(0.0, 0.0, 1.0, 0.0, 1.0, 0.45, 0.0, 1.5)
    assert attributes(disc, middle) == Attributes("disc", "red", "plain", "single", "medium", "middle", "grey")
    x, y, area, brightness = seen(middle)
    moved = msgspec.structs.replace(middle, x=-0.15, y=0.15, size=1.15, ground=0.25)
    assert attributes(disc, moved) == Attributes("disc", "red", "plain", "single", "large", "lower left", "dark")
    moved_x, moved_y, moved_area, moved_brightness = seen(moved)
    assert moved_x < x - 3
    assert moved_y > y + 3
    assert moved_area > 1.2 * area
    assert moved_brightness < brightness - 30


def test_every_value_is_about_as_frequent_as_another() -> None:
    world = World(0, n_train=1, n_test=900)
    told = [attributes(world.concept("test", i), world.look("test", i)) for i in range(900)]
    for name, values in ATTRIBUTES.items():
        counts = [sum(getattr(one, name) == value for one in told) for value in values]
        assert min(counts) > 0.5 * 900 / len(values), name


@pytest.mark.parametrize(
    ("said", "phrasing", "names"),
    [
        (Attributes(layout="pair"), 0, "caption: shape"),
        (Attributes("ring"), 0, "caption: layout"),
        (Attributes("ring", "mauve", None, "pair"), 0, "caption: colour"),
        (Attributes("ring", None, None, "pair"), PHRASINGS, "caption: phrasing"),
        (Attributes("ring", None, None, "pair"), -1, "caption: phrasing"),
    ],
)
def test_what_cannot_be_said(said: Attributes, phrasing: int, names: str) -> None:
    with pytest.raises(DataError, match=names):
        describe(said, phrasing)
