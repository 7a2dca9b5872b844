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
from importlib.util import find_spec
from pathlib import Path

from . import child
from .acquire.lsl.library import loopback
from .errors import ConfigError, StreamError
from .feed.subscriber import Subscriber
from .simulate.amplifier import CATCH
from .simulate.forward import IDIOSYNCRASY
from .simulate.world import World
from .stop import end, until_signal
from .tally import Tally

DEMO_BUNDLE = Path(__file__).parent / "simulate" / "demo_bundle.zip"
FULL_BUNDLE = Path(__file__).parent / "simulate" / "demo_full.zip"
FULL_GENERATOR = Path(__file__).parent / "simulate" / "demo_generator"
DEMO_SESSION = 9
"""Session of the simulated subject that the demo plays: its noise and order are in no training data."""
FULL_DISTINCTNESS = 6.0
"""How much more the responses of the full demo's subject differ between images than what is as hard as real ones."""
FULL_IDIOSYNCRASY = 0.5
"""Amplitude of the part of these responses that no linear decoder carries over to new images."""

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
    stack.callback(end, process)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("feed at "):
            return process, line.removeprefix("feed at ").strip()
    raise StreamError("streamdec serve ended before it was ready", got=f"exit code {process.wait()}")


def amplifier_process(stack: ExitStack, name: str, n_images: int, *subject: str) -> subprocess.Popen[str]:
    """Start the virtual amplifier on the demo's subject, or another; it plays once somebody listens."""
    command = [sys.executable, "-m", "streamdec.simulate.amplifier", "--name", name, "--images", str(n_images)]
    # Two BLAS threads would only wait for each other there.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command += ["--session", str(DEMO_SESSION), *subject]
    process = subprocess.Popen(command, text=True, env=environment)  # noqa: S603 - our own program
    stack.callback(end, process)
    return process


@contextmanager
def simulated_session(*, full: bool = False) -> Iterator[Subscriber]:
    """Amplifier and serving process run while it is open; the subscriber reads their feed.

    Parameters
    ----------
    full : bool
        With captions and reconstructions.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamdec-demo-")))
        name = f"simulated-{uuid.uuid4().hex[:8]}"
        (folder / "lsl_api.cfg").write_text(loopback(name), encoding="utf-8")
        os.environ["LSLAPICFG"] = str(folder / "lsl_api.cfg")  # for the processes to come
        config = folder / "serve.toml"
        config.write_text(f'[intake.markers]\nignore = "{CATCH}"\n', encoding="utf-8")
        easier = ("--distinctness", str(FULL_DISTINCTNESS), "--idiosyncrasy", str(FULL_IDIOSYNCRASY)) if full else ()
        amplifier_process(stack, name, _N_IMAGES, *easier)
        bundle, more = (FULL_BUNDLE, ("--generator", str(FULL_GENERATOR))) if full else (DEMO_BUNDLE, ())
        _, endpoint = serve_process(stack, bundle, name, f"{name}-markers", "--config", str(config), *more)
        yield stack.enter_context(Subscriber(endpoint))


def demo(
    seconds: float | None, *, headless: bool, say: Callable[[str], None], full: bool = False, dashboard: bool = False
) -> int:
    """Run the demo for ``seconds`` (None: until Ctrl-C); return 0 when images were found far above chance.

    Parameters
    ----------
    seconds : float or None
    headless : bool
        A summary instead of the live table.
    say : callable
        Takes a line for the user.
    full : bool
        With captions and reconstructions; then captions must also say more than those of other images would.
    dashboard : bool
        On a web page too.

    Raises
    ------
    ConfigError
        ``full`` needs packages that are not installed.
    """
    missing = [name for name in ("torch", "transformers", "diffusers") if full and find_spec(name) is None]
    if missing:
        raise ConfigError(f"demo --full needs {', '.join(missing)}", do='install it: pip install ".[generate]"')
    easier = (
        f", its responses {FULL_DISTINCTNESS:g} times as distinct as people's and {1 - FULL_IDIOSYNCRASY**2:.0%} "
        f"instead of {1 - IDIOSYNCRASY**2:.0%} linear in what an image shows,"
        if full
        else ""
    )
    say(f"a simulated subject{easier} sees {_N_IMAGES} images over and over; starting amplifier and decoder ...")
    # SIGTERM ends it as Ctrl-C does: with the processes it started.
    with until_signal(), simulated_session(full=full) as subscriber, ExitStack() as stack:
        if dashboard:
            say(child.start(stack, "dashboard", subscriber.endpoint))
        if headless:
            return _summary(subscriber, seconds, say, full=full)
        from rich.console import Console

        from .watch import watch

        watch(subscriber, Console(), seconds=seconds)
        return 0


def _summary(subscriber: Subscriber, seconds: float | None, say: Callable[[str], None], *, full: bool) -> int:
    """Collect for ``seconds``, print what was found."""
    tally = Tally()
    began: float | None = None
    patience = time.monotonic() + _PATIENCE
    while began is None or seconds is None or time.monotonic() - began <= seconds:
        if began is None and time.monotonic() > patience:
            raise StreamError(f"no decision within {_PATIENCE:g} s", do="run streamdec demo --debug")
        received = subscriber.receive(0.5)
        if received is not None:
            tally.add(received.message)
            began = began or (time.monotonic() if tally.decisions else None)
    lines, good = tally.retrieval()
    if full:
        said, true = tally.captions(World(0))
        lines += [*tally.generated("caption"), *said, *tally.generated("reconstruction")]
        good = good and true and bool(tally.made["reconstruction"])
    for line in lines:
        say(line)
    return 0 if good else 1
