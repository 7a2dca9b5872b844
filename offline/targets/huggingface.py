"""Target encoders from transformers: any vision or text model ``AutoModel`` opens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from safetensors import SafetensorError

from streamdec.errors import ConfigError
from streamdec.types import Float32

from ..data.store import Item
from .frozen import check_device, missing, run
from .images import Images
from .provenance import digest
from .text import Sentences, TextOptions

if TYPE_CHECKING:
    from torch import Tensor


class VisionOptions(msgspec.Struct, frozen=True):
    """Options of vision models.

    ``layer`` whose hidden states are taken instead of the embedding, 0 is what enters the first block; ``pool`` of its
    tokens: the first, which is the class token where the model has one, or the mean of all.
    """

    layer: int | None = None
    pool: Literal["class", "mean"] = "class"


def opened(load: Callable[..., Any], name: str, **settings: Any) -> Any:
    """Call a ``from_pretrained``.

    Parameters
    ----------
    load : callable
    name : str
        Folder, or name on the hub.
    **settings
        Passed on.

    Raises
    ------
    ConfigError
        Nothing of this name here, and it cannot be fetched.
    """
    try:
        return load(name, **settings)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().partition("\n")[0]
        do = f"without a network, run 'hf download {name} --local-dir FOLDER' elsewhere, bring FOLDER here and name it"
        raise ConfigError(
            f"model {name}", got=first, do="look into the folder" if Path(name).is_dir() else do
        ) from error


def network(kind: Any, name: str, device: str, **settings: Any) -> Any:
    """Load a network, for use only.

    Parameters
    ----------
    kind : class
        Has ``from_pretrained``.
    name : str
        Folder, or name on the hub.
    device : str
        As torch names it.
    **settings
        Passed on.

    Raises
    ------
    ConfigError
        Nothing of this name; the weights are not all there, and would be random; no such device.
    """
    check_device(device)
    made, info = opened(kind.from_pretrained, name, output_loading_info=True, **settings)
    lacking = sorted(info["missing_keys"])
    if lacking and all(key.startswith("pooler.") for key in lacking):
        made.pooler, lacking = None, []  # trained for another end: the class token stands for the pooled output
    if lacking:
        raise ConfigError(f"weights of {name}", got=f"none for {lacking[0]}", do="look into its files")
    return made.eval().requires_grad_(False).to(device)


def provenance(name: str, network: Any, package: str) -> dict[str, Any]:
    """Where a model is from: a folder's digest, or the commit on the hub."""
    import importlib.metadata

    local = Path(name)
    weights = digest(local) if local.is_dir() else getattr(network.config, "_commit_hash", None)
    return {
        "model": name,
        "class": type(network).__name__,
        "weights": weights,
        package: importlib.metadata.version(package),
    }


class Vision:
    """Image features: projected where the model is of the CLIP family, else pooled, else the first token.

    Parameters
    ----------
    name : str
        Folder, or name on the hub.
    options : VisionOptions
    device : str
        As torch names it.

    Raises
    ------
    ConfigError
        transformers is not installed; no such model, or it sees no images; it has no such layer.
    """

    def __init__(self, name: str, options: VisionOptions, device: str = "cpu") -> None:
        try:
            import transformers
        except ImportError as error:
            raise missing("transformers", "train") from error
        self.name, self._device = f"transformers:{name}", device
        config = opened(transformers.AutoConfig.from_pretrained, name)
        self._processor = opened(transformers.AutoImageProcessor.from_pretrained, name)
        # AutoModel drops the projection of a lone CLIP vision tower, such as IP-Adapter's image encoder.
        projected = [made for made in config.architectures or () if made.endswith("VisionModelWithProjection")]
        kind = getattr(transformers, projected[0]) if projected else transformers.AutoModel
        self._network = network(kind, name, device)
        self.provenance: dict[str, Any] = {
            **provenance(name, self._network, "transformers"),
            "preprocess": msgspec.to_builtins(self._processor.to_dict(), enc_hook=str),
        }
        self._encode: Callable[[Tensor], Tensor] = self._embedding
        if options.layer is not None:
            self._encode = self._layer(options.layer, options.pool)
            self.provenance |= {"layer": options.layer, "pool": options.pool}

    def _embedding(self, batch: Tensor) -> Tensor:
        if hasattr(self._network, "get_image_features"):
            return pooled(self._network.get_image_features(pixel_values=batch))
        return pooled(self._network(pixel_values=batch))

    def _layer(self, layer: int, pool: str) -> Callable[[Tensor], Tensor]:
        tower = self._network.vision_model if hasattr(self._network, "get_image_features") else self._network
        n_layers = getattr(tower.config, "num_hidden_layers", 0)
        if not 0 <= layer <= n_layers:
            raise ConfigError(f"layer of {self.name}", got=layer, allowed=f"0..{n_layers}")

        def encode(batch: Tensor) -> Tensor:
            states: Tensor = tower(pixel_values=batch, output_hidden_states=True).hidden_states[layer]
            return states[:, 0] if pool == "class" else states.mean(1)

        return encode

    def __call__(self, items: Sequence[Item], images: Images) -> Float32:
        """(n, D)."""
        pixels = self._processor(images=images.of(items), return_tensors="pt")["pixel_values"]
        features = run(lambda n: self._encode(pixels[:n].to(self._device)), len(pixels), self._device)
        return np.asarray(features.float().flatten(1).numpy())


class Text:
    """Text features: projected where the model is of the CLIP family, else the mean of the last layer's tokens.

    Parameters
    ----------
    name : str
        Folder, or name on the hub.
    options : TextOptions
    device : str
        As torch names it.

    Raises
    ------
    ConfigError
        transformers is not installed; no such model.
    """

    def __init__(self, name: str, options: TextOptions, device: str = "cpu") -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise missing("transformers", "train") from error
        self.name, self._device = f"transformers_text:{name}", device
        self._sentences = Sentences(options)
        self._tokenizer = opened(AutoTokenizer.from_pretrained, name)
        self._network = network(AutoModel, name, device)
        self.provenance: dict[str, Any] = {
            **provenance(name, self._network, "transformers"),
            "text": self._sentences.provenance,
        }

    def __call__(self, items: Sequence[Item], images: Images) -> Float32:
        """(n, D)."""
        tokens = self._tokenizer(self._sentences.of(items), padding=True, truncation=True, return_tensors="pt")
        ids, mask = tokens["input_ids"].to(self._device), tokens["attention_mask"].to(self._device)
        features = run(lambda n: self._encode(ids[:n], mask[:n]), len(ids), self._device)
        return np.asarray(features.float().numpy())

    def _encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        if hasattr(self._network, "get_text_features"):
            return pooled(self._network.get_text_features(input_ids=ids, attention_mask=mask))
        states: Tensor = self._network(input_ids=ids, attention_mask=mask).last_hidden_state
        share = mask.unsqueeze(2).to(states.dtype)
        return (states * share).sum(1) / share.sum(1)


def pooled(output: Any) -> Tensor:
    """Take one vector per input from what a model of transformers gives."""
    for field in ("image_embeds", "pooler_output"):
        found: Tensor | None = getattr(output, field, None)
        if found is not None:
            return found
    first: Tensor = output.last_hidden_state[:, 0]
    return first
