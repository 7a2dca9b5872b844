"""One thing that was found, and the verdict over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from ..page.document import Block, Document, Note, Section, Table, Text

Level: TypeAlias = Literal["ok", "warning", "fatal"]
Part: TypeAlias = Literal[
    "network", "processor", "streams", "bundle", "clock", "signal", "markers", "photodiode", "budgets", "disk"
]


class Finding(msgspec.Struct, frozen=True):
    """One thing the doctor found.

    Attributes
    ----------
    part : of the rig.
    level : a ``fatal`` one keeps ``serve`` from working.
    text : what was found.
    do : what to do about it; the text may say it already.
    """

    part: Part
    level: Level
    text: str
    do: str = ""

    @property
    def fatal(self) -> bool:
        """Whether ``serve`` would refuse."""
        return self.level == "fatal"

    def line(self) -> str:
        """One line for a terminal."""
        return f"{self.level:8s} {self.part:11s} {self.text}{self.do and f'; {self.do}'}"


def judged(part: Part, good: bool, text: str, do: str) -> Finding:
    """Make a finding that is ``ok``, or else a warning with what to do."""
    return Finding(part, "ok", text) if good else Finding(part, "warning", text, do)


def verdict(findings: Sequence[Finding]) -> str:
    """Say in one line whether the rig is ready."""
    fatal, warnings = (sum(each.level == level for each in findings) for level in ("fatal", "warning"))
    warned = f"{warnings} warning{'s' * (warnings != 1)}"
    if fatal:
        return f"not ready: {fatal} thing{'s' * (fatal != 1)} to put right first, {warned}"
    return f"ready, with {warned}" if warnings else "ready"


def to_do(findings: Sequence[Finding]) -> list[str]:
    """List what stands between the rig and a session, the worst first, numbered."""
    open_ = [each for level in ("fatal", "warning") for each in findings if each.level == level]
    return [f"{i}. {each.part}: {each.text}{each.do and f'; {each.do}'}" for i, each in enumerate(open_, 1)]


def page(findings: Sequence[Finding], about: str) -> Document:
    """Lay the findings out as a page to print; ``about`` says when and what was examined."""
    parts = dict.fromkeys(each.part for each in findings)
    columns: tuple[tuple[str, Literal["text"]], ...] = (("", "text"), ("found", "text"), ("what to do", "text"))
    sections = tuple(
        Section(
            part.capitalize(),
            (Table(columns, tuple((e.level, e.text, e.do) for e in findings if e.part == part), ""),),
        )
        for part in parts
    )
    lead: tuple[Block, ...] = (
        Note(verdict(findings), good=all(each.level == "ok" for each in findings)),
        *map(Text, to_do(findings)),
        Text(about),
    )
    return Document("Is the rig ready?", lead, sections)
