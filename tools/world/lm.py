"""The language model: answers the prompt of Thought2Text with a sentence of the world (transformers' Llama).

It is taught to read. Where a caption system will put the projected embedding, it is given words that are true of the
image, in any order, some of them missing; where the label stands, the concept's name, at times with a wrong word, at
times none. A projector then has only to find the vectors of the words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from data import Data
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from training import train
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from streamdec.simulate.captions import ATTRIBUTES, Attributes, attributes, parse

SEED = 15
PAD, END = "<pad>", "<end>"
SYSTEM = "You are a helpful assistant."
PROMPT = "<image> <label> Describe this image in one sentence:"


def tokenizer(data: Data) -> PreTrainedTokenizerFast:
    """Make the tokenizer: bytes joined to words, learnt from the sentences, without special tokens around a text."""
    rng = np.random.default_rng(SEED)
    texts = [f" {data.caption(row, rng)}" for row in rng.integers(len(data.shows), size=2000)]
    prompt = PROMPT.replace("<image>", "").replace("<label>", "")
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator([*texts, *[f"{SYSTEM}\n{prompt}"] * 500], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def build(words: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make the untrained network."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=words.convert_tokens_to_ids(END),
            pad_token_id=words.convert_tokens_to_ids(PAD),
        )
    )


def asked(shown: Attributes, rng: np.random.Generator) -> str:
    """Write the prompt as it is answered in training: words for the image, a name for the label."""
    notes = [word for name in ATTRIBUTES for word in getattr(shown, name).split() if rng.random() < 0.9]
    rng.shuffle(notes)
    name, kind = Attributes(shown.shape, shown.colour, shown.texture, shown.layout), rng.random()
    if kind < 0.3:
        wrong = ("shape", "colour", "texture", "layout")[rng.integers(4)]
        name = msgspec.structs.replace(name, **{wrong: str(rng.choice(ATTRIBUTES[wrong]))})
    label = "" if kind > 0.85 else label_of(name)
    return written(" ".join(["", *notes]), label.replace(" ", "_") if rng.random() < 0.3 else label, rng.random() < 0.8)


def label_of(name: Attributes) -> str:
    """Name a concept as its label does, such as "blue striped ring pair"."""
    together = "" if name.layout == "single" else str(name.layout)
    return " ".join(word for word in (name.colour, name.texture, name.shape, together) if word)


def written(notes: str, label: str, system: bool = True) -> str:
    """Fill the prompt in; "" for no label."""
    text = PROMPT.replace("<image>", notes).replace("<label>", label)
    return f"{SYSTEM}\n{text}" if system else text


def make(data: Data, cache: Path, out: Path, steps: int = 800, batch: int = 64) -> dict[str, Any]:
    """Train it and write it to ``out``."""
    torch.manual_seed(SEED)
    words = tokenizer(data)
    module = build(words)

    def batch_loss(rng: np.random.Generator) -> Tensor:
        rows = rng.integers(len(data.shows), size=batch)
        prompts = [words(asked(data.shows[row], rng)).input_ids for row in rows]
        answers = [[*words(f" {data.caption(row, rng)}").input_ids, words.eos_token_id] for row in rows]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((batch, length), words.pad_token_id)
        labels = torch.full((batch, length), -100)
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            end = len(prompt) + len(answer)
            ids[i, :end] = torch.tensor(prompt + answer)
            labels[i, len(prompt) : end] = torch.tensor(answer)
        value: Tensor = module(input_ids=ids, labels=labels).loss
        return value

    train(module, batch_loss, cache / "lm.pt", steps=steps, rate=2e-3, seed=SEED).half().save_pretrained(out)
    words.save_pretrained(out)
    return {"steps": steps, "batch": batch, "seed": SEED}


def measure(folder: Path, data: Data, n: int = 200) -> dict[str, float]:
    """Share of right words in its answers to true notes of ``n`` test images, without label, for each attribute.

    ``ended``: share of answers that come to an end.
    """
    words = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    shows = [attributes(data.world.concept("test", i), data.world.look("test", i)) for i in range(n)]
    rng = np.random.default_rng(SEED)
    prompts = []
    for shown in shows:
        notes = [word for name in ATTRIBUTES for word in getattr(shown, name).split()]
        rng.shuffle(notes)
        prompts.append(written(" ".join(["", *notes]), ""))
    batch = words(prompts, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    made = model.generate(**batch, max_new_tokens=32, do_sample=False)[:, batch.input_ids.shape[1] :]
    said = [parse(text) for text in words.batch_decode(made, skip_special_tokens=True)]
    figures = {
        name: round(float(np.mean([getattr(a, name) == getattr(b, name) for a, b in zip(said, shows, strict=True)])), 3)
        for name in ATTRIBUTES
    }
    return figures | {"ended": round(float((made == words.eos_token_id).any(dim=1).float().mean()), 3)}
