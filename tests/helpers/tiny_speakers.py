"""Causal language models of transformers with random weights, small enough for a test, in folders as published."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = [
    "<s>",
    "</s>",
    "<unk>",
    "You",
    "are",
    "helpful",
    ".",
    ":",
    "Describe",
    "this",
    "image",
    "in",
    "one",
    "sentence",
]
WORDS += ["a", "red", "blue", "star", "ring", "on", "dark", "ground", "user", "assistant"]
_ENDS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}assistant :"


def speaker(folder: Path, kind: str = "gpt2", *, chat: bool = False) -> Path:
    """``kind`` gpt2 or llama; ``chat`` with a template."""
    torch.manual_seed(0)
    word_level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=_ENDS["unk_token"]))
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=word_level, **_ENDS)
    if chat:
        tokenizer.chat_template = _TEMPLATE
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    if kind == "gpt2":
        config: object = transformers.GPT2Config(
            vocab_size=len(WORDS), n_embd=12, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3, **ends
        )
    else:
        config = transformers.LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=12,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            initializer_range=0.3,
            **ends,
        )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
