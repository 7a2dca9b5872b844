"""What is said of each stimulus: its label or its caption, put into a sentence."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamdec.errors import ConfigError, DataError

from ..data.store import Item
from .provenance import digest


class TextOptions(msgspec.Struct, frozen=True):
    """Options of every encoder of text.

    ``template`` the sentence, with ``{label}`` or ``{caption}`` in it, such as ATM's "This picture is {label}"; by
    default the caption where there are captions, else the label, and nothing else. ``captions`` a file of them: TSV
    with the columns id and caption, or JSON, id -> caption; ``streamdec-train captions`` writes one.
    """

    template: str = ""
    captions: str = ""


class Sentences:
    """One sentence per item.

    Parameters
    ----------
    options : TextOptions

    Raises
    ------
    ConfigError
        The template has no slot, or asks for captions and there is no file of them.
    DataError
        The caption file cannot be read.
    """

    def __init__(self, options: TextOptions) -> None:
        self._captions = read_captions(Path(options.captions)) if options.captions else None
        self._template = options.template or ("{label}" if self._captions is None else "{caption}")
        if "{label}" not in self._template and "{caption}" not in self._template:
            raise ConfigError(
                "template", got=repr(self._template), allowed="a sentence with {label} or {caption} in it"
            )
        if "{caption}" in self._template and self._captions is None:
            raise ConfigError("template", got=repr(self._template), do="name a file of captions: @captions=FILE")
        self._path = options.captions
        self.provenance: dict[str, Any] = {"template": self._template}
        if options.captions:
            self.provenance["captions"] = digest(Path(options.captions))

    def of(self, items: Sequence[Item]) -> list[str]:
        """Sentences of items.

        Raises
        ------
        DataError
            One has no caption.
        """
        if self._captions is None:
            return [self._template.replace("{label}", item.label) for item in items]
        missing = [item.id for item in items if item.id not in self._captions]
        if missing:
            raise DataError(f"captions {self._path}", got=f"none for {missing[0]!r}", do="caption this data set")
        return [
            self._template.replace("{label}", item.label).replace("{caption}", self._captions[item.id])
            for item in items
        ]


def read_captions(path: Path) -> dict[str, str]:
    """Captions by item id, from TSV (columns id, caption) or JSON (an object).

    Raises
    ------
    DataError
        Not readable, or not what it should be.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return msgspec.json.decode(text, type=dict[str, str])
        header, *lines = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
        if header != ["id", "caption"]:
            raise DataError(f"captions {path}", got=f"columns {', '.join(header)}", allowed="id, caption")
        captions: dict[str, str] = {}
        for number, line in enumerate(lines, 2):
            if len(line) != 2:
                raise DataError(f"captions {path} line {number}", got=f"{len(line)} columns", allowed="2")
            captions[line[0]] = line[1]
        return captions
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise DataError(f"captions {path}", got=str(error), do="write some: streamdec-train captions") from error
