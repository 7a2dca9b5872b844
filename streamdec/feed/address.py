"""The address of a feed: one endpoint and its two neighbours.

A feed at ``tcp://host:5650`` takes three ports in a row: results at 5650, snapshots at 5651, images at 5652. A feed at
``ipc:///path`` takes ``/path``, ``/path.snapshot`` and ``/path.images``.
"""

from __future__ import annotations

from typing import NamedTuple

from ..access import TCP, is_loopback
from ..errors import ConfigError

DEFAULT = "tcp://127.0.0.1:5650"


class Address(NamedTuple):
    """Where a feed is.

    Attributes
    ----------
    endpoints : of the results, the snapshots and the images.
    local : nobody on another machine reaches them.
    chosen : they are fixed; otherwise three free ports are to be found.
    """

    endpoints: tuple[str, str, str]
    local: bool
    chosen: bool


def resolve(endpoint: str) -> Address:
    """Find the three endpoints of the feed at ``endpoint``.

    Parameters
    ----------
    endpoint : str
        ``tcp://host:port`` or ``ipc://path``. Port 0 stands for three free ones, which the publisher chooses.

    Raises
    ------
    ConfigError
        Where it is neither.
    """
    if endpoint.startswith("ipc://") and len(endpoint) > len("ipc://"):
        return Address((endpoint, f"{endpoint}.snapshot", f"{endpoint}.images"), local=True, chosen=True)
    match = TCP.fullmatch(endpoint)
    if match is None or int(match["port"]) > 65_533:
        raise ConfigError(
            "feed endpoint", got=repr(endpoint), allowed="tcp://host:port, port up to 65533, or ipc://path"
        )
    port, base = int(match["port"]), match["base"]
    chosen = port > 0
    endpoints = (endpoint, f"{base}{port + chosen}", f"{base}{port + 2 * chosen}")
    return Address(endpoints, is_loopback(match["host"]), chosen)
