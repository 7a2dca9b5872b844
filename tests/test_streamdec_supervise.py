"""Processes that are started again: when, and what is told of their end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdec.decode.generate import supervise
from streamdec.decode.generate.supervise import FIRST, GOOD, LONGEST, UNABLE, BackOff, Keeper

STAYS = 100


class Told(msgspec.Struct):
    says: list[str] = []
    status: int = STAYS


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    helpers = str(Path(__file__).parent / "helpers")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([helpers, *filter(None, [os.environ.get("PYTHONPATH")])]))
    made = Keeper("kept")
    yield made
    made.close(5.0)


def end(keeper: Keeper, now: float) -> str:
    deadline = time.monotonic() + 20
    while (why := keeper.ended(now)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return why


@given(st.lists(st.floats(0, 200), max_size=20))
def test_ever_later_until_a_good_minute(lives: list[float]) -> None:
    back_off, bad = BackOff(), 0
    for lived in lives:
        bad = 0 if lived >= GOOD else bad
        assert back_off.after(lived) == min(FIRST * 2**bad, LONGEST)
        bad += 1


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (Told(["a", "what it says last", ""], 3), "ended with status 3: what it says last"),
        (Told(["a \x1b[31mcolour"], 1), "ended with status 1: a [31mcolour"),
        (Told([], 0), "ended with status 0"),
        (Told(["x" * 10_000], -signal.SIGTERM), "ended by SIGTERM"),
        (Told([], -signal.SIGKILL), "ended by SIGKILL, out of memory?"),
    ],
)
def test_why_it_ended(keeper: Keeper, told: Told, why: str) -> None:
    assert keeper.due == 0.0
    keeper.start(10.0, told)
    assert keeper.due == float("inf")
    assert end(keeper, 11.0) == why
    assert keeper.due == 11.0 + FIRST
    assert keeper.ended(12.0) is None, "told once"
    assert keeper.pid is keeper.descriptor is None


def test_what_would_only_fail_again_is_not_started_again(keeper: Keeper) -> None:
    keeper.start(0.0, Told(["no model"], UNABLE))
    assert end(keeper, 1.0) == "no model"
    assert keeper.due == float("inf")


def test_it_is_told_to_end_or_ended(keeper: Keeper) -> None:
    keeper.start(0.0, Told())
    assert keeper.ended(1.0) is None
    keeper.kill()
    assert end(keeper, 2.0).startswith("ended by SIGKILL")
    keeper.start(3.0, Told())
    process = psutil.Process(keeper.pid)
    keeper.close(10.0)
    assert not process.is_running()
    keeper.close(10.0)
    assert keeper.due == float("inf")


def test_what_it_says_is_handed_on_by_lines(keeper: Keeper) -> None:
    lines: list[str] = []
    keeper = Keeper("kept", said=lines.append)
    keeper.start(0.0, Told(["one", "two", "three"], 0))
    end(keeper, 1.0)
    assert lines == ["one", "two", "three"]


def test_what_cannot_be_started_is_tried_again_later(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        keeper.start(5.0, Told())
    assert keeper.due == float("inf")
    assert keeper.ended(6.0) == "it cannot be started: Cannot allocate memory"
    assert keeper.due == 6.0 + FIRST
    assert keeper.ended(6.0) is None
    keeper.start(7.0, Told())
    assert keeper.pid is not None
    assert supervise.UNABLE == 2
