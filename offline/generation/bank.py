"""A bank of sentences in the space of a text tower, and the way there from the bundle's embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from streamdec.decode.evidence import calibrate
from streamdec.decode.gallery import unit
from streamdec.errors import DataError
from streamdec.types import Float32

from .. import checkpoint
from ..checkpoint import replace, writing
from ..data.store import Int64, Item
from ..targets.images import Images
from ..targets.registry import encoder
from . import onnx_file
from .linear import fit_linear

_MAX_SCALE = 1000.0
_BATCH = 256
_CHECKED = 8
_ASKED = 2000  # images the scale is fitted on, at most


def sentences_of(captions: Sequence[str]) -> list[str]:
    """Make one line of each caption, each once, in alphabetical order.

    Raises
    ------
    DataError
        There is none.
    """
    found = sorted({" ".join(caption.split()) for caption in captions} - {""})
    if not found:
        raise DataError("captions for a bank", got="none")
    return found


def features_of(sentences: Sequence[str], name: str, device: str = "cpu") -> Float32:
    """Features of sentences, (n, D) of length 1, by a text encoder such as ``open_clip_text:ViT-B-32/openai``."""
    items = [Item(str(i), sentence, "") for i, sentence in enumerate(sentences)]
    tower, nothing = encoder(name, items, device), Images(Path())
    parts = [tower(items[start : start + _BATCH], nothing) for start in range(0, len(items), _BATCH)]
    return unit(np.concatenate(parts))


def write_bank(
    folder: Path,
    captions: Sequence[str],
    text: str,
    embeddings: Float32,
    images: Float32,
    group: Int64,
    queries: Float32,
    own: Sequence[str],
    device: str = "cpu",
) -> tuple[float, str, float]:
    """Write ``bank.safetensors``, ``bank.json`` and, where the spaces differ, ``bank_adapter.onnx``.

    Parameters
    ----------
    folder : Path
    captions : sequence of str
        What may be said.
    text : str
        Text encoder, of the model whose image tower gave ``images``.
    embeddings : array of shape (n, dim), float32
        Of images, in the bundle's space and of its length.
    images : array of shape (n, D), float32
        Of the same images, in the space of the text tower.
    group : array of shape (n,), int64
        Images of one concept.
    queries : array of shape (m, dim), float32
        Of epochs, as the tiers read them; ``own`` their images' captions, of those in ``captions``. The scale is
        fitted on them: where the encoder was trained on these, it is too sure of new ones.
    device : str

    Returns
    -------
    scale : float
        softmax(scale * cosine) is the probability of a sentence.
    adapter : str
        Name of its file, "" where none is needed.
    explained : float
        Share of the variance of ``images`` that the adapter explains in concepts left out; 1 without one.
    """
    said = sentences_of(captions)
    features = features_of(said, text, device)
    adapter, explained, seen = "", 1.0, queries
    if embeddings.shape != images.shape or not np.allclose(unit(embeddings), unit(images), atol=1e-4):
        layer, explained = fit_linear(embeddings, images, group)
        adapter = "bank_adapter.onnx"
        rows = np.linspace(0, len(embeddings) - 1, _CHECKED).astype(int)
        examples = [{"embedding": np.ascontiguousarray(embeddings[i : i + 1])} for i in rows]
        onnx_file.write(folder / adapter, layer, examples, "features")
        seen = (queries @ layer.weight.numpy().T + layer.bias.numpy()).astype(np.float32)
    place = {sentence: i for i, sentence in enumerate(said)}
    asked = np.linspace(0, len(own) - 1, min(_ASKED, len(own))).astype(int)
    right = np.array([place[" ".join(own[i].split())] for i in asked], np.int64)
    scale = float(calibrate(unit(seen[asked]) @ features.T, right, _MAX_SCALE))
    checkpoint.save(folder / "bank.safetensors", {"features": features})
    with writing(folder):
        replace(folder / "bank.json", msgspec.json.encode(said))
    return scale, adapter, explained
