"""A simulated subject, decoded live: virtual amplifier and `streamdec serve` in processes of their own, on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from .acquire.lsl import loopback
from .errors import StreamError
from .feed.schema import Counts, Gallery, Retrieval, Session, Stats
from .feed.subscriber import Subscriber
from .simulate.amplifier import CATCH

DEMO_BUNDLE = Path(__file__).parent / "simulate" / "demo_bundle.zip"
DEMO_SESSION = 9
"""Session of the simulated subject that the demo plays: its noise and order are in no training data."""

_N_IMAGES = 8
_PATIENCE = 60.0  # seconds for a process to come up


def serve_process(
    stack: ExitStack, bundle: Path, eeg: str, markers: str, *more: str
) -> tuple[subprocess.Popen[str], str]:
    """Start ``streamdec serve`` on two named streams; return the process and its feed's endpoint once it is ready.

    The process ends with the stack: SIGTERM first, as a user would.
    """
    command = [
        sys.executable,
        "-m",
        "streamdec",
        "serve",
        str(bundle),
        "--eeg",
        f"name={eeg}",
        "--markers",
        f"name={markers}",
    ]
    if "--endpoint" not in more:
        more = (*more, "--endpoint", "tcp://127.0.0.1:0")
    process = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own program
    stack.callback(_end, process)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("feed at "):
            return process, line.removeprefix("feed at ").strip()
    raise StreamError("streamdec serve ended before it was ready", got=f"exit code {process.wait()}")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def amplifier_process(stack: ExitStack, name: str, n_images: int) -> subprocess.Popen[str]:
    """Start the virtual amplifier on the demo's subject; it plays once somebody listens."""
    command = [sys.executable, "-m", "streamdec.simulate.amplifier", "--name", name, "--images", str(n_images)]
    # Two BLAS threads would only wait for each other there.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command += ["--session", str(DEMO_SESSION)]
    process = subprocess.Popen(command, text=True, env=environment)  # noqa: S603 - our own program
    stack.callback(_end, process)
    return process


@contextmanager
def simulated_session() -> Iterator[Subscriber]:
    """Amplifier and serving process run while it is open; the subscriber reads their feed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamdec-demo-")))
        name = f"simulated-{uuid.uuid4().hex[:8]}"
        (folder / "lsl_api.cfg").write_text(loopback(name), encoding="utf-8")
        os.environ["LSLAPICFG"] = str(folder / "lsl_api.cfg")  # for the processes to come
        config = folder / "serve.toml"
        config.write_text(f'[intake.markers]\nignore = "{CATCH}"\n', encoding="utf-8")
        amplifier_process(stack, name, _N_IMAGES)
        _, endpoint = serve_process(stack, DEMO_BUNDLE, name, f"{name}-markers", "--config", str(config))
        yield stack.enter_context(Subscriber(endpoint))


def demo(seconds: float | None, *, headless: bool, say: Callable[[str], None]) -> int:
    """Run the demo for ``seconds`` (None: until Ctrl-C); return 0 when images were found far above chance.

    Parameters
    ----------
    seconds : float or None
    headless : bool
        A summary instead of the live table.
    say : callable
        Takes a line for the user.
    """
    say(f"a simulated subject sees {_N_IMAGES} images over and over; starting amplifier and decoder ...")
    with simulated_session() as subscriber:
        if headless:
            return _summary(subscriber, seconds, say)
        from rich.console import Console

        from .watch import watch

        watch(subscriber, Console(), seconds=seconds)
        return 0


def _summary(subscriber: Subscriber, seconds: float | None, say: Callable[[str], None]) -> int:
    """Collect for ``seconds``, print what was found."""
    decisions: list[Retrieval] = []
    counts: Counts | None = None
    began: float | None = None
    patience = time.monotonic() + _PATIENCE
    n_gallery = 0
    while True:
        now = time.monotonic()
        if began is not None and seconds is not None and now - began > seconds:
            break
        if began is None and now > patience:
            raise StreamError(f"no decision within {_PATIENCE:g} s", do="run streamdec demo --debug")
        received = subscriber.receive(0.5)
        if received is None:
            continue
        message = received.message
        if isinstance(message, Retrieval) and message.final:
            began = began or time.monotonic()
            decisions.append(message)
        elif isinstance(message, Gallery):
            n_gallery = len(message.entries)
        elif isinstance(message, Session) and message.state == "refused":
            raise StreamError("the demo's own stream was refused", got=message.reason)
        elif isinstance(message, Stats):
            counts = message.counts
    ranks = np.array([decision.rank for decision in decisions if decision.rank is not None])
    latency = 1e3 * np.array([decision.timing.latency for decision in decisions])
    budget = 1e3 * decisions[0].timing.budget
    met = sum(decision.timing.deadline_met for decision in decisions)
    first, five = np.mean(ranks == 1), np.mean(ranks <= 5)
    most = max(decision.repetitions for decision in decisions)
    say(f"{len(decisions)} decisions on simulated EEG, up to {most} repetitions of an image behind one")
    say(f"shown image first of {n_gallery}: {100 * first:.0f} % (chance {100 / n_gallery:.1f} %)")
    say(f"shown image among the first five: {100 * five:.0f} % (chance {500 / n_gallery:.1f} %)")
    p50, p99 = np.percentile(latency, (50, 99))
    say(f"latency beyond the epoch's end, packet's wait included: median {p50:.1f} ms, p99 {p99:.1f} ms")
    say(f"{met} of {len(decisions)} within the budget of {budget:.0f} ms")
    if counts is not None:
        other = counts.onsets - counts.decided - counts.open
        say(f"{counts.onsets} onsets: {counts.decided} decided, {counts.open} open, {other} ended otherwise")
    return 0 if five > 15 / n_gallery else 1
