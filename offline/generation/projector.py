"""Stages 2 and 3 of Thought2Text (arXiv 2410.07507): a projector from embeddings into the words of a frozen LLM.

As in abhijitmishra/Thought2Text@475eb89: one linear layer makes the vector that stands at ``<image>`` in the prompt; it
is trained on embeddings of images, then on those of epochs whose class is decoded right. Two things are otherwise. The
prompt is not part of the loss, unless ``mask`` is "vector" as in the reference. And "right"
is that the nearest training image is of the right concept, where the reference asks its class head.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import msgspec
import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from streamdec.decode.generate.spec import Dtype
from streamdec.decode.generate.tiers.prompt import Prompt
from streamdec.errors import ConfigError
from streamdec.types import Float32

from ..progress import Report, silent
from ..targets.frozen import check_device, missing
from ..targets.huggingface import network, opened
from .loop import Rows, Steps, digest, train

Mask: TypeAlias = Literal["prompt", "vector"]
IGNORED = -100
"""Label of a position that is not in the loss."""


class ProjectorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As published, but for ``mask``, and for counting steps: 5 passes over 8 000 images in each stage.

    ``n_vectors`` that stand at ``<image>``; ``wrong`` share of samples that are told another's label, so that the
    vectors have to say what is shown where the label may be wrong [inferred; published 0]; ``mask`` what is not in the
    loss: the "prompt" and the vectors in it, or the "vector" alone; ``images`` steps on embeddings of images (stage 2);
    ``epochs`` on those of epochs (stage 3), None for none; ``right_only`` whether on those alone whose concept is
    decoded right.
    """

    n_vectors: int = 1
    wrong: float = 0.0
    mask: Mask = "prompt"
    images: Steps = Steps(n_steps=625, batch_size=64, learning_rate=2e-5)
    epochs: Steps | None = Steps(n_steps=625, batch_size=64, learning_rate=2e-5)
    right_only: bool = True

    def __post_init__(self) -> None:
        if self.n_vectors < 1:
            raise ConfigError("projector n_vectors", got=self.n_vectors, allowed="1 or more")
        if not 0 <= self.wrong <= 1:
            raise ConfigError("projector wrong", got=self.wrong, allowed="0..1")


class Written(NamedTuple):
    """Tokens of one sample: before the vectors, behind them, and the answer with its end."""

    before: list[int]
    after: list[int]
    answer: list[int]


class Collated(NamedTuple):
    """A batch, padded on the left.

    ``embedded`` (B, L, W) what goes into the model; ``attention`` (B, L) 0 where padded; ``positions`` (B, L);
    ``labels`` (B, L) tokens, :data:`IGNORED` where they do not count.
    """

    embedded: Tensor
    attention: Tensor
    positions: Tensor
    labels: Tensor


class Speaker:
    """A frozen causal language model, with its prompt.

    Parameters
    ----------
    name : str
        Folder, or name on the hub, of any causal language model of transformers.
    system, prompt : str
        As in the generator's manifest.
    device : str
        As torch names it.
    dtype : str
        Of the frozen model.

    Raises
    ------
    ConfigError
        transformers is not installed; no such model; its tokenizer has no end.
    """

    def __init__(self, name: str, system: str, prompt: str, device: str = "cpu", dtype: Dtype = "float32") -> None:
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise missing("transformers", "generate") from error
        check_device(device)
        self.name, self.device = name, device
        self.tokenizer: Any = opened(AutoTokenizer.from_pretrained, name)
        self.model: Any = network(AutoModelForCausalLM, name, device, dtype=getattr(torch, dtype))
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(f"tokenizer of {name}", got="no end of sequence", allowed="one with an eos_token")
        self._prompt = Prompt(self.tokenizer, system, prompt)
        # Behind a chat template the answer begins; a plain prompt is gone on with.
        self._space = "" if self.tokenizer.chat_template else " "
        self._embed: Any = self.model.get_input_embeddings()

    @property
    def width(self) -> int:
        """Of its token embeddings."""
        return int(self._embed.weight.shape[1])

    def written(self, label: str, answer: str) -> Written:
        """Tokenise a sample: the prompt with the label in its place, and the answer with its end."""
        before, after = self._prompt.tokens(label)
        said = self.tokenizer(self._space + " ".join(answer.split()), add_special_tokens=False)["input_ids"]
        return Written(before, after, [*said, self.tokenizer.eos_token_id])

    def collate(self, samples: Sequence[Written], vectors: Tensor, mask: Mask) -> Collated:
        """Splice vectors (B, n_vectors, W) into the embedded prompts of B samples, and say what counts."""
        n_vectors = vectors.shape[1]
        rows = []
        for sample, own in zip(samples, vectors.to(self._embed.weight.dtype), strict=True):
            rows.append(torch.cat([self._tokens(sample.before), own, self._tokens(sample.after + sample.answer)]))
        length = max(map(len, rows))
        embedded = torch.stack([nnf.pad(row, (0, 0, length - len(row), 0)) for row in rows])
        labels = torch.full((len(rows), length), IGNORED)
        attention = torch.zeros(len(rows), length, dtype=torch.int64)
        for i, (sample, row) in enumerate(zip(samples, rows, strict=True)):
            hidden = [IGNORED] * n_vectors
            if mask == "vector":
                said = [*sample.before, *hidden, *sample.after, *sample.answer]
            else:
                said = [IGNORED] * (len(row) - len(sample.answer)) + sample.answer
            labels[i, length - len(row) + 1 :] = torch.tensor(said[1:])  # nothing stands before the first
            attention[i, length - len(row) :] = 1
        positions = (attention.cumsum(1) - 1).clamp_min(0)
        return Collated(embedded, *(tensor.to(self.device) for tensor in (attention, positions, labels)))

    def loss(self, batch: Collated) -> Tensor:
        """Cross-entropy of each token that counts, given what stands before it; mean over all of them, ()."""
        logits = self.model(
            inputs_embeds=batch.embedded, attention_mask=batch.attention, position_ids=batch.positions
        ).logits
        wanted = batch.labels[:, 1:]
        return nnf.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)

    def _tokens(self, ids: list[int]) -> Tensor:
        found: Tensor = self._embed(torch.tensor(ids, dtype=torch.int64, device=self.device))
        return found


class Projector(nn.Module):
    """One linear layer: an embedding -> vectors among those of a language model's tokens.

    Parameters
    ----------
    n_features : int
        Of the embedding.
    n_vectors, width : int
    """

    def __init__(self, n_features: int, n_vectors: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, n_vectors * width)
        self.shape = (n_vectors, width)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, n_features) -> (B, n_vectors, width)."""
        out: Tensor = self.linear(embeddings).view(-1, *self.shape)
        return out


class Told(NamedTuple):
    """What a stage is trained on: embeddings (n, dim) float32, and of each the label and the caption."""

    embeddings: Float32
    labels: Sequence[str]
    captions: Sequence[str]


def fit(
    speaker: Speaker,
    images: Told,
    epochs: Told | None,
    settings: ProjectorSettings,
    folder: Path,
    *,
    seed: int = 0,
    report: Report = silent,
) -> tuple[Projector, dict[str, float]]:
    """Train a projector, the language model frozen; a killed call goes on where it was.

    Parameters
    ----------
    speaker : Speaker
    images : Told
        For stage 2.
    epochs : Told or None
        For stage 3.
    settings : ProjectorSettings
    folder : Path
        Of the training state.
    seed : int
    report : callable

    Returns
    -------
    projector : Projector
        On the CPU.
    losses : dict
        At the end of each stage.
    """
    torch.manual_seed(seed)
    projector = Projector(images.embeddings.shape[1], settings.n_vectors, speaker.width).to(speaker.device)
    losses = {}
    for stage, told, steps in (("images", images, settings.images), ("epochs", epochs, settings.epochs)):
        if told is None or steps is None:
            continue
        embeddings = torch.from_numpy(told.embeddings)
        labels = _partly_wrong(told.labels, settings.wrong, seed)
        samples = [speaker.written(*of) for of in zip(labels, told.captions, strict=True)]

        def loss(rows: Rows, embeddings: Tensor = embeddings, samples: list[Written] = samples) -> Tensor:
            vectors = projector(embeddings[torch.from_numpy(rows)].to(speaker.device))
            return speaker.loss(speaker.collate([samples[row] for row in rows], vectors, settings.mask))

        about = {
            "model": speaker.name,
            "n_vectors": settings.n_vectors,
            "mask": settings.mask,
            "samples": digest(told.embeddings, np.frombuffer(msgspec.json.encode(samples), np.uint8)),
        }
        losses[stage] = train(
            cast(dict[str, nn.Parameter], dict(projector.named_parameters())),
            loss,
            len(samples),
            steps,
            folder / stage,
            about,
            seed=seed,
            report=lambda line, done=0, total=0, stage=stage: report(f"projector on {stage}, {line}", done, total),
        )
    return projector.cpu().eval(), losses


def _partly_wrong(labels: Sequence[str], share: float, seed: int) -> list[str]:
    """Give a share of the samples the label of another one."""
    rng = np.random.default_rng([seed, 2])
    wrong = rng.random(len(labels)) < share
    others = rng.integers(len(labels), size=len(labels))
    return [labels[others[i]] if wrong[i] else label for i, label in enumerate(labels)]
