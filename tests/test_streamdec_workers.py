"""Dispatcher and workers that die, hang and fall silent, and the sessions that do."""

from __future__ import annotations

import os
import shutil
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
from small_generator import LADDER, OPENS, Watched, plan_for, watched, write_parts

from streamdec.access import make_keys
from streamdec.decode.generate import client
from streamdec.decode.generate.dispatcher import Local
from streamdec.decode.generate.generator import open_generator
from streamdec.decode.generate.job import Answer, Drop, Kind
from streamdec.decode.generate.link import Notice
from streamdec.decode.generate.spec import Latent
from streamdec.decode.generate.worker import MODULE, WorkerPlan
from streamdec.errors import BundleError
from streamdec.priority import processors, stay

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
        late = each.ask("hang", budget=2.0)  # time enough for it to be tried, on a busy machine too
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


def test_a_dispatcher_that_can_never_come_back_is_said_to_have_failed(tmp_path: Path) -> None:
    bundle, generator = write_parts(tmp_path)
    with watched(plan_for(bundle, generator, workers=())) as each:
        (bundle / "manifest.json").unlink()
        each.dispatcher().kill()
        assert "manifest" in each.state("dispatcher", "failed").reason
        gone = each.ask("fast")
        assert each.end(gone) == Drop(gone, "the dispatcher is not there")


def test_a_dispatcher_comes_back_where_workers_of_other_machines_look_for_it(parts: tuple[Path, Path]) -> None:
    with watched(plan_for(*parts, workers=(), listen="tcp://127.0.0.1:0")) as each:
        where = each.client.listening
        each.dispatcher().kill()
        each.state("dispatcher", "ready")
        assert each.client.listening == where


def test_a_worker_whose_keys_are_gone_ends_when_it_dials_again(parts: tuple[Path, Path], tmp_path: Path) -> None:
    (keys,) = make_keys(tmp_path / "keys", ["box"])
    nobody = "tcp://127.0.0.1:9"
    plan = WorkerPlan("caption-1", "caption", str(parts[1]), nobody, str(keys), opens=OPENS)
    command = [sys.executable, "-m", MODULE, msgspec.json.encode(plan).decode()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        assert "no sign of a session" in worker.stderr.readline()
        shutil.rmtree(keys)
        assert "ConfigError: key file" in worker.stderr.readline()
        assert worker.wait(10) == 1


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can set what others may not lower")
def test_who_may_not_ask_to_be_ended_first_works_all_the_same() -> None:
    """As in a container whose runtime has set a higher number."""
    program = (
        "import os; from pathlib import Path; from streamdec.decode.generate.worker import step_back; "
        "own = Path('/proc/self/oom_score_adj'); own.write_text('900'); "
        "os.setuid(65534); step_back(); print(own.read_text())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["900"]


def lost(each: Watched, worker: str, times: int = 1) -> str:
    """Wait until a worker was lost so many times; why it was the last time."""

    def reasons() -> list[str]:
        notices = [event for event in each.events if isinstance(event, Notice) and event.worker == worker]
        return [notice.reason for notice in notices if notice.state == "lost"]

    each.until(lambda: len(reasons()) >= times)
    return reasons()[times - 1]


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


def test_a_dispatcher_that_dies_before_all_workers_are_warm_comes_back(parts: tuple[Path, Path]) -> None:
    with watched(plan_for(*parts, **CAPTIONS, opens="sick_tiers:open_slowly"), wait=0.0) as each:
        each.dispatcher().kill()
        lost(each, "dispatcher")
        each.state("caption-1", "starting")  # by the next one
        assert each.answer(each.ask("fast")).tier == "bank"


def test_a_dispatcher_that_hangs_while_it_loads_is_ended(
    parts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(*parts, **CAPTIONS, costs=str(tmp_path))
    costs = tmp_path / f"{open_generator(str(parts[1])).hash[:16]}.json"
    with watched(plan) as each:
        os.mkfifo(costs)  # who opens it to read waits, as on a disk that is gone
        monkeypatch.setattr(client, "LOADING", 1.0)
        each.dispatcher().kill()
        assert lost(each, "dispatcher", 2) == "it gave no sign for 1 s"
        monkeypatch.undo()
        costs.unlink()
        each.state("dispatcher", "ready")
        assert each.answer(each.ask("fast")).tier == "llm"
    costs.unlink(missing_ok=True)  # the costs, by now
    os.mkfifo(costs)
    monkeypatch.setattr(client, "LOADING", 1.0)
    with pytest.raises(BundleError, match="it gave no sign for 1 s"), watched(plan):
        pass


def test_a_worker_that_hangs_while_it_loads_is_ended_and_not_waited_for(parts: tuple[Path, Path]) -> None:
    said: list[str] = []
    plan = plan_for(*parts, **CAPTIONS, opens="sick_tiers:open_slowly", loading=1.0)
    with watched(plan, say=said.append) as each:
        assert "caption-1: lost: not up 1 s after its start" in said
        assert each.answer(each.ask("fast")).tier == "bank"
        each.state("caption-1", "starting")  # again


def test_what_the_dispatcher_is_holds_while_a_worker_still_loads(tmp_path: Path, parts: tuple[Path, Path]) -> None:
    bundle, generator = write_parts(tmp_path, latent=Latent("network.onnx", "epoch"))
    plan = plan_for(bundle, generator, opens="sick_tiers:open_pictures_alone", listen="tcp://127.0.0.1:0")
    with watched(plan, wait=0.0) as each:
        assert each.client.listening.startswith("tcp://127.0.0.1:")
        each.state("reconstruction-1", "ready")
        assert each.answer(each.ask("epoch", "reconstruction")).tier == "latent"


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


@pytest.fixture
def all_processors() -> Iterator[frozenset[int]]:
    """Those there are; this thread may use them again afterwards."""
    there = processors()
    if len(there) < 2:
        pytest.skip("one processor")
    yield there
    os.sched_setaffinity(0, there)


def test_what_loads_beside_a_loop_that_stays_leaves_its_processor_alone(
    parts: tuple[Path, Path], all_processors: frozenset[int]
) -> None:
    plan = plan_for(*parts, opens="sick_tiers:open_pictures_alone")  # captions load for ever
    with watched(plan, wait=0.0) as each:
        each.state("reconstruction-1", "ready")
        loading = each.worker("caption-1").pid
        assert processors(loading) == all_processors  # nobody stays yet
        stay()
        others = all_processors - processors()
        os.kill(loading, signal.SIGKILL)
        each.state("caption-1", "lost")
        each.state("caption-1", "starting")
        assert processors(each.worker("caption-1").pid) == others
        each.dispatcher().kill()
        lost(each, "dispatcher")
        each.state("reconstruction-1", "ready")
        assert processors(each.dispatcher().pid) == others
        assert processors(each.worker("caption-1").pid) == others
        loaded = each.worker("reconstruction-1").pid
        threads = list(Path(f"/proc/{loaded}/task").iterdir())
        assert {processors(int(thread.name)) for thread in threads} == {all_processors}
