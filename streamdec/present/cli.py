"""``streamdec present``: show images, send markers."""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def add(command: Any) -> None:
    """Add the command."""
    present = command("present", _present, "show images full screen, with an LSL marker at each flip")
    present.add_argument("images", type=Path, help="folder of images, or a table (.tsv, .csv): marker, image")
    present.add_argument(
        "--out", type=Path, metavar="FOLDER", help="new folder for the log and the table (default: present-TIME)"
    )
    order = present.add_argument_group("what is shown")
    order.add_argument(
        "--repetitions", type=int, default=1, metavar="N", help="presentations of each image (default: 1)"
    )
    order.add_argument("--seed", type=int, default=0, help="draws the order (default: 0)")
    order.add_argument("--catch", type=Path, metavar="IMAGE", help="the catch image (default: rings in orange)")
    order.add_argument(
        "--catches", type=float, default=6 / 56, metavar="SHARE", help="of the sequences have one (default: 6/56)"
    )
    timing = present.add_argument_group("when; defaults are those of THINGS-EEG2")
    timing.add_argument("--on", type=float, default=0.1, metavar="S", help="how long an image stays (default: 0.1)")
    timing.add_argument("--soa", type=float, default=0.2, metavar="S", help="from image to image (default: 0.2)")
    timing.add_argument("--sequence", type=int, default=20, metavar="N", help="images in a sequence (default: 20)")
    timing.add_argument("--before", type=float, default=0.75, metavar="S", help="blank before one (default: 0.75)")
    timing.add_argument("--after", type=float, default=2.75, metavar="S", help="pause after one (default: 2.75)")
    timing.add_argument("--block", type=int, default=56, metavar="N", help="sequences between breaks (default: 56)")
    timing.add_argument(
        "--rest",
        type=float,
        metavar="S",
        help="a break lasts so long at most (default: until space is pressed, or Enter in the terminal)",
    )
    screen = present.add_argument_group("the screen")
    screen.add_argument("--screen", type=int, default=0, metavar="N", help="number of the display (default: 0)")
    screen.add_argument(
        "--size", type=float, default=0.5, metavar="SHARE", help="of its height, an image's (default: 0.5)"
    )
    screen.add_argument(
        "--patch", default="bottom left", metavar="CORNER", help='of the photodiode, such as "top right", or "none"'
    )
    screen.add_argument(
        "--pace", type=float, default=0.0, metavar="HZ", help="flip by the clock: for a screen that nobody sees"
    )
    markers = present.add_argument_group("the markers")
    markers.add_argument("--name", default="streamdec-present", help="of the LSL stream (default: streamdec-present)")
    markers.add_argument("--plain", action="store_true", help="stimulus keys as plain texts instead of JSON objects")
    markers.add_argument("--wait", type=float, metavar="S", help="wait up to S seconds until somebody reads them")


def _present(options: argparse.Namespace) -> int:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if find_spec("pygame") is None:
        raise ConfigError("present needs pygame", do='install it: pip install ".[present]"')
    from ..simulate.schedule import Timing
    from ..stop import until_signal
    from .plan import PresentSettings
    from .run import present

    settings = PresentSettings(
        on=options.on,
        timing=Timing(options.soa, options.sequence, options.before, options.after, options.catches),
        repetitions=options.repetitions,
        block=options.block,
        rest=options.rest,
        seed=options.seed,
        catch=str(options.catch or ""),
        size=options.size,
        screen=options.screen,
        patch=options.patch,
        pace=options.pace,
        name=options.name,
        plain=options.plain,
    )
    out = options.out or Path(time.strftime("present-%Y%m%d-%H%M%S"))
    with until_signal() as stopped:
        account = present(options.images, out, settings, wait=options.wait, say=_say, stopped=stopped, go=_Enter())
    for line in account.lines():
        _say(line)
    return 0


class _Enter:
    """Whether Enter was pressed in the terminal since this was last asked: the experimenter's space bar."""

    def __init__(self) -> None:
        self._pressed = threading.Event()
        threading.Thread(target=self._read, name="streamdec-present-enter", daemon=True).start()

    def __call__(self) -> bool:
        pressed = self._pressed.is_set()
        self._pressed.clear()
        return pressed

    def _read(self) -> None:
        # Not sys.stdin: a thread that waits in it keeps its lock, which Python wants at the end.
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                self._pressed.set()


def _say(line: str) -> None:
    print(line, flush=True)
