"""The procedural world's judge: what a picture shows, said by a network that saw none of the generators' models.

tools/world trains it, on other concepts than the test's; its model card says how often it is right.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import streamdec.simulate
from streamdec.errors import ConfigError
from streamdec.simulate.captions import ATTRIBUTES, Attributes
from streamdec.types import Float32

from ..targets.frozen import run
from ..targets.huggingface import network
from ..targets.images import UInt8, resize

FOLDER = Path(streamdec.simulate.__file__).with_name("world_models") / "judge"
SIZE = 64
"""Side of what it was trained on, pixels."""

_BATCH = 64


def opened(device: str = "cpu", folder: Path = FOLDER) -> Callable[[UInt8], tuple[npt.NDArray[Any], Float32]]:
    """Open it: pictures (n, H, W, 3) uint8 -> what they show, (n,) of Attributes; features (n, D) float32.

    The features are what enters its last layer.

    Raises
    ------
    ConfigError
        Its files are not there, or it judges other attributes.
    """
    if not folder.is_dir():
        raise ConfigError(
            "the procedural world's judge", got=f"none at {folder}", do="install streamdec with its models"
        )
    import torch
    from transformers import ResNetForImageClassification

    whole = network(ResNetForImageClassification, str(folder), device, dtype=torch.float32)
    wanted = [f"{name}={value}" for name, values in ATTRIBUTES.items() for value in values]
    if list(whole.config.id2label.values()) != wanted:
        raise ConfigError(f"{folder}", got="a judge of other attributes", do="make it anew: tools/world")
    sizes = [len(values) for values in ATTRIBUTES.values()]

    def batch(pictures: UInt8) -> tuple[list[Attributes], Float32]:
        small = np.stack([resize(picture, SIZE) if len(picture) != SIZE else picture for picture in pictures])
        # -1..1, as the world's other models have pictures
        pixels = torch.from_numpy(small).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = run(lambda n: whole.resnet(pixels[:n].to(device)).pooler_output.flatten(1), len(pixels), device)
        chosen = [part.argmax(1).tolist() for part in whole.classifier(features.to(device)).split(sizes, dim=1)]
        shown = [
            Attributes(**{name: ATTRIBUTES[name][i] for name, i in zip(ATTRIBUTES, row, strict=True)})
            for row in zip(*chosen, strict=True)
        ]
        return shown, np.asarray(features.numpy())

    def look(pictures: UInt8) -> tuple[npt.NDArray[Any], Float32]:
        parts = [batch(pictures[start : start + _BATCH]) for start in range(0, len(pictures), _BATCH)]
        out = np.empty(len(pictures), object)
        out[:] = [one for shown, _ in parts for one in shown]
        return out, np.concatenate([features for _, features in parts])

    return look
