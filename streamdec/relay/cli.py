"""`streamdec relay`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..feed.address import DEFAULT


def add(command: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Add the command."""
    made = command("relay", run, "hand the results on: as an LSL stream beside the EEG, as OSC")
    made.add_argument(
        "--lsl", nargs="?", const="streamdec", metavar="NAME", help="as an LSL stream of type Events (name: streamdec)"
    )
    made.add_argument("--osc", metavar="HOST:PORT", help="as OSC messages, in UDP datagrams")
    made.add_argument("--endpoint", default=DEFAULT, help=f"feed, default {DEFAULT}")
    made.add_argument("--keys", type=Path, help="this client's folder, made by streamdec keys")
    made.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # end with this process


def run(options: argparse.Namespace) -> int:
    """Relay until SIGINT or SIGTERM."""
    if not options.lsl and not options.osc:
        raise ConfigError("nowhere to relay to", allowed="--lsl, --osc HOST:PORT, or both")
    from ..feed.subscriber import Subscriber
    from ..stop import until_signal
    from .lsl import TYPE, LslOutput
    from .osc import OscOutput
    from .relay import TOPICS, Output, relay

    say = partial(print, flush=True)
    outputs: list[Output] = []
    with ExitStack() as stack:
        feed = stack.enter_context(Subscriber(options.endpoint, TOPICS, keys=options.keys))
        if options.osc:
            osc = OscOutput(options.osc, say)
            stack.callback(osc.close)
            outputs.append(osc)
            say(f"OSC to {options.osc}")
        if options.lsl:
            lsl = LslOutput(options.lsl, options.endpoint)
            stack.callback(lsl.close)
            outputs.append(lsl)
            say(f"LSL stream {options.lsl!r}, type {TYPE}")
        signalled = stack.enter_context(until_signal())
        if options.parent:  # it reads the line that is said by now, and speaks for the session itself
            parent, warn = options.parent, partial(print, file=sys.stderr, flush=True)
            relay(feed, outputs, lambda: signalled() or os.getppid() != parent, lambda line: None, warn)
            return 0
        sent = relay(feed, outputs, signalled, say, say)
    say("relayed " + (", ".join(f"{n} {topic}" for topic, n in sent.items() if n) or "nothing"))
    return 0
