"""What a program of this package shows: lines, and a bar where there is a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from .progress import Report

_PLAIN_EVERY = 5.0  # seconds between lines in a log


def tell(console: Console, text: str) -> None:
    """Show a line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(err: Console) -> Iterator[Report]:
    """Show a bar on a terminal; in a log a line now and then, and the last one."""
    if not err.is_terminal:
        due = -_PLAIN_EVERY

        def say(line: str, done: int = 0, total: int = 0) -> None:
            nonlocal due
            now = time.monotonic()
            if now >= due or not total or done == total:
                due = now + _PLAIN_EVERY
                tell(err, line)

        yield say
        return
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(line: str, done: int = 0, total: int = 0) -> None:
            bar.update(task, description=line, completed=done, total=total or None)

        yield show
