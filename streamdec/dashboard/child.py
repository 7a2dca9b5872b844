"""The dashboard as a child of `serve` or `demo`: beside the session, never in its way."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from ..errors import ConfigError
from ..stop import end

CLIENT = "dashboard"
"""Name of the dashboard among the clients of an encrypted feed."""

_READY = "dashboard at "


def start(stack: ExitStack, endpoint: str, keys: str = "") -> str:
    """Start ``streamdec dashboard`` on a feed of this machine; it ends with the stack, or with this process.

    Parameters
    ----------
    stack : ExitStack
    endpoint : str
        Of the feed.
    keys : str
        Folder of the feed's keys, "" for a feed without: its client ``dashboard`` is used.

    Returns
    -------
    str
        One line for the user: where it is, or that it did not start.

    Raises
    ------
    ConfigError
        The feed is encrypted and has no such client.
    """
    command = [sys.executable, "-m", "streamdec", "dashboard", "--endpoint", endpoint, "--parent", str(os.getpid())]
    if keys:
        mine = Path(keys) / CLIENT
        if not mine.is_dir():
            do = f"make them: streamdec keys {keys} {CLIENT}"
            raise ConfigError("the feed is encrypted, and the dashboard has no keys", do=do)
        command += ["--keys", str(mine)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own program
    stack.callback(end, process)
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    return line if line.startswith(_READY) else f"no dashboard: it ended with exit code {process.wait()}"
