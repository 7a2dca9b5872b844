"""Dispatcher and workers that die, hang and fall silent, and the sessions that do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from small_generator import LADDER, plan_for, watched, write_parts

from streamdec.decode.generate.dispatcher import Local
from streamdec.decode.generate.job import Answer, Drop, Kind
from streamdec.decode.generate.link import Notice

HELPERS = str(Path(__file__).parent / "helpers")
CAPTIONS = {"kinds": ("caption",), "workers": (Local("caption"),)}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Bundle and generator; the workers find the sick tiers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([HELPERS, *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield write_parts(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize(
    ("key", "why"), [("die", "SIGKILL"), ("exit", "ZeroDivisionError: one of no kind"), ("eat", "MemoryError")]
)
def test_a_worker_that_dies_at_work_is_answered_for_and_comes_back(
    parts: tuple[Path, Path], key: str, why: str
) -> None:
    with watched(plan_for(*parts, **CAPTIONS)) as each:
        assert each.answer(each.ask(key)).tier == "bank"
        assert why in each.state("caption-1", "lost").reason
        each.state("caption-1", "ready")
        assert each.answer(each.ask("fast")).tier == "llm"
        assert each.notices("caption-1") == ["lost", "starting", "ready"]


def test_a_worker_that_hangs_is_answered_for_and_ended(parts: tuple[Path, Path]) -> None:
    with watched(plan_for(*parts, **CAPTIONS)) as each:
        old = each.worker("caption-1").pid
        late = each.ask("hang", budget=0.3)
        assert each.answer(late).tier == "bank"
        assert f"not stopped in {LADDER.grace:g} s" in each.state("caption-1", "lost").reason
        each.state("caption-1", "ready")
        assert each.answer(each.ask("fast")).tier == "llm"
        assert each.worker("caption-1").pid != old
        assert not psutil.pid_exists(old)


def test_a_dispatcher_that_dies_takes_its_workers_along_and_comes_back(parts: tuple[Path, Path]) -> None:
    with watched(plan_for(*parts)) as each:
        dispatcher = each.dispatcher()
        workers = dispatcher.children()
        lost = [each.ask("sleep:1"), each.ask("sleep:1", "reconstruction"), each.ask("fast/waits")]
        each.until(lambda: any(isinstance(event, Answer) and event.partial for event in each.events))
        dispatcher.kill()
        assert [each.end(id_) for id_ in lost] == [Drop(id_, "the dispatcher is gone") for id_ in lost]
        assert (
            "SIGKILL"
            in each.until(
                lambda: next((e for e in each.events if isinstance(e, Notice) and e.worker == "dispatcher"), None)
            ).reason
        )
        gone = each.ask("fast")
        assert each.end(gone) == Drop(gone, "the dispatcher is not there")
        each.state("dispatcher", "ready")
        assert each.answer(each.ask("fast")).tier == "llm"
        psutil.wait_procs(workers, timeout=5)
        assert not any(worker.is_running() for worker in workers)


def test_a_dispatcher_that_stands_still_is_found_out(parts: tuple[Path, Path]) -> None:
    with watched(plan_for(*parts, **CAPTIONS)) as each:
        each.dispatcher().suspend()
        id_ = each.ask("fast", budget=0.1)
        assert each.end(id_) == Drop(id_, "the dispatcher gave no answer")
        assert (
            "no sign"
            in each.until(
                lambda: next((e for e in each.events if isinstance(e, Notice) and e.worker == "dispatcher"), None)
            ).reason
        )
        each.state("dispatcher", "ready")
        assert each.answer(each.ask("fast")).tier == "llm"


PROGRAM = """
import msgspec, sys, time
from streamdec.acquire.lsl.library import local_clock
from streamdec.decode.generate.client import Client
from streamdec.decode.generate.dispatcher import DispatcherPlan
from streamdec.decode.generate.job import Request
client = Client(msgspec.json.decode(sys.argv[1], type=DispatcherPlan), local_clock)
client.open(60.0)
import numpy as np
embedding, epoch = np.ones(12, np.float32), np.ones((1, 1), np.float32)
client.ask(Request(1, "caption", "hang", 1, local_clock(), local_clock() + 60, (), embedding, epoch))
print("ready", flush=True)
time.sleep(60)
"""


def test_nobody_outlives_a_session_that_is_killed(parts: tuple[Path, Path]) -> None:
    command = [sys.executable, "-c", PROGRAM, msgspec.json.encode(plan_for(*parts)).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"ready\n"
        processes = psutil.Process(session.pid).children(recursive=True)
        session.kill()
    assert len(processes) == 3
    psutil.wait_procs(processes, timeout=5)
    assert not any(process.is_running() for process in processes)


def test_a_worker_of_ours_that_stands_still_is_ended(parts: tuple[Path, Path], monkeypatch: Any) -> None:
    kind: Kind = "caption"
    with watched(plan_for(*parts, **CAPTIONS)) as each:
        worker = each.worker("caption-1")
        os.kill(worker.pid, signal.SIGSTOP)
        began = time.monotonic()
        assert each.answer(each.ask("fast", kind, budget=0.5)).tier == "bank"
        assert time.monotonic() - began < 5
        each.state("caption-1", "lost")
        each.state("caption-1", "ready")
