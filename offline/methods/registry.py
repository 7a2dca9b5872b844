"""The methods by name, each in the file of its name. torch is imported when a method that needs it is asked for."""

from __future__ import annotations

from importlib import import_module

from streamdec.errors import ConfigError

from .base import Method

NAMES = ("atm", "hvf", "mused", "neuroalign", "neuroclip", "nice", "ridge", "thought2text", "ubp")


def method(name: str) -> Method:
    """Find a method.

    Raises
    ------
    ConfigError
        There is none of this name.
    """
    if name not in NAMES:
        raise ConfigError("method", got=name, allowed=", ".join(NAMES))
    found: Method = getattr(import_module(f"{__package__}.{name}"), name.upper())
    return found
