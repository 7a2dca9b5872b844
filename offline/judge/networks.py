"""The frozen networks that reconstructions are compared through, and where their weights are looked for.

The table is that of MindEye (Scotti et al. 2023, arXiv 2305.18274), which ATM, CognitionCapturer and Brain-HIVE kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError  # nothing is unpickled here: torch raises it of files that are not weights
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import numpy as np

from streamdec.errors import ConfigError
from streamdec.types import Float32

from ..targets import openclip
from ..targets.frozen import check_device, missing, run
from ..targets.images import UInt8
from ..targets.provenance import digest
from .pictures import scaled

if TYPE_CHECKING:
    from torch import Tensor, nn

Look: TypeAlias = Callable[[UInt8], tuple[Float32, ...]]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_BATCH = 16
_OFFICIAL = "https://download.pytorch.org/models/"


class Layer(msgspec.Struct, frozen=True):
    """What one figure looks at: a network's node, at pictures of ``size`` pixels, by one of two comparisons."""

    network: str
    node: str
    size: int
    figure: Literal["two_way", "distance"]


LAYERS: dict[str, Layer] = {
    "AlexNet(2)": Layer("alexnet", "features.4", 256, "two_way"),
    "AlexNet(5)": Layer("alexnet", "features.11", 256, "two_way"),
    "Inception": Layer("inception_v3", "avgpool", 342, "two_way"),
    "CLIP": Layer("clip", "encode_image", 224, "two_way"),
    "EfficientNet": Layer("efficientnet_b1", "avgpool", 255, "distance"),
    "SwAV": Layer("swav", "avgpool", 224, "distance"),
}
"""Two-way identification is better the higher, correlation distance the lower."""


def groups() -> list[tuple[str, ...]]:
    """Layers of each network together, in the order of the table."""
    of: dict[str, list[str]] = {}
    for name, layer in LAYERS.items():
        of.setdefault(layer.network, []).append(name)
    return [tuple(names) for names in of.values()]


class Weights(msgspec.Struct, frozen=True):
    """A published file of weights.

    ``architecture`` in torchvision, made with ``settings``. The eight hexadecimal digits at the end of a torchvision
    file's name begin its sha256, and are checked.
    """

    architecture: str
    url: str
    settings: dict[str, Any] = {}

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]

    @property
    def begins(self) -> str:
        """First digits of its sha256, "" where the name does not tell."""
        found = re.search(r"-([0-9a-f]{8})\.pth$", self.file)
        return found[1] if found else ""


TORCHVISION: dict[str, Weights] = {
    "alexnet": Weights("alexnet", _OFFICIAL + "alexnet-owt-7be5be79.pth"),
    # With its pretrained weights torchvision turns transform_input on: what is normalised comes as Inception knew it.
    "inception_v3": Weights(
        "inception_v3",
        _OFFICIAL + "inception_v3_google-0cc3c7bd.pth",
        {"transform_input": True, "init_weights": False},
    ),
    "efficientnet_b1": Weights("efficientnet_b1", _OFFICIAL + "efficientnet_b1-c27df63c.pth"),
    # The hub entry facebookresearch/swav is this file in torchvision's ResNet-50; its code is not run.
    "swav": Weights("resnet50", "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"),
}
CLIP_FILE = "vit_large_patch14_clip_224.openai.safetensors"
"""OpenAI's ViT-L/14 as timm publishes it, under this name in the folder of weights."""
_CLIP_SOURCE = "https://huggingface.co/timm/vit_large_patch14_clip_224.openai (open_clip_model.safetensors)"


def opened(layers: Sequence[str], folder: Path | None = None, device: str = "cpu") -> Look:
    """Open layers of one network.

    Parameters
    ----------
    layers : sequence of str
        Keys of :data:`LAYERS`, all of one network.
    folder : Path, optional
        Where weights lie; else the caches of torch and of the Hugging Face hub, which are filled where there is a
        network.
    device : str
        As torch names it.

    Returns
    -------
    callable
        Pictures (n, H, W, 3) uint8 -> (n, D) float32 of each layer.

    Raises
    ------
    ConfigError
        torchvision or open_clip is not installed; the weights are not here and cannot be fetched, or are others.
    """
    first = LAYERS[layers[0]]
    network: Callable[[Tensor], Sequence[Tensor]]
    if first.network == "clip":
        network = clip(folder, device)
    else:
        whole = torchvision_network(TORCHVISION[first.network], folder)
        network = extractor(whole, [LAYERS[name].node for name in layers]).to(device)
    return lambda pictures: through(network, pictures, first.size, device)


def through(
    network: Callable[[Tensor], Sequence[Tensor]], pictures: UInt8, size: int, device: str
) -> tuple[Float32, ...]:
    """Run a network, which normalises by itself, on pictures of ``size``: (n, D) float32 of each of its outputs."""
    batches = [
        _batch(network, scaled(pictures[start : start + _BATCH], size), device)
        for start in range(0, len(pictures), _BATCH)
    ]
    return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))


def _batch(network: Callable[[Tensor], Sequence[Tensor]], pixels: Float32, device: str) -> list[Float32]:
    import torch

    whole = torch.from_numpy(pixels)
    kept: list[Tensor] = []

    def call(n: int) -> Tensor:
        kept[:] = [one.cpu().flatten(1) for one in network(whole[:n].to(device))]
        return kept[0]

    run(call, len(whole), device)
    return [np.asarray(one.float().numpy()) for one in kept]


def extractor(network: nn.Module, nodes: Sequence[str]) -> nn.Module:
    """Make of a torchvision network one that normalises as ImageNet's do and gives the outputs of nodes."""
    from torch import nn
    from torchvision.models.feature_extraction import create_feature_extractor

    inner = create_feature_extractor(network, return_nodes=list(nodes), suppress_diff_warning=True)

    class Extractor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, pixels: Tensor) -> list[Tensor]:
            outputs = self.inner(_normalised(pixels, *_IMAGENET))
            return [outputs[node] for node in nodes]

    return Extractor().eval().requires_grad_(False)


def torchvision_network(weights: Weights, folder: Path | None = None) -> nn.Module:
    """Make a network of torchvision's with published weights, in evaluation mode.

    Raises
    ------
    ConfigError
        torchvision is not installed; the file is neither in the folder nor can it be fetched, or holds other weights.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise missing("torchvision", "judge") from error
    import torch

    where = folder or Path(torch.hub.get_dir()) / "checkpoints"
    path = where / weights.file
    do = f"without a network, fetch {weights.url} elsewhere and put it into {where}"
    if folder is not None and not path.is_file():
        raise ConfigError(f"weights {weights.file}", got=f"none in {folder}", do=do)
    if not path.is_file():
        try:
            where.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(path), progress=False)
        except OSError as error:  # of the network too
            raise ConfigError(
                f"weights {path.name}", got=f"none in {where}, and {getattr(error, 'reason', error)}", do=do
            ) from error
    if weights.begins and not digest(path).startswith(f"sha256:{weights.begins}"):
        raise ConfigError(f"weights {path}", got="another file under this name", do=do)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        raise ConfigError(f"weights {path}", got=str(error).partition("\n")[0], do=do) from error
    network: nn.Module = getattr(models, weights.architecture)(weights=None, **weights.settings)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    wanted = network.state_dict()
    # What SwAV has beyond the backbone, and the classifier that it lacks, feed no layer of the table.
    lacking = [key for key in wanted if key not in state and not key.startswith("fc.")]
    if lacking:
        raise ConfigError(f"weights {path}", got=f"none for {lacking[0]}", do=do)
    network.load_state_dict({key: value for key, value in state.items() if key in wanted}, strict=False)
    return network.eval()


def clip(folder: Path | None = None, device: str = "cpu") -> Callable[[Tensor], list[Tensor]]:
    """Make OpenAI's CLIP ViT-L/14: pixels in 0..1 -> [projected image features, 768, not normalised].

    Raises
    ------
    ConfigError
        open_clip is not installed; the weights are not here and cannot be fetched.
    """
    check_device(device)
    file = "" if folder is None else str(folder / CLIP_FILE)
    do = f"fetch {_CLIP_SOURCE} elsewhere and put it into the folder of weights as {CLIP_FILE}"
    if file and not Path(file).is_file():
        raise ConfigError(f"weights {CLIP_FILE}", got=f"none in {folder}", do=do)
    try:
        loaded = openclip.load("ViT-L-14", "openai", file, device)
    except ConfigError as error:
        if not isinstance(error.__cause__, ImportError):
            raise ConfigError("weights of CLIP ViT-L/14", got="none here, and no network", do=do) from error
        raise
    mean, std = loaded.network.visual.image_mean, loaded.network.visual.image_std
    return lambda pixels: [loaded.network.encode_image(_normalised(pixels, mean, std))]


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    shape = (1, 3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)
