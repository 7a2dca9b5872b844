"""A command that reads the feed, as a child of `serve` or `demo`: beside the session, never in its way."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from .errors import ConfigError
from .stop import end


def start(stack: ExitStack, command: str, endpoint: str, keys: str = "", options: tuple[str, ...] = ()) -> str:
    """Start a command on a feed of this machine; it ends with the stack, or with this process.

    Parameters
    ----------
    stack : ExitStack
    command : str
        Of streamdec, one that takes ``--endpoint``, ``--keys`` and ``--parent`` and prints a line once it is ready.
    endpoint : str
        Of the feed.
    keys : str
        Folder of the feed's keys, "" for a feed without: its client named as the command is used.
    options : tuple of str
        More for the command.

    Returns
    -------
    str
        One line for the user: what the command says, or that it did not start.

    Raises
    ------
    ConfigError
        The feed is encrypted and has no such client.
    """
    call = [sys.executable, "-m", "streamdec", command, *options, "--endpoint", endpoint, "--parent", str(os.getpid())]
    if keys:
        mine = Path(keys) / command
        if not mine.is_dir():
            do = f"make them: streamdec keys {keys} {command}"
            raise ConfigError(f"the feed is encrypted, and the {command} has no keys", do=do)
        call += ["--keys", str(mine)]
    # Ctrl-C is meant for the session: what it says last is still to be read.
    process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True, process_group=0)  # noqa: S603 - our own program
    stack.callback(end, process)
    assert process.stdout is not None
    return process.stdout.readline().strip() or f"no {command}: it ended with exit code {process.wait()}"
