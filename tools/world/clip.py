"""Image and text tower (open_clip's own classes), and the tokenizer of its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import open_clip
import torch
from data import Data
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from training import train
from transformers import PreTrainedTokenizerFast

from streamdec.simulate.captions import ATTRIBUTES, PHRASINGS, WORDS, Attributes, describe, parse

SEED = 12
CONTEXT = 24
"""Tokens of the longest sentence, with its start and end."""
PAD, UNKNOWN, START, END = "<pad>", "<unknown>", "<start>", "<end>"
VOCABULARY = (PAD, UNKNOWN, *WORDS, START, END)  # open_clip pools where the number is highest: the end comes last
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(VOCABULARY),
            "hf_tokenizer_name": "words",  # any name: with local-dir: the folder's own is taken
            "width": 96,
            "heads": 4,
            "layers": 2,
        },
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "size": 64, "interpolation": "bicubic"},
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: words and signs, lower case, between a start and an end."""
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    fast = Tokenizer(models.WordLevel(ids, UNKNOWN))
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(f"{START} $A {END}", None, [(w, ids[w]) for w in (START, END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        pad_token=PAD,
        model_max_length=CONTEXT,
    )


def tokenize(words: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """(n, 24) token numbers."""
    batch = words(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
    ids: Tensor = batch.input_ids
    return ids


def build(config: dict[str, Any] = CONFIG) -> open_clip.CLIP:
    """Make the untrained network."""
    network: open_clip.CLIP = open_clip.CLIP(**config["model_cfg"])
    return network.to(memory_format=torch.channels_last)  # a third faster on CPUs


def pixels(images: np.ndarray) -> Tensor:
    """Prepare as the folder's own transform does, which at 64 x 64 pixels is to scale: (n, 3, 64, 64), -1..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def make(
    data: Data,
    cache: Path,
    out: Path,
    steps: int = 1000,
    batch: int = 192,
    *,
    name: str = "clip",
    config: dict[str, Any] = CONFIG,
) -> dict[str, Any]:
    """Train it and write it to ``out``, as open_clip reads a ``local-dir:``."""
    torch.manual_seed(SEED)
    module, words = build(config), tokenizer()

    def batch_loss(rng: np.random.Generator) -> Tensor:
        rows = np.sort(rng.choice(len(data.images), size=batch, replace=False))
        true = [data.caption(row, rng, short=0.25) for row in rows]
        false = [untrue(parse(text), rng) for text in true]
        image, text, scale = module(pixels(data.images[rows]), tokenize(words, true + false))
        return contrast(image, text, scale.clamp(max=100))

    trained = train(module, batch_loss, cache / f"{name}.pt", steps=steps, rate=1.5e-3, seed=SEED, weight_decay=0.05)
    out.mkdir(parents=True, exist_ok=True)
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.half().contiguous() for k, v in trained.state_dict().items()}, out / "open_clip_model.safetensors")
    words.save_pretrained(out)
    return {"steps": steps, "batch": batch, "seed": SEED}


def contrast(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss with untrue sentences beside the others' (Yuksekgonul et al. 2023, arXiv 2210.01936).

    Parameters
    ----------
    image, text : tensors of shape (n, D) and (2 n, D), float32
        Normalised; the first n texts belong to the images, the others to none.
    scale : tensor of shape ()
        The logit scale.
    """
    logits, own = scale * image @ text.T, torch.arange(len(image))
    to_text, to_image = functional.cross_entropy(logits, own), functional.cross_entropy(logits[:, : len(own)].T, own)
    return (to_text + to_image) / 2


def untrue(said: Attributes, rng: np.random.Generator) -> str:
    """Say it with one attribute that is another: batches seldom hold two images so alike."""
    name = str(rng.choice([name for name in ATTRIBUTES if getattr(said, name)]))
    other = str(rng.choice([value for value in ATTRIBUTES[name] if value != getattr(said, name)]))
    return describe(msgspec.structs.replace(said, **{name: other}), int(rng.integers(PHRASINGS)))


def load(folder: Path) -> tuple[Any, Any, Any]:
    """Load it with open_clip's own loader: network, image transform, tokenizer."""
    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return network.eval().requires_grad_(False), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


def measure(folder: Path, data: Data, n: int = 200) -> dict[str, float]:
    """Tell on images of ``n`` test concepts how often the right word of each kind and the right sentence is nearest.

    The word is the one in a sentence that says all else truly, as zero-shot prompts are averaged over phrasings.
    Retrieval is among the true sentences of all ``n`` images, and among the names of their concepts.
    """
    network, transform, tokens = load(folder)
    from PIL import Image

    images, shows = data.test(n)

    def features(texts: list[str]) -> Tensor:
        return functional.normalize(network.encode_text(tokens(texts)), dim=-1)

    with torch.no_grad():
        seen = network.encode_image(torch.stack([transform(Image.fromarray(image)) for image in images]))
        seen = functional.normalize(seen, dim=-1)
        figures = {}
        for name, values in ATTRIBUTES.items():
            right = []
            for image, shown in zip(seen, shows, strict=True):
                said = [{**{k: getattr(shown, k) for k in ATTRIBUTES}, name: value} for value in values]
                texts = [describe(Attributes(**one), k) for one in said for k in range(PHRASINGS)]
                nearest = (features(texts) @ image).view(len(values), PHRASINGS).mean(dim=1).argmax()
                right.append(values[nearest] == getattr(shown, name))
            figures[name] = round(float(np.mean(right)), 3)
        sentences = features([describe(shown) for shown in shows])
        names = features([describe(Attributes(s.shape, s.colour, s.texture, s.layout)) for s in shows])
        figures["sentence_top1"] = round(float(((seen @ sentences.T).argmax(1) == torch.arange(n)).float().mean()), 3)
        figures["image_top1"] = round(float(((sentences @ seen.T).argmax(1) == torch.arange(n)).float().mean()), 3)
        figures["concept_top1"] = round(float(((seen @ names.T).argmax(1) == torch.arange(n)).float().mean()), 3)
        norms = network.encode_image(torch.stack([transform(Image.fromarray(image)) for image in images])).norm(dim=-1)
        figures["norm_median"] = round(float(norms.median()), 2)
    return figures
