"""The README's picture: `streamdec watch` on the demo, as it looked after some seconds.

python tools/make_picture.py [SECONDS]       # writes tools/watch.svg
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

from rich.console import Console

from streamdec.demo import simulated_session
from streamdec.watch import State, fold, render

TARGET = Path(__file__).with_name("watch.svg")


def main(seconds: float) -> None:
    """Listen, draw, save."""
    state = State()
    with simulated_session() as subscriber:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            received = subscriber.receive(0.5)
            if received is not None:
                state = fold(state, received)
    console = Console(record=True, width=118, file=io.StringIO())
    console.print(render(state))
    console.save_svg(str(TARGET), title="streamdec watch, on a simulated subject")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 45.0)
