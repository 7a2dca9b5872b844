"""The methods by name. Reading this imports torch only when a method that needs it is asked for."""

from __future__ import annotations

from importlib import import_module

from streamdec.errors import ConfigError

from .base import Method

_METHODS = {"nice": ("nice", "NICE"), "ridge": ("ridge", "RIDGE")}
NAMES = tuple(sorted(_METHODS))


def method(name: str) -> Method:
    """Find a method.

    Raises
    ------
    ConfigError
        There is none of this name.
    """
    if name not in _METHODS:
        raise ConfigError("method", got=name, allowed=", ".join(NAMES))
    module, attribute = _METHODS[name]
    found: Method = getattr(import_module(f"{__package__}.{module}"), attribute)
    return found
