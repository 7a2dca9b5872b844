"""What the machine offers: the feed's ports, a processor when it is wanted, and room on the disk."""

from __future__ import annotations

import getpass
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from ..access import TCP, is_loopback
from ..config import Config
from ..errors import StreamdecError
from ..feed import address
from ..feed.publisher import Publisher
from ..priority import allowed
from ..types import StreamInfo
from .finding import Finding, judged

_HOUR = 3600


def network(config: Config) -> Iterator[Finding]:
    """Who can reach the feed and the workers' port, and whether the feed's ports are free."""
    wanted = address.resolve(config.feed.endpoint)
    who = "this machine only" if wanted.local else "other machines too, encrypted, with keys on the list"
    yield Finding("network", "ok", f"the feed at {config.feed.endpoint} can be read from {who}")
    listen = TCP.fullmatch(config.generate.listen)
    if listen is not None:
        who = "this machine only" if is_loopback(listen["host"]) else "other machines too, encrypted"
        yield Finding("network", "ok", f"workers may join at {config.generate.listen} from {who}")
    try:
        Publisher(config.feed, "doctor").close()
    except StreamdecError as error:
        yield Finding("network", "fatal", str(error))


def processor() -> Finding:
    """Whether the hot loop may go before other programs."""
    if allowed():
        return Finding("processor", "ok", "the hot loop goes before all ordinary programs")
    text = "the hot loop has to wait for other programs: this user may not use real-time priority"
    name = f"{getpass.getuser()} - rtprio 1"
    return Finding("processor", "warning", text, f"put the line '{name}' into /etc/security/limits.conf, log in anew")


def disk(config: Config, eeg: StreamInfo) -> Iterator[Finding]:
    """How long a recording of this stream finds room."""
    path = Path(config.record)
    there = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    hour = eeg.n_chans * eeg.sfreq * 4 * _HOUR
    text = f"{free / 1e9:.1f} GB free at {there}, an hour takes {hour / 1e9:.1f} GB"
    yield judged("disk", free > 2 * hour, text, "make room, or record elsewhere")


def is_here(hostname: str) -> bool:
    """Tell whether a stream says that it comes from this machine."""
    return hostname.lower() == socket.gethostname().lower()
