"""How long work says where it is."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Told in one line what is being done; ``done`` of ``total`` steps, 0 where that is not known."""

    def __call__(self, line: str, done: int = 0, total: int = 0) -> None:
        """Say it."""


def silent(line: str, done: int = 0, total: int = 0) -> None:
    """Say nothing."""
