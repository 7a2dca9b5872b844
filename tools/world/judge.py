"""What a picture shows, judged by a network that saw none of the other models (transformers' ResNet)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip import pixels
from data import Data
from torch import Tensor
from torch.nn import functional
from training import train
from transformers import ResNetConfig, ResNetForImageClassification

from streamdec.simulate.captions import ATTRIBUTES, Attributes
from streamdec.simulate.features import UInt8

SEED = 14
LABELS = [f"{name}={value}" for name, values in ATTRIBUTES.items() for value in values]
_PARTS = [len(values) for values in ATTRIBUTES.values()]


def build() -> ResNetForImageClassification:
    """Make the untrained network: one output for each value of each attribute."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=24,
            hidden_sizes=[24, 48, 96, 128],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            id2label=dict(enumerate(LABELS)),
            label2id={label: i for i, label in enumerate(LABELS)},
        )
    ).to(memory_format=torch.channels_last)


def make(data: Data, cache: Path, out: Path, steps: int = 1800, batch: int = 128) -> dict[str, Any]:
    """Train it and write it to ``out``."""
    torch.manual_seed(SEED)
    module = build()
    truth = torch.tensor([[v.index(getattr(shown, k)) for k, v in ATTRIBUTES.items()] for shown in data.shows])

    def batch_loss(rng: np.random.Generator) -> Tensor:
        rows = np.sort(rng.integers(len(data.images), size=batch))
        parts = module(soften(pixels(data.images[rows]), rng)).logits.split(_PARTS, dim=1)
        losses = [functional.cross_entropy(part, truth[rows, i]) for i, part in enumerate(parts)]
        return torch.stack(losses).mean()

    trained = train(module, batch_loss, cache / "judge.pt", steps=steps, rate=2e-3, seed=SEED)
    trained.to(memory_format=torch.contiguous_format).half().save_pretrained(out)
    return {"steps": steps, "batch": batch, "seed": SEED}


def soften(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur or add noise to some, as drawn pictures are: what it judges is never as clean as what it learnt from."""
    if rng.random() < 0.3:
        images = functional.interpolate(functional.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    return images + float(rng.uniform(0, 0.1)) * torch.randn_like(images)


def read(folder: Path, images: UInt8) -> list[Attributes]:
    """Judge pictures, (n, 64, 64, 3) uint8."""
    network = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        parts = network(pixels(images)).logits.split(_PARTS, dim=1)
    chosen = [part.argmax(dim=1).tolist() for part in parts]
    return [
        Attributes(*(values[i] for values, i in zip(ATTRIBUTES.values(), row, strict=True)))
        for row in zip(*chosen, strict=True)
    ]


def measure(folder: Path, data: Data, n: int = 200) -> dict[str, float]:
    """Share of right judgements on images of ``n`` test concepts, for each attribute."""
    images, shows = data.test(n)
    seen = read(folder, images)
    return {
        name: round(float(np.mean([getattr(a, name) == getattr(b, name) for a, b in zip(seen, shows, strict=True)])), 3)
        for name in ATTRIBUTES
    }
