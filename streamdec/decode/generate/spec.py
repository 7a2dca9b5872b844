"""What a generator says of itself: its generator.json as data.

A generator is a folder beside a bundle: it turns the bundle's embeddings into captions and pictures. It needs no code
of whoever trained it: small networks are ONNX, arrays safetensors, and the large frozen models are folders in the
layout of transformers and diffusers, inside it or named by path or hub name.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import msgspec

from ...errors import BundleError

SCHEMA = 1
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]


class Bank(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Captions by the nearest sentence.

    ``features`` a safetensors file with ``features`` (n_sentences, D) float32; ``sentences`` a JSON list of as many
    texts; ``adapter`` an ONNX network (1, dim) -> (1, D) into their space, "" where the embedding is in it; ``scale``
    makes softmax(scale * cosine) a probability.
    """

    features: str
    sentences: str
    scale: float
    adapter: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise BundleError("bank scale", got=self.scale, allowed="finite, 0 or more")


class Llm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Captions by a frozen language model, as Thought2Text (arXiv 2410.07507) gives it the embedding.

    ``model`` a folder of the generator (with a slash or without), an absolute path, or a hub name: any causal LM of
    transformers. ``projector`` an ONNX network (1, dim) -> (1, n_vectors, width of the LM), which stand where
    ``prompt`` has ``<image>``; ``<label>`` there is replaced by the best candidate's label. ``system`` message for
    models with a chat template. An answer has up to ``max_tokens``, and is not begun where there is time for less than
    ``min_tokens``; ``repetition_penalty`` is the reference's.
    """

    model: str
    projector: str
    prompt: str = "<image> <label> Describe this image in one sentence:"
    system: str = "You are a helpful assistant."
    min_tokens: int = 8
    max_tokens: int = 100
    repetition_penalty: float = 1.1
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if self.prompt.count("<image>") != 1 or self.prompt.count("<label>") > 1:
            raise BundleError("llm prompt", got=repr(self.prompt), allowed="<image> once, <label> at most once")
        if not 1 <= self.min_tokens <= self.max_tokens:
            raise BundleError("llm tokens", got=f"{self.min_tokens}..{self.max_tokens}", allowed="1 or more, rising")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise BundleError("llm repetition_penalty", got=self.repetition_penalty, allowed="above 0")


class Latent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A picture in one pass: regression to a low-level latent, and its decoder, as one ONNX network.

    ``network`` (1, dim) or (1, n_chans, n_times), by ``reads``, -> (1, 3, height, width) float32 in 0..1.
    """

    network: str
    reads: Literal["embedding", "epoch"] = "embedding"


class Drawing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a diffusion model draws.

    ``captioned``: the prompt is what the generator's language model says of the same evidence, in place of none, cut at
    what the text encoders take (CLIP's 77 tokens); it is loaded beside this model, and every picture waits for it.
    ``vae`` another autoencoder for it (a tiny one is faster), "" for its own. ``scheduler`` a class of diffusers, ""
    for the model's own. ``min_steps``..``max_steps`` as time allows. ``guidance`` against no image, above 1 it doubles
    the cost. ``adapter_scale`` of what the adapter adds. ``preview`` steps of fewer than which no preview is sent, 0
    for never.
    """

    captioned: bool = False
    vae: str = ""
    scheduler: str = ""
    min_steps: int = 1
    max_steps: int = 4
    guidance: float = 0.0
    adapter_scale: float = 1.0
    preview: int = 0
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if not 1 <= self.min_steps <= self.max_steps:
            raise BundleError("diffusion steps", got=f"{self.min_steps}..{self.max_steps}", allowed="1 or more, rising")
        if not (math.isfinite(self.guidance) and math.isfinite(self.adapter_scale)):
            raise BundleError("diffusion guidance and adapter_scale", allowed="finite")


class Diffusion(Drawing, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A picture by a frozen diffusion model and an IP-Adapter.

    ``model`` as in :class:`Llm`: any text-to-image pipeline of diffusers with a UNet2DConditionModel, and ``vae`` any
    autoencoder for it. ``adapter`` IP-Adapter weights in the official layout
    (safetensors, ``image_proj.*`` and ``ip_adapter.*``), of the plain kind: one vector, 4 tokens. ``prompt`` a
    safetensors file with ``prompt_embeds`` and, where the model takes them, ``pooled_prompt_embeds`` of the empty
    prompt: only where pictures are captioned are text encoders loaded. ``conditioner`` an ONNX network (1, dim) [and
    ``noise``, of any fixed shape] -> (1, D) before the adapter: the projector phi_c of a Fusion Prior, or a whole
    sampled diffusion prior; "" feeds the embedding as it is. ``size`` of the image, pixels.
    """

    model: str
    adapter: str
    prompt: str
    size: int
    conditioner: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 8 or self.size % 8:
            raise BundleError("diffusion size", got=self.size, allowed="a multiple of 8")


class Generator(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a generator says of itself.

    ``space`` names the embedding space it reads and ``dim`` its dimension: a bundle of another space is refused.
    ``query`` an ONNX network (1, dim) -> (1, dim) that an embedding goes through before any tier reads it, "" for none:
    what the embedding of an epoch lets expect of its image's, which everything else was fitted on.
    ``citation``, ``created`` (ISO 8601), ``commit``, ``config``, ``seeds`` and ``data`` tell where it comes from,
    ``simulated`` that its data were. A tier that is None is not there; ``nearest`` always is. ``files`` sha256 of
    every other file of the folder.
    """

    schema: int = SCHEMA
    space: str
    dim: int
    citation: str
    created: str
    commit: str
    config: dict[str, Any]
    seeds: tuple[int, ...]
    data: str
    simulated: bool
    query: str = ""
    bank: Bank | None = None
    llm: Llm | None = None
    latent: Latent | None = None
    diffusion: Diffusion | None = None
    files: dict[str, str] = {}

    def __post_init__(self) -> None:
        if self.diffusion is not None and self.diffusion.captioned and self.llm is None:
            raise BundleError("captioned pictures", got="no language model", allowed="with llm")
