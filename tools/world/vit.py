"""The pair of towers of :mod:`.clip` with a vision transformer, whose tokens NeuroCLIP prompts: a ResNet has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clip
from data import Data

CONFIG: dict[str, Any] = {
    **clip.CONFIG,
    "model_cfg": {
        **clip.CONFIG["model_cfg"],
        "embed_dim": 64,
        "vision_cfg": {"image_size": 64, "patch_size": 16, "layers": 4, "width": 64, "head_width": 16},
    },
}
"""Its vision tower is of the sizes of offline.targets.openclip's ``tiny``."""


def make(data: Data, cache: Path, out: Path, steps: int = 1500, batch: int = 192) -> dict[str, Any]:
    """Train it and write it to ``out``, as open_clip reads a ``local-dir:``."""
    return clip.make(data, cache, out, steps, batch, name="vit", config=CONFIG)


measure = clip.measure
