"""From run folders to a report a person reads: gather, look inside, draw, lay out; see :mod:`.write`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from streamdec.errors import ConfigError

if TYPE_CHECKING:
    from .gather import Gathered


def writer() -> Callable[..., Gathered]:
    """Give :func:`.write.report`.

    Raises
    ------
    ConfigError
        What it draws with is not installed.
    """
    try:
        from .write import report
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed", do="pip install 'streamdec[report]'") from error
    return report
