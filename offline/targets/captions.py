"""Captions of the stimuli, written by an image-to-text model into a table a person can read and change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from streamdec.errors import ConfigError, DataError

from ..checkpoint import replace
from ..data.store import Item
from ..progress import Report, silent
from .frozen import missing, run
from .huggingface import network, opened, provenance
from .images import Images, UInt8
from .text import read_captions

if TYPE_CHECKING:
    from torch import Tensor

PROMPTS = {
    "A": "This is a photo of",
    "B": "Describe the main object in the picture",
    "C": "Briefly describe the '{label}' in the images.",
}
"""What NeuroAlign asked of its captioners (table 5); C tells them the label."""


class Captioner:
    """A model of transformers that says what it sees: BLIP, BLIP-2, GIT, and chat models such as LLaVA and Qwen2-VL.

    Parameters
    ----------
    name : str
        Folder, or name on the hub, such as "Salesforce/blip2-opt-2.7b".
    prompt : str
        A key of :data:`PROMPTS`, or any text, "" for none; ``{label}`` is filled in.
    n_tokens : int
        The longest answer; CognitionCapturer's 20 by default.
    device : str
        As torch names it.

    Raises
    ------
    ConfigError
        transformers is not installed; no such model.
    """

    def __init__(self, name: str, prompt: str = "A", n_tokens: int = 20, device: str = "cpu") -> None:
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise missing("transformers", "train") from error
        self.name, self._device, self._n_tokens = f"captions:{name}", device, n_tokens
        self._prompt = PROMPTS.get(prompt, prompt)
        self._processor = opened(AutoProcessor.from_pretrained, name)
        self._network = network(AutoModelForImageTextToText, name, device)
        self.provenance: dict[str, Any] = {
            **provenance(name, self._network, "transformers"),
            "prompt": self._prompt,
            "n_tokens": n_tokens,
        }

    def __call__(self, items: Sequence[Item], images: Images) -> list[str]:
        """One line per item: the likeliest words, without the prompt."""
        pictures = images.of(items)
        if not self._prompt:
            return self._answers(pictures, [])
        asked = [self._asked(self._prompt.replace("{label}", item.label)) for item in items]
        # Prompts of one length at a time, so that none is padded: padding shifts the positions of BERT-like decoders.
        lengths = np.array([len(self._processor.tokenizer(one)["input_ids"]) for one in asked])
        answers = [""] * len(items)
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            told = self._answers([pictures[row] for row in rows], [asked[row] for row in rows])
            for row, one in zip(rows, told, strict=True):
                answers[row] = one
        return answers

    def _asked(self, prompt: str) -> str:
        if not getattr(self._processor, "chat_template", None):
            return prompt
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        said: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return said

    def _answers(self, pictures: list[UInt8], asked: list[str]) -> list[str]:
        def inputs(n: int) -> dict[str, Tensor]:
            given = self._processor(images=pictures[:n], text=asked[:n] or None, return_tensors="pt")
            given.pop("token_type_ids", None)
            if self._network.config.model_type == "git" and asked:  # goes on after the text, not after its end token
                given["input_ids"], given["attention_mask"] = (
                    given["input_ids"][:, :-1],
                    given["attention_mask"][:, :-1],
                )
            return {key: value.to(self._device) for key, value in given.items()}

        def call(n: int) -> Tensor:
            words: Tensor = self._network.generate(**inputs(n), do_sample=False, max_new_tokens=self._n_tokens)
            return words

        said = self._read(run(call, len(pictures), self._device))
        before = self._read(inputs(len(pictures))["input_ids"]) if asked else [""] * len(said)
        return [text.removeprefix(prompt).strip() for text, prompt in zip(said, before, strict=True)]

    def _read(self, words: Tensor) -> list[str]:
        return [" ".join(text.split()) for text in self._processor.batch_decode(words, skip_special_tokens=True)]


def write(
    captioner: Captioner,
    items: Sequence[Item],
    images: Path,
    out: Path,
    report: Report = silent,
    batch: int = 16,
) -> int:
    """Caption items into a table (TSV: id, caption), beside it a JSON that says by what; goes on where it was killed.

    Parameters
    ----------
    captioner : Captioner
    items : sequence of Item
        Each id counts once.
    images : Path
        Folder of the items' files.
    out : Path
        The table.
    report : callable
        Told how many rows are done.
    batch : int
        Images at once.

    Returns
    -------
    int
        Captions in the table.

    Raises
    ------
    ConfigError
        The table is of another captioner; ``batch`` is below 1.
    DataError
        It cannot be written.
    """
    if batch < 1:
        raise ConfigError("batch", got=batch, allowed="1 or more")
    beside = out.with_name(out.name + ".json")
    told = msgspec.json.encode(captioner.provenance, order="sorted")
    try:
        if out.exists():
            if not beside.exists() or beside.read_bytes() != told:
                raise ConfigError(f"{out} holds other captions", do="name another file, or delete it")
            text = out.read_text(encoding="utf-8")
            out.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")  # a killed call may leave half a line
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            replace(beside, told)
            out.write_text("id\tcaption\n", encoding="utf-8")
        done = read_captions(out)
        unique = list({item.id: item for item in items}.values())
        left, source = [item for item in unique if item.id not in done], Images(images)
        for start in range(0, len(left), batch):
            group = left[start : start + batch]
            lines = zip(group, captioner(group, source), strict=True)
            with out.open("a", encoding="utf-8") as file:
                file.writelines(f"{item.id}\t{caption}\n" for item, caption in lines)
            n_done = len(unique) - len(left) + start + len(group)
            report(f"{captioner.name}: {n_done} of {len(unique)} items", n_done, len(unique))
    except OSError as error:
        raise DataError(f"captions {out}", got=error.strerror, do="make room; the same command goes on") from error
    return len(unique)
