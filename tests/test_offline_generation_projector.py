"""Thought2Text's stages 2 and 3: splice, mask and loss token by token; the language model stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_speakers
import torch

from offline.generation.loop import Steps
from offline.generation.projector import IGNORED, Projector, ProjectorSettings, Speaker, Told, fit
from streamdec.errors import ConfigError

SYSTEM, PROMPT = "You are helpful .", "<image> <label> Describe this image :"
ANSWERS = (("red star", "a red star"), ("ring", "a blue ring on a dark ground"))
IDS = {word: i for i, word in enumerate(tiny_speakers.WORDS)}


def ids(text: str) -> list[int]:
    return [IDS[word] for word in text.split()]


@pytest.fixture(scope="module", params=[("gpt2", False), ("llama", False), ("llama", True)], ids=str)
def speaker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    kind, chat = request.param
    return Speaker(str(tiny_speakers.speaker(tmp_path_factory.mktemp("llm"), kind, chat=chat)), SYSTEM, PROMPT)


def test_tokens(speaker: Speaker) -> None:
    """The prompt around the image, the label's words in their place, the answer and its end."""
    found = speaker.written("red star", "a red star")
    chat = speaker.tokenizer.chat_template
    before = "user : " if chat else ""
    # This tokenizer begins no text with <s>: none is put there.
    system = "system : You are helpful . " if chat else "You are helpful . "
    assert found.answer == [*ids("a red star"), 1]
    assert found.after == ids("red star Describe this image :") + (ids("assistant :") if chat else [])
    wanted = [IDS.get(word, IDS["<unk>"]) for word in (system + before).split()]
    assert found.before == wanted


@pytest.mark.parametrize("mask", ["prompt", "vector"])
@pytest.mark.parametrize("n_vectors", [1, 3])
def test_splice_and_labels(speaker: Speaker, mask: str, n_vectors: int) -> None:
    """Position by position: what is embedded, what is attended to, what counts."""
    samples = [speaker.written(*answer) for answer in ANSWERS]
    vectors = torch.randn(2, n_vectors, speaker.width)
    batch = speaker.collate(samples, vectors, mask)
    table = speaker.model.get_input_embeddings().weight
    length = max(len(s.before) + n_vectors + len(s.after) + len(s.answer) for s in samples)
    assert batch.embedded.shape == (2, length, speaker.width)
    for row, sample in enumerate(samples):
        own = len(sample.before) + n_vectors + len(sample.after) + len(sample.answer)
        padding = length - own
        for i in range(length):
            at = i - padding
            vector = at - len(sample.before)
            behind = vector - n_vectors
            if at < 0:
                assert batch.attention[row, i] == 0
                assert batch.labels[row, i] == IGNORED
                continue
            assert batch.attention[row, i] == 1
            assert batch.positions[row, i] == at
            if vector < 0:
                token, counts = sample.before[at], mask == "vector" and at > 0
            elif behind < 0:
                assert torch.equal(batch.embedded[row, i], vectors[row, vector])
                assert batch.labels[row, i] == IGNORED
                continue
            elif behind < len(sample.after):
                token, counts = sample.after[behind], mask == "vector"
            else:
                token, counts = sample.answer[behind - len(sample.after)], True
            assert torch.equal(batch.embedded[row, i], table[token])
            assert batch.labels[row, i] == (token if counts else IGNORED)


@pytest.mark.parametrize("mask", ["prompt", "vector"])
def test_loss(speaker: Speaker, mask: str) -> None:
    """Each sample alone, without padding, each counting token's log-probability one by one."""
    samples = [speaker.written(*answer) for answer in ANSWERS]
    torch.manual_seed(3)
    vectors = torch.randn(2, 1, speaker.width)
    table = speaker.model.get_input_embeddings().weight
    terms = []
    with torch.no_grad():
        for sample, vector in zip(samples, vectors, strict=True):
            tokens = [*sample.before, None, *sample.after, *sample.answer]
            inputs = torch.stack([vector[0] if token is None else table[token] for token in tokens])
            logits = speaker.model(inputs_embeds=inputs[None]).logits[0]
            begin = len(tokens) - len(sample.answer) if mask == "prompt" else 1
            for i in range(begin, len(tokens)):
                if tokens[i] is not None:
                    terms.append(-torch.log_softmax(logits[i - 1], 0)[tokens[i]])
        found = speaker.loss(speaker.collate(samples, vectors, mask))
    torch.testing.assert_close(found, torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_loss_is_that_of_transformers(speaker: Speaker) -> None:
    samples = [speaker.written(*answer) for answer in ANSWERS]
    batch = speaker.collate(samples, torch.randn(2, 1, speaker.width), "prompt")
    with torch.no_grad():
        theirs = speaker.model(
            inputs_embeds=batch.embedded,
            attention_mask=batch.attention,
            position_ids=batch.positions,
            labels=batch.labels,
        ).loss
        torch.testing.assert_close(speaker.loss(batch), theirs)


def told(seed: int) -> Told:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2, 12)
    embeddings = np.where(kinds[:, None] > 0, 1.0, -1.0) + 0.1 * rng.standard_normal((12, 4))
    labels, captions = zip(*(ANSWERS[kind] for kind in kinds), strict=True)
    return Told(embeddings.astype(np.float32), labels, captions)


def settings(**changes) -> ProjectorSettings:
    steps = Steps(n_steps=6, batch_size=4, learning_rate=1e-2, weight_decay=0.0, keep_every=3)
    return ProjectorSettings(**({"images": steps, "epochs": steps} | changes))


def test_only_the_projector_is_trained(speaker: Speaker, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in speaker.model.state_dict().items()}
    torch.manual_seed(0)
    fresh = Projector(4, 1, speaker.width)
    projector, losses = fit(speaker, told(0), told(1), settings(), tmp_path / "run")
    assert set(losses) == {"images", "epochs"}
    assert not torch.equal(projector.linear.weight, fresh.linear.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in speaker.model.state_dict().items())
    without, losses = fit(speaker, told(0), None, settings(), tmp_path / "without")
    assert set(losses) == {"images"}
    assert not torch.equal(projector.linear.weight, without.linear.weight)


def test_goes_on_in_the_stage_where_it_was_killed(speaker: Speaker, tmp_path: Path) -> None:
    seen: list[str] = []

    def kill(line: str, done: int = 0, total: int = 0) -> None:
        seen.append(line)
        if len(seen) == 3:
            raise KeyboardInterrupt

    whole, _ = fit(speaker, told(0), told(1), settings(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(speaker, told(0), told(1), settings(), tmp_path / "killed", report=kill)
    assert "epochs" in seen[-1]
    again, _ = fit(speaker, told(0), told(1), settings(), tmp_path / "killed")
    assert torch.equal(again.linear.weight, whole.linear.weight)


def test_it_learns_to_tell_what_the_vector_says(speaker: Speaker, tmp_path: Path) -> None:
    steps = Steps(n_steps=60, batch_size=8, learning_rate=3e-2, weight_decay=0.0, keep_every=10)
    first = settings(images=Steps(n_steps=1, batch_size=12, keep_every=1), epochs=None)
    _, before = fit(speaker, told(0), None, first, tmp_path / "a")
    _, after = fit(speaker, told(0), None, settings(images=steps, epochs=None), tmp_path / "b")
    assert after["images"] < 0.9 * before["images"]


def test_wrong_labels(speaker: Speaker, tmp_path: Path) -> None:
    """So many samples are told another's label; the answer stays."""
    seen: list[tuple[str, str]] = []
    written = speaker.written
    speaker.written = lambda label, answer: seen.append((label, answer)) or written(label, answer)  # type: ignore[method-assign]
    few = Steps(n_steps=1, batch_size=4, keep_every=1)
    try:
        fit(speaker, told(0), None, settings(images=few, epochs=None, wrong=0.5), tmp_path)
    finally:
        del speaker.written
    given = told(0)
    assert [answer for _, answer in seen] == list(given.captions)
    share = np.mean([label != own for (label, _), own in zip(seen, given.labels, strict=True)])
    assert 0 < share < 0.6


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model"):
        Speaker(str(tmp_path / "nowhere"), SYSTEM, PROMPT)
    with pytest.raises(ConfigError, match="n_vectors"):
        ProjectorSettings(n_vectors=0)
