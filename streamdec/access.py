"""Who can reach a socket, and who is let in: addresses, key files, and the doorman of an encrypted socket (CURVE).

A folder of keys, made by `streamdec keys`, holds ``feed.secret`` and ``feed.key`` of the side that listens, and
``clients/NAME.key`` of each who may come in. For each client there is a folder ``NAME`` in it, to hand over:
``feed.key``, ``client.key``, and ``client.secret``, which nobody else should see. A key is one line of Z85 text
(ZeroMQ RFC 32). The list is read when the socket is opened; to shut a client out, delete its key and start again.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

import zmq
from zmq.utils import z85

from .errors import ConfigError

TCP = re.compile(r"(?P<base>tcp://(?P<host>\[[\w:.%]+\]|[^\s:/]+):)(?P<port>\d{1,5})")
"""``tcp://host:port``."""

_Z85 = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_ZAP = "inproc://zeromq.zap.01"


def is_loopback(host: str) -> bool:
    """Tell whether nobody on another machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_key(path: Path) -> bytes:
    """Read the key in ``path``: one line of Z85 text, 40 characters.

    Raises
    ------
    ConfigError
        Where there is no such file, or no key in it.
    """
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        do = "make keys with `streamdec keys FOLDER CLIENT ...`"
        raise ConfigError(f"key file {path}", got=error.strerror, do=do) from error
    if not _Z85.fullmatch(key):
        raise ConfigError(f"key file {path}", got="something else", allowed="one line of 40 Z85 characters")
    return key


def make_keys(folder: str | Path, clients: Sequence[str] = ()) -> tuple[Path, ...]:
    """Make the keys of a side that listens, or add clients to them. What exists is kept.

    Parameters
    ----------
    folder : path
        Made where it is missing; its mode is set to 0700.
    clients : sequence of str
        Names of new clients: letters, digits, ``-`` and ``_``.

    Returns
    -------
    tuple of Path
        The folders to hand over, one per client.

    Raises
    ------
    ConfigError
        Where a name is not allowed, or taken.
    """
    folder = Path(folder)
    listed = folder / "clients"
    for name in clients:
        if not name.replace("-", "").replace("_", "").isalnum() or name == "clients":
            raise ConfigError("client name", got=repr(name), allowed="letters, digits, - and _; not 'clients'")
        if (folder / name).exists() or (listed / f"{name}.key").exists():
            raise ConfigError(f"client {name} has keys in {folder} already", do="choose another name, or delete them")
    listed.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if not (folder / "feed.secret").exists():
        public, secret = zmq.curve_keypair()
        _write_key(folder / "feed.secret", secret)
        _write_key(folder / "feed.key", public)
    for name in clients:
        public, secret = zmq.curve_keypair()
        (folder / name).mkdir(mode=0o700)
        _write_key(folder / name / "client.secret", secret)
        _write_key(folder / name / "client.key", public)  # some languages cannot tell it from the secret one
        _write_key(folder / name / "feed.key", read_key(folder / "feed.key"))
        _write_key(listed / f"{name}.key", public)
    return tuple(folder / name for name in clients)


def _write_key(path: Path, key: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key + b"\n")


class Doorman:
    """Lets those on the list in, and nobody else. Belongs to the thread of the sockets of its context.

    It must be there before they are bound: without a handler libzmq lets in whoever knows the public key.

    Parameters
    ----------
    context : zmq.Context
        Of the sockets.
    folder : Path
        Keys of the side that listens.

    Attributes
    ----------
    refused : int
        How often somebody was turned away.

    Raises
    ------
    ConfigError
        Where the keys are not as :func:`make_keys` made them, or nobody is on the list.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> None:
        self.refused = 0
        self._secret = read_key(folder / "feed.secret")
        self._clients = frozenset(z85.decode(read_key(path)) for path in folder.glob("clients/*.key"))
        if not self._clients:
            raise ConfigError(f"nobody may come in: no key in {folder / 'clients'}", do="`streamdec keys` adds one")
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.bind(_ZAP)

    def guard(self, end: zmq.Socket[bytes]) -> None:
        """Encrypt what ``end``, not yet bound, will hear and say."""
        end.curve_server = 1
        end.curve_secretkey = self._secret
        end.zap_domain = b"streamdec"

    def admit(self) -> None:
        """Answer all open questions of libzmq whether a client may come in (ZAP, ZeroMQ RFC 27)."""
        while int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            version, request, _domain, _address, _identity, mechanism, *credentials = self.socket.recv_multipart()
            allowed = mechanism == b"CURVE" and credentials[0] in self._clients
            self.refused += not allowed
            verdict = (b"200", b"OK") if allowed else (b"400", b"key not on the list")
            self.socket.send_multipart([version, request, *verdict, b"", b""])


def authenticate(end: zmq.Socket[bytes], folder: Path) -> None:
    """Give ``end``, not yet connected, the keys of a client: ``feed.key`` and ``client.secret`` in ``folder``.

    Raises
    ------
    ConfigError
        Where they are not as :func:`make_keys` made them.
    """
    secret = read_key(folder / "client.secret")
    end.curve_serverkey = read_key(folder / "feed.key")
    end.curve_secretkey = secret
    end.curve_publickey = zmq.curve_public(secret)
