"""The examples in Python and C, as programs, beside a publisher. The one in TypeScript has a test of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from feed_messages import onset, retrieval, session

from streamdec import feed
from streamdec.feed.publisher import FeedSettings, Publisher

CLIENTS = Path(feed.__file__).parent / "clients"


def first_line(publisher: Publisher, *command: str) -> str:
    """Publish decisions until the program prints a line; return it."""
    with subprocess.Popen([*command, publisher.endpoint], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        end, said = time.monotonic() + 30, b""
        while b"\n" not in said and time.monotonic() < end:
            assert process.poll() is None
            publisher.publish(onset())
            publisher.publish(retrieval("cat", dims=3), [bytes(12)])
            publisher.serve()
            said += process.stdout.read() or b""
            time.sleep(0.01)
        process.kill()
    return said.decode().partition("\n")[0]


def test_python() -> None:
    with Publisher(FeedSettings(endpoint="tcp://127.0.0.1:0"), "s1") as publisher:
        publisher.publish(session("started"))
        said = first_line(publisher, sys.executable, str(CLIENTS / "python" / "decisions.py"))
    assert said == "cat rank 1: label cat (0.25), 5.0 ms"


def test_c(tmp_path: Path) -> None:
    compiler, flags = shutil.which("cc"), zeromq_flags()
    if compiler is None or not flags:
        pytest.skip("a C compiler or libzmq's headers are not there (Debian: libzmq3-dev, pkg-config)")
    program = str(tmp_path / "decisions")
    source = str(CLIENTS / "c" / "decisions.c")
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", source, "-o", program, *flags], check=True, timeout=60)
    with Publisher(FeedSettings(endpoint="tcp://127.0.0.1:0", encoding="json"), "s1") as publisher:
        header = json.loads(first_line(publisher, program))
    assert (header["topic"], header["candidates"][0]["label"]) == ("retrieval", "label cat")
    assert subprocess.run([program, "nonsense"], capture_output=True, check=False).returncode == 2


def zeromq_flags() -> Sequence[str]:
    try:
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "libzmq"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ()
    return flags.stdout.split()
