"""Which stream is meant."""

from __future__ import annotations

import msgspec

from ..errors import ConfigError


class StreamQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which stream: all that is given must hold. ``predicate`` is an XPath 1.0 predicate on its header."""

    name: str = ""
    type: str = ""
    source_id: str = ""
    predicate: str = ""

    def describe(self) -> str:
        """Say it in words, for messages."""
        fields = ((key, getattr(self, key)) for key in self.__struct_fields__)
        return ", ".join(f"{key} {value!r}" for key, value in fields if value)

    def xpath(self) -> str:
        """Write it as one XPath predicate.

        Raises
        ------
        ConfigError
            Nothing is asked for, or a text holds both kinds of quotes.
        """
        parts = [f"{key}={quoted(value)}" for key in ("name", "type", "source_id") if (value := getattr(self, key))]
        if self.predicate:
            parts.append(f"({self.predicate})")
        if not parts:
            raise ConfigError("stream query is empty", allowed="name, type, source_id or predicate")
        return " and ".join(parts)


def quoted(text: str) -> str:
    """Quote a text for XPath 1.0, which knows no escapes. Raises ConfigError where it holds both kinds of quotes."""
    for quote in "'\"":
        if quote not in text:
            return f"{quote}{text}{quote}"
    raise ConfigError("stream query", got=text, allowed="a text without one of the two kinds of quotes")
