"""Target encoders from open_clip: image tower, text tower and inner layers of any model it names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError  # nothing is unpickled here: torch raises it of files that are not weights
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np
from safetensors import SafetensorError

import streamdec.simulate
from streamdec.errors import ConfigError
from streamdec.types import Float32

from ..data.store import Item
from .frozen import check_device, missing, run
from .images import Images, UInt8
from .provenance import digest
from .text import Sentences, TextOptions

if TYPE_CHECKING:
    from torch import Tensor

TINY = "tiny"
"""A small ViT of ours, for machines without weights and for tests: 64 pixels, 4 x 4 patches, 4 blocks of width 64."""
RANDOM = "random"
"""Name of weights that were never trained: those of seed 0."""
WORLD = "world"
"""Name of weights of :data:`TINY` that were trained on the procedural world's images and sentences."""

_TRAINED = Path(streamdec.simulate.__file__).with_name("world_models") / "vit"


class ImageOptions(msgspec.Struct, frozen=True):
    """Options of image towers.

    ``file`` holding the weights that have the given tag, where there is no network; ``layer`` to take instead of the
    embedding, 1 is the first block; ``pool`` of its tokens: the class token, or the mean of the patches.
    """

    file: str = ""
    layer: int | None = None
    pool: Literal["class", "mean"] = "class"


class TextTowerOptions(TextOptions, frozen=True):
    """Options: those of every text, and ``file`` as for images."""

    file: str = ""


class Loaded(NamedTuple):
    """A frozen model: the network in evaluation mode, image preparation, tokens of texts, and where it is from."""

    network: Any
    transform: Callable[[Any], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    provenance: dict[str, Any]


def load(model: str, weights: str, file: str = "", device: str = "cpu") -> Loaded:
    """Load a model.

    Parameters
    ----------
    model : str
        As open_clip names it, such as "ViT-H-14"; :data:`TINY`; or a folder with its own config, weights and tokenizer.
    weights : str
        A pretrained tag ("laion2b_s32b_b79k"), the path of a local weights file, :data:`RANDOM`, or :data:`WORLD`. For
        weights that only a path names, open_clip's default image preparation and activation hold: see ``file``.
    file : str
        Local file with the weights of that tag, where they cannot be fetched: what the tag says about image
        preparation and activation still holds.
    device : str
        As torch names it.

    Raises
    ------
    ConfigError
        open_clip is not installed, or has no such model or weights; no such device.
    """
    try:
        import open_clip
        import torch
    except ImportError as error:
        raise missing("open_clip", "train") from error
    check_device(device)
    if Path(model).is_dir():
        return _folder(Path(model), device)
    if (model, weights) == (TINY, WORLD):
        return _folder(_TRAINED, device)
    if model == TINY and model not in open_clip.list_models():
        open_clip.add_model_config(Path(__file__).with_name("tiny.json"))
    if model not in open_clip.list_models():
        raise ConfigError("open_clip model", got=model, allowed=f"{TINY}, or one of open_clip.list_models()")
    tag = open_clip.get_pretrained_cfg(model, weights)
    local = file or weights
    if not tag and (file or weights != RANDOM) and (file or not Path(local).is_file()):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none published"
        raise ConfigError(f"weights of {model}", got=weights, allowed=f"{tags}; {RANDOM}; or a file")
    settings: dict[str, Any] = {"pretrained": None if weights == RANDOM else local}
    if file:
        settings |= {
            "force_quick_gelu": tag.get("quick_gelu", False),
            "image_mean": tag["mean"],
            "image_std": tag["std"],
            "image_interpolation": tag["interpolation"],
            "image_resize_mode": tag["resize_mode"],
        }
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, _, transform = open_clip.create_model_and_transforms(model, device=device, **settings)
    except (OSError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
        raise ConfigError(f"weights {local} of {model}", got=str(error), do=_where(tag, model, weights)) from error
    return Loaded(
        network.eval().requires_grad_(False),
        transform,
        open_clip.get_tokenizer(model),
        {
            "model": model,
            "weights": "random, seed 0" if weights == RANDOM else weights if tag else digest(Path(weights)),
            **({"file": digest(Path(file))} if file else {}),
            "open_clip": open_clip.__version__,
        },
    )


def _folder(path: Path, device: str) -> Loaded:
    """Load a model that lies in a folder as open_clip's ``local-dir:`` has it."""
    import open_clip

    where, allowed = f"local-dir:{path}", "open_clip_config.json, its weights as safetensors, and a tokenizer"
    if not any(path.glob("*.safetensors")):  # open_clip would go on with random ones
        raise ConfigError(f"open_clip model {path}", got="no weights", allowed=allowed)
    try:
        network, _, transform = open_clip.create_model_and_transforms(where, device=device)
        tokenize = open_clip.get_tokenizer(where)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(f"open_clip model {path}", got=first, allowed=allowed) from error
    told = {"model": digest(path), "open_clip": open_clip.__version__}
    return Loaded(network.eval().requires_grad_(False), transform, tokenize, told)


def _where(tag: dict[str, Any], model: str, weights: str) -> str:
    """Say how weights get here without a network."""
    hub, _, name = tag.get("hf_hub", "").rpartition("/")
    source = f"https://huggingface.co/{hub} ({name or 'open_clip_model.safetensors'})" if hub else tag.get("url", "")
    if not source:
        return "give another file"
    return f"without a network, fetch {source} elsewhere and name the file: {model}/{weights}@file=PATH"


def split(name: str) -> tuple[str, str]:
    """Split "MODEL/WEIGHTS"; weights may be a path. A folder is both.

    Raises
    ------
    ConfigError
        One of them is not there.
    """
    if Path(name).is_dir():
        return name, ""
    model, _, weights = name.partition("/")
    if not model or not weights:
        raise ConfigError(
            "open_clip model", got=repr(name), allowed="MODEL/WEIGHTS, such as ViT-B-32/laion2b_s34b_b79k"
        )
    return model, weights


def stacked(transform: Callable[[Any], Tensor], items: Sequence[Item], images: Images) -> Tensor:
    """Prepare the images of items for a network: (n, 3, height, width)."""
    import torch
    from PIL import Image

    def prepare(image: UInt8) -> Tensor:
        return transform(Image.fromarray(image))

    return torch.stack(images.map(prepare, items))


class OpenClip:
    """Image features as ``encode_image`` gives them, or the tokens of one layer, pooled; not normalised.

    Parameters
    ----------
    name : str
        "MODEL/WEIGHTS", see :func:`load`.
    options : ImageOptions
    device : str
        As torch names it.

    Raises
    ------
    ConfigError
        See :func:`load`; the network has no such layer.
    """

    def __init__(self, name: str, options: ImageOptions, device: str = "cpu") -> None:
        self.name = f"open_clip:{name}"
        self._loaded, self._device = load(*split(name), options.file, device), device
        self._encode: Callable[[Tensor], Tensor] = self._loaded.network.encode_image
        self.provenance: dict[str, Any] = {**self._loaded.provenance, "preprocess": str(self._loaded.transform)}
        if options.layer is not None:
            self._encode = self._layer(options.layer, options.pool)
            self.provenance |= {"layer": options.layer, "pool": options.pool}

    def _layer(self, layer: int, pool: str) -> Callable[[Tensor], Tensor]:
        visual = self._loaded.network.visual
        n_layers = len(getattr(getattr(visual, "transformer", None), "resblocks", ()))
        if not 1 <= layer <= n_layers:
            allowed = f"1..{n_layers}" if n_layers else "none: not a vision transformer of open_clip's own"
            raise ConfigError(f"layer of {self.name}", got=layer, allowed=allowed)

        def encode(batch: Tensor) -> Tensor:
            found = visual.forward_intermediates(
                batch,
                indices=[layer - 1],
                stop_early=True,
                intermediates_only=True,
                output_fmt="NLC",
                output_extra_tokens=True,
            )
            if pool == "class":
                first: Tensor = found["image_intermediates_prefix"][0][:, 0]
                return first
            mean: Tensor = found["image_intermediates"][0].mean(1)
            return mean

        return encode

    def __call__(self, items: Sequence[Item], images: Images) -> Float32:
        """(n, D)."""
        batch = stacked(self._loaded.transform, items, images)
        features = run(lambda n: self._encode(batch[:n].to(self._device)), len(batch), self._device)
        return np.asarray(features.float().numpy())


class OpenClipText:
    """Text features as ``encode_text`` gives them, not normalised.

    Parameters
    ----------
    name : str
        "MODEL/WEIGHTS", see :func:`load`.
    options : TextTowerOptions
    device : str
        As torch names it.
    """

    def __init__(self, name: str, options: TextTowerOptions, device: str = "cpu") -> None:
        self.name = f"open_clip_text:{name}"
        self._sentences = Sentences(options)
        self._loaded, self._device = load(*split(name), options.file, device), device
        self._encode: Callable[[Tensor], Tensor] = self._loaded.network.encode_text
        self.provenance: dict[str, Any] = {**self._loaded.provenance, "text": self._sentences.provenance}

    def __call__(self, items: Sequence[Item], images: Images) -> Float32:
        """(n, D)."""
        tokens = self._loaded.tokenize(self._sentences.of(items))
        features = run(lambda n: self._encode(tokens[:n].to(self._device)), len(tokens), self._device)
        return np.asarray(features.float().numpy())
