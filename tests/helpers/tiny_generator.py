"""Generators of models with random weights, small enough for a test, and requests for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
import tiny_diffusers
import tokenizers
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper

from streamdec.decode.generate.generator import OpenGenerator, write_generator
from streamdec.decode.generate.job import Kind, Request, Result
from streamdec.decode.generate.spec import Bank, Diffusion, Generator, Latent, Llm
from streamdec.types import Candidate

DIM = 6
UNKNOWN = "[UNK]"
WORDS = "a the large small red blue green ring disc star on to left right dark ground image describe label this in one "
WORDS += "user assistant system : you are helpful"
ENDED = [*WORDS.split(), ".", "!"]
CHAT = "{% for m in messages %}<s> {{ m['role'] }} : {{ m['content'] }} {% endfor %}"
CHAT += "{% if add_generation_prompt %}<s> assistant : {% endif %}"


def generator(folder: Path, **tiers: Any) -> OpenGenerator:
    """Write the manifest of a folder that has the files already."""
    about = {"space": "space", "dim": DIM, "citation": "", "created": "", "commit": "", "config": {}, "seeds": (0,)}
    return write_generator(folder, Generator(**(about | {"data": "", "simulated": True} | tiers)))


def request(kind: Kind = "caption", **changes: Any) -> Request:
    embedding = np.random.default_rng(changes.pop("seed", 1)).standard_normal(DIM, dtype=np.float32)
    candidates = (Candidate("img1", "red ring", 0.9, 0.8), Candidate("img2", "blue disc", 0.5, 0.1))
    made = Request(1, kind, "img1", 3, 10.0, 11.0, candidates, embedding)
    return msgspec.structs.replace(made, **changes)


class Listener:
    """Keeps what a tier reports, and ends its run after a number of units."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.heard: list[tuple[Result, int]] = []
        self._stop_after = stop_after

    def __call__(self, result: Result, units: int) -> bool:
        self.heard.append((result, units))
        return units < self._stop_after


def linear(
    path: Path, weights: np.ndarray, shape: Sequence[int] = (), *, noise: int = 0, inputs: Sequence[int] | None = None
) -> Path:
    """An ONNX network: flatten, multiply by weights (n_in, n_out), add noise (1, noise), reshape to (1, *shape)."""
    given = [1, weights.shape[0]] if inputs is None else [1, *inputs]
    shape = shape or (weights.shape[1],)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("Add", ["product", "noise" if noise else "zero"], ["sum"]),
        helper.make_node("Reshape", ["sum", "shape"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)]
    if noise:
        infos.append(helper.make_tensor_value_info("noise", TensorProto.FLOAT, [1, noise]))
    constants = [
        numpy_helper.from_array(weights.astype(np.float32), "weights"),
        numpy_helper.from_array(np.array([1, *shape], np.int64), "shape"),
    ]
    if not noise:
        constants.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, *shape])]
    graph = helper.make_graph(nodes, "linear", infos, out, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def tokenizer(words: Sequence[str], chat: str = "", *, begins: bool = False) -> Any:
    """Word by word; ``begins``: a text begins with its own token, as Llama's do."""
    vocabulary = {word: i for i, word in enumerate([UNKNOWN, "<s>", "</s>", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, UNKNOWN))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if begins:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    special = {"unk_token": UNKNOWN, "bos_token": "<s>", "eos_token": "</s>"}
    out = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    out.chat_template = chat or None
    return out


def byte_pairs(words: Sequence[str], chat: str = "") -> Any:
    """Pieces of bytes, as GPT-2 and Qwen have them."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=[UNKNOWN, "<s>", "</s>"], show_progress=False
    )
    made.train_from_iterator([" ".join(words)] * 3, trainer)
    special = {"unk_token": UNKNOWN, "bos_token": "<s>", "eos_token": "</s>"}
    out = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    out.chat_template = chat or None
    return out


def language_model(folder: Path, kind: str, words: Sequence[str], chat: str = "", *, begins: bool = False) -> Any:
    """A causal language model and its tokenizer, saved as published: of words, Qwen's of bytes."""
    reader = byte_pairs(words, chat) if kind == "qwen2" else tokenizer(words, chat, begins=begins)
    n = len(reader)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    common = {"vocab_size": n, "initializer_range": 0.4, **ends}
    grouped = {
        **common,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 200,
    }
    torch.manual_seed(0)
    made = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=200, **common)
        ),
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**grouped)),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**grouped)),
        "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(sliding_window=8, **grouped)),
    }[kind]()
    made.save_pretrained(folder)
    reader.save_pretrained(folder)
    return made.eval()


def llm_generator(folder: Path, kind: str = "gpt2", **settings: Any) -> OpenGenerator:
    """A generator with a language model that reads two vectors."""
    words = settings.pop("words", WORDS.split())
    language_model(folder / "lm", kind, words, settings.pop("chat", ""), begins=settings.pop("begins", False))
    weights = np.random.default_rng(3).normal(0, 0.5, (DIM, 32))
    linear(folder / "projector.onnx", weights, (2, 16))
    return generator(folder, llm=Llm(**({"model": "lm", "projector": "projector.onnx", "max_tokens": 12} | settings)))


def bank_generator(folder: Path, features: np.ndarray, sentences: Sequence[str], **settings: Any) -> OpenGenerator:
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({"features": features.astype(np.float32)}, folder / "bank.safetensors")
    (folder / "bank.json").write_bytes(msgspec.json.encode(list(sentences)))
    return generator(folder, bank=Bank("bank.safetensors", "bank.json", **({"scale": 10.0} | settings)))


def latent_generator(folder: Path, weights: np.ndarray, shape: Sequence[int], **settings: Any) -> OpenGenerator:
    linear(folder / "latent.onnx", weights, shape, inputs=settings.pop("inputs", None))
    return generator(folder, latent=Latent("latent.onnx", **settings))


def ip_adapter(folder: Path, width: int = DIM) -> dict[str, torch.Tensor]:
    """Random IP-Adapter weights for a network of ``tiny_diffusers``, in the official layout, of 4 tokens."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    made = torch.Generator().manual_seed(5)
    cross = unet.config.cross_attention_dim
    weights = {
        "image_proj.proj.weight": torch.randn(4 * cross, width, generator=made),
        "image_proj.proj.bias": torch.randn(4 * cross, generator=made),
        "image_proj.norm.weight": torch.ones(cross),
        "image_proj.norm.bias": torch.zeros(cross),
    }
    # As the official files count: self-attentions are the even ones.
    for i, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            inner = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            for part in ("to_k_ip", "to_v_ip"):
                weights[f"ip_adapter.{i}.{part}.weight"] = torch.randn(inner, cross, generator=made)
    return weights


def diffusion_generator(folder: Path, kind: str = "sd", **settings: Any) -> OpenGenerator:
    """A generator with a small Stable Diffusion ("sd") or SDXL ("xl"), latents 8 x 8, pictures 16 x 16."""
    make = tiny_diffusers.stable_diffusion_xl if kind == "xl" else tiny_diffusers.stable_diffusion
    make(folder / "model", timestep_spacing="trailing")
    made = torch.Generator().manual_seed(6)
    prompt = {"prompt_embeds": torch.randn(1, 6, tiny_diffusers.WIDTH, generator=made)}
    if kind == "xl":
        prompt["pooled_prompt_embeds"] = torch.randn(1, 8, generator=made)
    safetensors.torch.save_file(prompt, folder / "empty.safetensors")
    width = settings.pop("width", DIM)
    safetensors.torch.save_file(ip_adapter(folder / "model", width), folder / "adapter.safetensors")
    fields = {"model": "model", "adapter": "adapter.safetensors", "prompt": "empty.safetensors", "size": 16}
    return generator(folder, diffusion=Diffusion(**(fields | settings)))
