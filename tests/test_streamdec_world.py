"""The image world: what is drawn is what is said, the same every time."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from streamdec.errors import ConfigError
from streamdec.simulate.world import COLOURS, LAYOUTS, SHAPES, TEXTURES, Concept, Look, World, render

SMALL = {"n_train": 12, "images_per_concept": 3, "n_test": 8, "size": 32}
STILL = Look(x=0.0, y=0.0, size=1.0, tilt=0.0, shade=1.0, ground=0.5, slope=0.0, grain=1.6)


def test_train_and_test_concepts_are_disjoint_and_distinct():
    world = World(3)
    names = [[concept.name for concept in world.concepts(split)] for split in ("train", "test")]
    assert list(map(len, names)) == [400, 200]
    assert len({*names[0], *names[1]}) == 600
    assert all(one == sorted(one) for one in names)


def test_counts_and_files():
    world = World(0, **SMALL)
    assert (world.n_images("train"), world.n_images("test")) == (36, 8)
    ids = world.ids("train")
    first = world.concepts("train")[0].name
    assert ids[0] == f"00001_{first}/{first}_01b.jpg"
    assert ids[2] == f"00001_{first}/{first}_03s.jpg"
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_images_are_the_same_in_another_process():
    world = World(5, **SMALL)
    here = hashlib.sha256(world.images("train").tobytes() + world.attributes("test").tobytes()).hexdigest()
    program = (
        "import hashlib; from streamdec.simulate.world import World\n"
        f"w = World(5, **{SMALL})\n"
        "print(hashlib.sha256(w.images('train').tobytes() + w.attributes('test').tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert there.stdout.strip() == here


def test_a_smaller_world_holds_the_same_images():
    large, small = World(1, **SMALL), World(1, **{**SMALL, "n_train": 4, "images_per_concept": 2})
    np.testing.assert_array_equal(small.images("test"), large.images("test"))
    names = [concept.name for concept in large.concepts("train")]
    for i, concept in enumerate(small.concepts("train")):
        np.testing.assert_array_equal(
            small.image("train", 2 * i + 1), large.image("train", 3 * names.index(concept.name) + 1)
        )


def test_images_of_a_concept_vary_and_seeds_differ():
    world = World(0, **SMALL)
    images = world.images("train", [0, 1, 2])
    assert images.dtype == np.uint8
    assert images.shape == (3, 32, 32, 3)
    assert not np.array_equal(images[0], images[1])
    assert [c.name for c in World(1, **SMALL).concepts("test")] != [c.name for c in world.concepts("test")]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn_in_its_colour_within_the_image(shape):
    image = render(Concept(0, shape, "red", "plain", "single"), STILL, 64).astype(int)
    red = (image[..., 0] - image[..., 1]) > 100
    assert 0.05 < red.mean() < 0.35
    assert not red[[0, -1]].any()
    assert not red[:, [0, -1]].any()


def test_shapes_textures_and_layouts_all_look_different():
    kinds = [("shape", SHAPES), ("colour", COLOURS), ("texture", TEXTURES), ("layout", LAYOUTS)]
    base = {"shape": "disc", "colour": "red", "texture": "plain", "layout": "single"}
    for kind, values in kinds:
        images = [render(Concept(0, **{**base, kind: value}), STILL, 32).astype(float) for value in values]
        apart = [np.abs(a - b).mean() for i, a in enumerate(images) for b in images[:i]]
        assert min(apart) > 1.0, kind


def test_layout_counts():
    from scipy.ndimage import label

    for layout, places in LAYOUTS.items():
        image = render(Concept(0, "disc", "red", "plain", layout), STILL, 64).astype(int)
        assert label(image[..., 0] - image[..., 1] > 100)[1] == len(places)


def test_attributes_say_what_is_drawn():
    world = World(0, **SMALL)
    attributes, names = world.attributes("train"), world.attribute_names
    assert attributes.shape == (36, len(names))
    assert world.n_semantic == len(SHAPES) + len(COLOURS) + len(TEXTURES) + len(LAYOUTS)
    np.testing.assert_array_equal(attributes[:, : world.n_semantic].sum(axis=1), 4)
    for i in (0, 7, 35):
        concept = world.concept("train", i)
        said = {names[j] for j in np.flatnonzero(attributes[i, : world.n_semantic])}
        assert said == {f"{kind}={getattr(concept, kind)}" for kind in ("shape", "colour", "texture", "layout")}
        assert attributes[i, names.index("ground")] == np.float32(world.look("train", i).ground)


@pytest.mark.parametrize("bad", [{"n_train": 2800, "n_test": 200}, {"size": 0}, {"n_test": 0}])
def test_impossible_worlds_are_refused(bad):
    with pytest.raises(ConfigError, match="world"):
        World(0, **bad)
