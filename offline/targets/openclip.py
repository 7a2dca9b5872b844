"""Target encoders from open_clip: the image tower of any model it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamdec.errors import ConfigError
from streamdec.types import Float32

from ..data.store import Item
from .images import read_rgb


class OpenClip:
    """Image features as ``encode_image`` gives them, not normalised.

    Parameters
    ----------
    model : str
        As open_clip names it, such as "ViT-H-14".
    weights : str
        A pretrained tag ("laion2b_s32b_b79k") or the path of a local weights file.
    device : str
        As torch names it.

    Raises
    ------
    ConfigError
        open_clip is not installed, or has no such model or weights.
    """

    def __init__(self, model: str, weights: str, device: str = "cpu") -> None:
        try:
            import open_clip
        except ImportError as error:
            raise ConfigError("open_clip is not installed", do="pip install 'streamdec[train]'") from error
        if model not in open_clip.list_models():
            raise ConfigError("open_clip model", got=model, do="see open_clip.list_models()")
        local = Path(weights).is_file()
        if not local and weights not in open_clip.list_pretrained_tags_by_model(model):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model))
            raise ConfigError(f"weights of {model}", got=weights, allowed=f"{tags}, or a file")
        try:
            network, _, self._transform = open_clip.create_model_and_transforms(
                model, pretrained=weights, device=device
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"weights {weights} of {model}", got=str(error), do="download them first, or give a file"
            ) from error
        self._network, self._device = network.eval(), device
        self.name = f"open_clip:{model}/{weights}"
        self.provenance: dict[str, Any] = {
            "model": model,
            "weights": _digest(Path(weights)) if local else weights,
            "open_clip": open_clip.__version__,
            "preprocess": str(self._transform),
        }

    def __call__(self, items: Sequence[Item], images: Path) -> Float32:
        """(n, D)."""
        import torch
        from PIL import Image

        batch = torch.stack([self._transform(Image.fromarray(read_rgb(images / item.image))) for item in items])
        with torch.inference_mode():
            features = self._network.encode_image(batch.to(self._device))
        return np.asarray(features.float().cpu().numpy())


def _digest(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
