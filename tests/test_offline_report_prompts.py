"""NeuroCLIP's prompts in the report: what is measured of them, and what is drawn where parts are switched off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib comes with the report extra")

from models.neuroclip import NeuroClipVision
from offline.data.store import Item
from offline.report import prompts
from offline.targets.openclip import load

N, K = 3, 4


def seen(folder: Path, *, turned_on: bool = True, **settings: bool | int) -> prompts.Prompts:
    torch.manual_seed(0)
    vision = NeuroClipVision(load("tiny", "random").network.visual, **settings).eval()
    if turned_on and vision.instance is not None:  # it starts at 0
        torch.nn.init.constant_(vision.instance.layers[-1].bias, 2.0)
    from PIL import Image

    for i in range(N):
        Image.new("RGB", (40, 40), (80 * i, 0, 0)).save(folder / f"{i}.png")
    items = tuple(Item(str(i), f"image {i}", "c", f"{i}.png") for i in range(N))
    return prompts.acting(vision, torch.ones(N, K, 16, 64), torch.rand(N, 3, 56, 56), items, folder)


def test_what_is_measured(tmp_path) -> None:
    found = seen(tmp_path, n_prompts=2)
    assert found.filters is not None
    np.testing.assert_allclose(found.filters.sum(1), 1, atol=1e-6)
    assert found.instance is not None
    # 2 in each of 64 places, added to 1 in each: twice as long.
    np.testing.assert_allclose(found.instance, np.full((N, 4, 4), 2.0), rtol=1e-5)
    assert found.shared is not None
    assert found.shared.shape == (4, 2, 64)
    assert np.all(seen(tmp_path, turned_on=False).instance == 0)


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({}, ("0 px", "2.00 times as long", "shared prompts"), ()),
        ({"dynamic_filter": False}, ("2.00 times as long", "shared prompts"), ("px",)),
        ({"dynamic_filter": False, "instance": False}, ("shared prompts",), ("px", "as long")),
        ({"n_prompts": 0}, ("0 px", "2.00 times as long"), ("shared",)),
    ],
)
def test_picture(settings, said, unsaid, tmp_path) -> None:
    drawn = prompts.picture("prompts", "some run", seen(tmp_path, **settings))
    assert drawn is not None
    assert drawn.content.startswith(b"<?xml")
    assert all(part in drawn.caption for part in said)
    assert not any(part in drawn.caption for part in unsaid)


def test_nothing_to_draw(tmp_path) -> None:
    off = seen(tmp_path, dynamic_filter=False, instance=False, n_prompts=0)
    assert (off.filters, off.instance, off.shared) == (None, None, None)
    assert prompts.picture("prompts", "some run", off) is None
