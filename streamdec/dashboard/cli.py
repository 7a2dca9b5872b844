"""``streamdec dashboard``: serve the page."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add(command: Any) -> None:
    """Add the command."""
    dashboard = command("dashboard", _dashboard, "show the feed on a web page, and serve /metrics for Prometheus")
    dashboard.add_argument("--endpoint", help="feed, default tcp://127.0.0.1:5650 (and the two ports above it)")
    dashboard.add_argument("--keys", type=Path, help="this client's folder, made by streamdec keys")
    dashboard.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    dashboard.add_argument("--port", type=int, help="0 finds a free one (default: 5680, or a free one if it is taken)")
    dashboard.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="who looks must know the token in it; made where it is missing; needed where others can reach --host",
    )
    dashboard.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # end with this process


def _dashboard(options: argparse.Namespace) -> int:
    import asyncio

    from ..feed import address
    from ..feed.subscriber import Subscriber
    from .gate import Gate, read_token
    from .server import SHOWN, serve

    gate = Gate(options.host, read_token(options.token_file) if options.token_file else "")
    feed = Subscriber(options.endpoint or address.DEFAULT, SHOWN, keys=options.keys)
    alive = (lambda: os.getppid() == options.parent) if options.parent else (lambda: True)
    asyncio.run(serve(feed, gate, options.host, options.port, _say, alive))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
