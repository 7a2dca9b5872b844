"""Who may look: the names the page goes by, the pages that may ask, and the token.

Pages of other sites that the same browser shows can send requests here too. They are told apart by ``Origin``, which
a browser always sends with a WebSocket; a name of theirs that they point at this machine (DNS rebinding), by ``Host``.
Numeric addresses cannot be pointed elsewhere.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ..access import is_loopback
from ..errors import ConfigError

_SHORTEST = 16  # characters of a token


class Gate:
    """Decides on one request at a time.

    Parameters
    ----------
    host : str
        What the server listens at.
    token : str
        What a viewer must know, "" for nothing.

    Raises
    ------
    ConfigError
        Others can reach ``host``, and there is no token.
    """

    def __init__(self, host: str, token: str = "") -> None:
        if not token and not is_loopback(host):
            raise ConfigError(
                "the dashboard can be reached from other machines, and there is no token",
                got=repr(host),
                allowed="a loopback address, or any with --token-file",
                do="add --token-file FILE; it is made where it is missing",
            )
        self._token = token.encode()
        self._names = {host.strip("[]").lower(), "localhost", socket.gethostname().lower(), socket.getfqdn().lower()}

    @property
    def locked(self) -> bool:
        """A token is needed."""
        return bool(self._token)

    def knows(self, host: str) -> bool:
        """Tell whether a ``Host`` header names this server."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def same_origin(self, headers: Mapping[str, str]) -> bool:
        """Tell whether the request comes from our own page, or from no page at all."""
        origin = headers.get("Origin")
        if origin is None:
            return True
        try:
            asked = urlsplit(origin)
        except ValueError:
            return False
        return asked.scheme in ("http", "https") and asked.netloc.lower() == headers.get("Host", "").lower()

    def opens(self, token: str) -> bool:
        """Compare a token, in a time that says nothing of how much of it is right."""
        return hmac.compare_digest(token.encode("utf-8", "replace"), self._token)

    def bearer(self, headers: Mapping[str, str]) -> bool:
        """Tell whether the request carries the token, or needs none: ``Authorization: Bearer TOKEN``."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        return not self.locked or (scheme.lower() == "bearer" and self.opens(token.strip()))


def read_token(path: Path) -> str:
    """Read the token in ``path``: one line. Where there is no file, make one with mode 0600.

    Raises
    ------
    ConfigError
        It cannot be read or made, or is too short.
    """
    try:
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(24) + "\n")
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token file {path}", got=getattr(error, "strerror", "no text")) from error
    if len(token) < _SHORTEST or "\n" in token:
        raise ConfigError(
            f"token file {path}", got=f"{len(token)} characters", allowed=f"one line of {_SHORTEST} or more"
        )
    return token
