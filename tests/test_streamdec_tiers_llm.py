"""Captions by a language model: the same tokens as transformers' own generate, one at a time, and ended in time."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from tiny_generator import CHAT, DIM, ENDED, WORDS, Listener, generator, linear, llm_generator, request, tokenizer

from streamdec.decode.generate.generator import OpenGenerator
from streamdec.decode.generate.tiers.base import plain
from streamdec.decode.generate.tiers.llm import LlmTier, first_sentence
from streamdec.decode.generate.tiers.prompt import MAX_LABEL, Prompt
from streamdec.errors import BundleError, EngineError
from streamdec.types import Candidate

NEVER = float("inf")
PROMPT = "<image> <label> describe this image in one"


def still() -> float:
    return 0.0


def generated(opened: OpenGenerator, asked: Any, before: str, after: str, n: int, first: Sequence[int] = ()) -> Any:
    """What transformers' generate answers to the same vectors, decoded after every token; and the prompt's tokens."""
    folder = opened.path / "lm"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession((opened.path / "projector.onnx").read_bytes())
    image = torch.from_numpy(session.run(None, {"x": asked.embedding[None]})[0])
    text = [[*first, *words.encode(before, add_special_tokens=False)], words.encode(after, add_special_tokens=False)]
    head, tail = (model.get_input_embeddings()(torch.tensor([ids], dtype=torch.long)) for ids in text)
    embedded = torch.cat([head, image, tail], 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*apply the penalty only to newly generated tokens")  # as we do
        (ids,) = model.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=n,
            repetition_penalty=opened.manifest.llm.repetition_penalty,
            pad_token_id=0,
        )
    kept = [int(i) for i in ids if int(i) != 2]
    return [words.decode(kept[: i + 1], skip_special_tokens=True) for i in range(len(kept))], text


@pytest.mark.parametrize("chat", ["", CHAT], ids=["plain", "chat"])
@pytest.mark.parametrize(("kind", "begins"), [("gpt2", False), ("llama", True), ("qwen2", False), ("mistral", False)])
def test_tokens_are_those_of_generate(tmp_path: Path, kind: str, begins: bool, chat: str) -> None:
    opened = llm_generator(tmp_path / "g", kind, prompt=PROMPT, system="you are helpful", chat=chat, begins=begins)
    tier = LlmTier(opened)
    assert tier.units == (8, 12)
    before = "<s> system : you are helpful <s> user : " if chat else "you are helpful\n"
    texts = set()
    for seed, label in ((1, "red ring"), (2, "blue disc on dark ground"), (3, "")):
        after = f" {label} describe this image in one" + (" <s> assistant : " if chat else "")
        first = [1] if begins and not chat else []
        asked = request(seed=seed, candidates=(Candidate("i", label, 1.0, 1.0),))
        listener = Listener()
        result = tier.run(asked, 12, NEVER, still, listener)
        wanted, prompt = generated(opened, asked, before, after, 12, first)
        if kind != "qwen2":  # every word has a number of its own, from 3; 1 is <s>
            number = {word: i for i, word in enumerate(["[UNK]", "<s>", "</s>", *WORDS.split()])}
            assert prompt == [[*first, *(number[w] for w in before.split())], [number[w] for w in after.split()]]
        assert [plain(heard.text) for heard, _ in listener.heard] == [first_sentence(text)[0] for text in wanted]
        assert [units for _, units in listener.heard] == list(range(1, len(wanted) + 1))
        assert (result.units, result.wanted) == (len(wanted), 12)
        texts.add(result.text)
    assert len(texts) > 1, "embedding and label make a difference"
    assert bool(tier._kept) == (kind != "mistral"), "a sliding window cannot go back"


def test_what_came_before_leaves_nothing_behind(tmp_path: Path) -> None:
    tier = LlmTier(llm_generator(tmp_path / "g", "llama", prompt=PROMPT))
    asked = [request(seed=seed) for seed in range(4)]
    once = [tier.run(one, 12, NEVER, still, Listener()).text for one in asked]
    tier.warm_up()
    again = [tier.run(one, 12, NEVER, still, Listener()).text for one in reversed(asked)]
    assert once == again[::-1]
    assert len(set(once)) > 1, "the embedding makes a difference"
    other = request(seed=0, candidates=(Candidate("i", "green star on the right", 1.0, 1.0),))
    assert tier.run(other, 12, NEVER, still, Listener()).text != once[0], "and so does the label"


def test_a_label_before_the_image(tmp_path: Path) -> None:
    opened = llm_generator(tmp_path / "g", prompt="<label> <image> describe", system="")
    asked = request()
    tier = LlmTier(opened)
    for _ in range(2):
        listener = Listener()
        tier.run(asked, 12, NEVER, still, listener)
        assert [heard.text for heard, _ in listener.heard] == generated(opened, asked, "red ring", "describe", 12)[0]


def test_ends_at_the_deadline_the_cancel_and_the_units(tmp_path: Path) -> None:
    tier = LlmTier(llm_generator(tmp_path / "g", prompt=PROMPT))
    whole = Listener()
    tier.run(request(), 12, NEVER, still, whole)
    texts = [result.text for result, _ in whole.heard]
    assert len(texts) == 12
    times = iter(range(100))
    assert tier.run(request(), 12, 4.0, lambda: float(next(times)), Listener()).text == texts[4]
    cancelled = Listener(stop_after=3)
    assert tier.run(request(), 12, NEVER, still, cancelled).text == texts[2]
    assert len(cancelled.heard) == 3
    short = tier.run(request(), 9, NEVER, still, Listener())
    assert (short.text, short.units, short.wanted) == (texts[8], 9, 9)


@pytest.mark.parametrize(
    ("text", "sentence", "ended"),
    [
        ("a red ring. the", "a red ring.", True),
        ("a red ring.", "a red ring.", False),
        ("a ring of 3.5 cm", "a ring of 3.5 cm", False),
        ('it says "stop!" and', 'it says "stop!"', True),
        ("a ring\nand", "a ring", True),
        ("\n a ring", "a ring", False),
        ("a\x1b[31m ring\u202e on", "a [31m ring on", False),
        ("a caf\ufffd", "a caf", False),
        ("", "", False),
    ],
)
def test_first_sentence(text: str, sentence: str, ended: bool) -> None:
    assert first_sentence(text) == (sentence, ended)


def test_stops_at_the_end_of_the_first_sentence(tmp_path: Path) -> None:
    """A model made to say 'a . a . a .' is stopped by the token behind the first full stop."""
    opened = llm_generator(tmp_path / "g", words=ENDED, prompt=PROMPT, repetition_penalty=1.0)
    tier = LlmTier(opened)
    a, stop = 3, 3 + ENDED.index(".")
    spoken = iter([a, stop, a, stop, a, stop])
    tier._next = lambda logits, tokens: next(spoken)  # type: ignore[method-assign]
    listener = Listener()
    result = tier.run(request(), 12, NEVER, still, listener)
    assert (result.text, result.units) == ("a .", 3)
    assert len(listener.heard) == 3


def test_a_model_that_has_nothing_to_say(tmp_path: Path) -> None:
    tier = LlmTier(llm_generator(tmp_path / "g", prompt=PROMPT))
    tier._next = lambda logits, tokens: 2  # type: ignore[method-assign]
    assert tier.run(request(), 12, NEVER, still, Listener()).text == ""


def test_repetition_penalty_divides_and_multiplies(tmp_path: Path) -> None:
    tier = LlmTier(llm_generator(tmp_path / "g", prompt=PROMPT, repetition_penalty=2.0))
    assert tier._next(torch.tensor([1.0, 1.9, 0.0]), [1, 1]) == 0  # 0.95
    assert tier._next(torch.tensor([-1.5, -1.0, -9.0]), [1]) == 0  # -2
    assert tier._next(torch.tensor([1.0, 1.9, 0.0]), []) == 1


@pytest.mark.parametrize(
    "embedding",
    [np.full(DIM, np.nan, np.float32), np.full(DIM, np.inf, np.float32), np.ones(DIM + 1, np.float32), np.ones(DIM)],
)
def test_refuses_embeddings(tmp_path: Path, embedding: np.ndarray) -> None:
    tier = LlmTier(llm_generator(tmp_path / "g", prompt=PROMPT))
    with pytest.raises(EngineError, match="embedding of 'img1'"):
        tier.run(request(embedding=embedding), 12, NEVER, still, Listener())
    assert tier.run(request(), 12, NEVER, still, Listener()).text, "and goes on"


def test_labels_are_cleaned_and_cut() -> None:
    prompt = Prompt(tokenizer(WORDS.split()), "", PROMPT)
    assert prompt.tokens("red\x1b\n ring") == prompt.tokens("red ring")
    long = " ".join(["red"] * 500)
    before, after = prompt.tokens(long)
    assert len(before) + len(after) <= prompt.longest
    assert after.count(3 + WORDS.split().index("red")) > MAX_LABEL // 4


def test_a_template_without_a_system_message() -> None:
    fussy = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
    prompt = Prompt(tokenizer(WORDS.split(), fussy), "you are helpful", PROMPT)
    plain = tokenizer(WORDS.split())
    assert prompt.before == plain("<s> user : you are helpful")["input_ids"]
    with pytest.raises(BundleError, match="chat template"):
        Prompt(tokenizer(WORDS.split(), "{{ raise_exception('never') }}"), "", PROMPT)
    with pytest.raises(BundleError, match="keeps the prompt"):
        Prompt(tokenizer(WORDS.split(), "{{ messages[0]['content'] }} {{ messages[0]['content'] }}"), "", PROMPT)


def test_models_that_are_no_language_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    transformers.ViTModel(config).save_pretrained(tmp_path / "g" / "lm")
    tokenizer(WORDS.split()).save_pretrained(tmp_path / "g" / "lm")
    linear(tmp_path / "g" / "projector.onnx", np.zeros((DIM, 32)), (2, 16))
    spec = llm_generator(tmp_path / "other").manifest.llm
    with pytest.raises(BundleError, match=r"model lm; .*causal language model"):
        LlmTier(generator(tmp_path / "g", llm=spec))


def test_folders_that_lack_something(tmp_path: Path) -> None:
    whole = llm_generator(tmp_path / "whole")
    spec = whole.manifest.llm

    def without(name: str) -> OpenGenerator:
        folder = shutil.copytree(tmp_path / "whole", tmp_path / name)
        (folder / "lm" / name).unlink()
        return generator(folder, llm=spec)

    with pytest.raises(BundleError, match=r"no .*config\.json"):
        LlmTier(without("config.json"))
    with pytest.raises(BundleError, match="safetensors"):
        LlmTier(without("model.safetensors"))
    (tmp_path / "whole" / "lm" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BundleError, match="model lm"):
        LlmTier(generator(tmp_path / "whole", llm=spec))


def test_projector_and_prompt_must_fit(tmp_path: Path) -> None:
    spec = llm_generator(tmp_path / "g").manifest.llm
    with pytest.raises(BundleError, match="shorten the prompt"):
        LlmTier(generator(tmp_path / "g", llm=msgspec.structs.replace(spec, prompt="<image> " + "red " * 300)))
    linear(tmp_path / "g" / "projector.onnx", np.zeros((DIM, 20)), (2, 10))
    with pytest.raises(EngineError, match=r"output of projector\.onnx; got \(1, 2, 10\)"):
        LlmTier(generator(tmp_path / "g", llm=spec))


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="device meta2"):
        LlmTier(llm_generator(tmp_path / "g"), device="meta2")
