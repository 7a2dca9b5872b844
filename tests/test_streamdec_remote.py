"""Workers on other machines: keys, refusals, and a network namespace that is unplugged and back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from small_generator import Watched, plan_for, watched, write_parts

from streamdec.access import make_keys
from streamdec.cli import main
from streamdec.decode.generate.job import Answer
from streamdec.decode.generate.link import Notice

HELPERS = str(Path(__file__).parent / "helpers")
PROGRAM = """
import os, sys
from pathlib import Path
from streamdec.decode.generate.join import join
generator, connect, keys = sys.argv[1:]
join(Path(generator), connect, Path(keys) if keys else None, ["caption"], "cpu", 1, lambda: os.getppid() == 1, print,
     opens="sick_tiers:open_tiers")
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Bundle and generator; the workers find the sick tiers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([HELPERS, *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", ["gpu-box"])
    return tmp_path / "keys"


@contextmanager
def listening(parts: tuple[Path, Path], listen: str, keys: Path | None) -> Iterator[Watched]:
    """A session without workers of its own, that others may join."""
    plan = plan_for(*parts, kinds=("caption",), workers=(), listen=listen, keys=str(keys or ""))
    with watched(plan) as each:
        yield each


@contextmanager
def joining(
    generator: Path, connect: str, keys: Path | str = "", within: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A worker for it, and what it says."""
    command = [*within, sys.executable, "-u", "-c", PROGRAM, str(generator), connect, str(keys)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[str], what: str) -> str:
    """Wait for a line."""
    assert process.stdout is not None
    return next(line for line in process.stdout if what in line)


def theirs(each: Watched, state: str) -> Notice:
    """Wait until the one worker that joined has a state."""

    def there() -> Notice | None:
        return next((notice for notice in each.client.workers.values() if notice.state == state), None)

    return each.until(there)  # type: ignore[no-any-return]


def test_with_a_key_on_the_list_it_serves(parts: tuple[Path, Path], keys: Path) -> None:
    with listening(parts, "tcp://127.0.0.1:0", keys) as each:
        assert each.answer(each.ask("fast")).tier == "bank"
        with joining(parts[1], each.client.listening, keys / "gpu-box") as process:
            worker = theirs(each, "ready").worker
            says(process, "in touch with the session")
            answer = each.answer(each.ask("fast"))
            assert (answer.tier, answer.worker) == ("llm", worker)
            late = each.ask("hang", budget=2.0)  # time enough for it to be tried, on a busy machine too
            assert each.answer(late).tier == "bank"
            assert "not stopped" in theirs(each, "lost").reason
            says(process, "starting again")
            theirs(each, "ready")
            assert each.answer(each.ask("fast")).tier == "llm"
        theirs(each, "lost")
        assert each.answer(each.ask("fast")).tier == "bank"


def test_without_one_it_is_refused_and_told(parts: tuple[Path, Path], keys: Path, tmp_path: Path) -> None:
    make_keys(tmp_path / "foreign", ["eve"])
    eve = tmp_path / "foreign" / "eve"
    (eve / "feed.key").write_bytes((keys / "feed.key").read_bytes())
    with (
        listening(parts, "tcp://127.0.0.1:0", keys) as each,
        joining(parts[1], each.client.listening, eve) as process,
    ):
        says(process, "no sign of a session")
        warning = each.until(lambda: next((e for e in each.events if isinstance(e, Notice)), None))
        assert (warning.worker, warning.state) == ("", "failed")
        assert "without a key on the list was turned away" in warning.reason
        assert each.answer(each.ask("fast")).tier == "bank"
        assert not each.client.workers


def test_with_another_generator_it_is_refused(parts: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(parts[1], other)
    manifest = msgspec.json.decode((other / "generator.json").read_bytes())
    (other / "more").write_text("more")
    manifest["files"]["more"] = "187897ce0afcf20b50ba2b37dca84a951b7046f29ed5ab94f010619f69d6e189"
    (other / "generator.json").write_bytes(msgspec.json.encode(manifest))
    with listening(parts, "tcp://127.0.0.1:0", None) as each, joining(other, each.client.listening) as process:
        assert "another generator" in theirs(each, "failed").reason
        says(process, "another generator")
        assert process.wait(10) != 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--connect", "amplifier"], "--connect; got 'amplifier'"),
        (["--connect", "tcp://h:5", "--keys", "nowhere"], "key file nowhere/feed.key"),
        (["--connect", "tcp://h:5", "--threads", "0"], "--threads"),
    ],
)
def test_a_wrong_call(
    parts: tuple[Path, Path], options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["worker", str(parts[1]), *options]) == 2
    assert problem in capsys.readouterr().err


# --- another machine --------------------------------------------------------------------------------------------------


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def machine() -> Iterator[tuple[list[str], str, Callable[[str], None]]]:
    """A network namespace: how to run there, our address from there, and its plug."""
    name = f"sd{uuid.uuid4().hex[:6]}"
    here, there = f"{name}a", f"{name}b"
    try:
        ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces need ip and its rights here")
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there)
        ip("link", "set", there, "netns", name)
        ip("addr", "add", "10.211.7.1/30", "dev", here)
        ip("netns", "exec", name, "ip", "addr", "add", "10.211.7.2/30", "dev", there)
        ip("link", "set", here, "up")
        ip("netns", "exec", name, "ip", "link", "set", there, "up")
        yield ["ip", "netns", "exec", name], "10.211.7.1", lambda state: ip("link", "set", here, state)
    finally:
        ip("netns", "del", name)


def test_a_machine_that_is_unplugged_and_back(parts: tuple[Path, Path], keys: Path, machine: Any) -> None:
    within, address, plug = machine
    with listening(parts, "tcp://0.0.0.0:0", keys) as each:
        endpoint = f"tcp://{address}:{each.client.listening.rpartition(':')[2]}"
        with joining(parts[1], endpoint, keys / "gpu-box", within) as process:
            worker = theirs(each, "ready").worker
            running = each.ask("sleep:0.2", budget=30.0)
            each.until(lambda: any(isinstance(event, Answer) and event.partial for event in each.events))
            plug("down")
            said = each.answer(running)  # by what it had shown
            assert (said.tier, said.worker) == ("llm", worker)
            assert said.result.units < 4
            assert "not heard of" in theirs(each, "lost").reason
            assert each.answer(each.ask("fast")).tier == "bank"
            says(process, "is silent; dialling again")
            plug("up")
            theirs(each, "ready")
            answer = each.answer(each.ask("fast"))
            assert (answer.tier, answer.worker) == ("llm", worker)
