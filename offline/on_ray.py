"""Cells of a sweep on Ray (https://docs.ray.io, the extra ``ray``): a local instance, or a cluster that is there.

Every machine must find the stores, the target features and the sweep's folder under the same paths, and have streamdec
installed. A task returns an error in one line and never raises, so that Ray itself retries nothing; what Ray raises is
a worker that died, such as one killed for its memory, and counts as a failed attempt too.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from streamdec.errors import ConfigError

from .progress import Report
from .sweep import Cell, Executor, Resources, Todo, attempt_at

_REACH = 10.0  # seconds
_STORE = 100 * 2**20  # bytes of shared memory: cells and lines of text are all that is passed around


def on_ray(address: str, resources: Resources) -> Executor:
    """Make the executor that hands cells to Ray, as many at once as their resources allow.

    Parameters
    ----------
    address : str
        Of a cluster, as ``ray.init`` takes it; ``auto`` starts a local instance, which ends with this process.
    resources : Resources
        Of each cell.

    Raises
    ------
    ConfigError
        Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("Ray is not installed", do='pip install "streamdec[ray]"') from error

    def execute(todo: Todo, out: Path, report: Report) -> Iterator[tuple[Cell, int, str]]:
        if not todo:
            return
        with _session(ray, address):
            _check(ray, resources)
            task = ray.remote(attempt_at).options(
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                memory=int(resources.memory * 2**30) or None,
                max_retries=0,
            )
            under_way: dict[Any, tuple[Cell, int]] = {}
            while todo or under_way:
                while todo:
                    cell, attempt = todo.popleft()
                    under_way[task.remote(cell, out, resources.device)] = cell, attempt
                (finished, *_), _ = ray.wait(list(under_way))
                cell, attempt = under_way.pop(finished)
                try:
                    error = ray.get(finished)
                except ray.exceptions.RayError as lost:
                    error = f"{type(lost).__name__}: {str(lost).strip().partition(chr(10))[0]}"
                yield cell, attempt, error

    return execute


@contextmanager
def _session(ray: Any, address: str) -> Iterator[None]:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == "auto":
            ray.init(address="local", include_dashboard=False, object_store_memory=_STORE, **quiet)
        else:
            _reach(address)
            ray.init(address=address, **quiet)
    except (ValueError, OSError, ray.exceptions.RpcError) as error:
        raise ConfigError("Ray", got=error, allowed="auto, or HOST:PORT of a cluster that runs") from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Fail at once where nothing listens; Ray 2.60 tries for three minutes."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:
        raise ValueError(address)
    socket.create_connection((parts.hostname, parts.port), _REACH).close()


def _check(ray: Any, resources: Resources) -> None:
    """Refuse what no machine of those there could ever run: Ray would wait for ever."""
    asked = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory * 2**30}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(amount <= node.get(what, 0) for what, amount in asked.items()) for node in nodes):
        largest = {what: max((node.get(what, 0) for node in nodes), default=0) for what in asked}
        largest["memory"] = round(largest["memory"] / 2**30, 1)
        raise ConfigError("resources of a cell", got=resources, allowed=f"what one machine has: {largest}")
