from __future__ import annotations

from pathlib import Path

import pytest

from streamdec.access import read_key
from streamdec.errors import ConfigError
from streamdec.feed.address import DEFAULT, resolve


def test_three_ports_in_a_row() -> None:
    address = resolve(DEFAULT)
    assert address.endpoints == ("tcp://127.0.0.1:5650", "tcp://127.0.0.1:5651", "tcp://127.0.0.1:5652")
    assert address.chosen
    free = resolve("tcp://127.0.0.1:0")
    assert free.endpoints == ("tcp://127.0.0.1:0",) * 3
    assert not free.chosen
    assert resolve("ipc:///run/feed").endpoints == (
        "ipc:///run/feed",
        "ipc:///run/feed.snapshot",
        "ipc:///run/feed.images",
    )


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("localhost", True),
        ("[::1]", True),
        ("[::]", False),
        ("0.0.0.0", False),  # noqa: S104 (nothing is bound)
        ("*", False),
        ("192.168.1.7", False),
        ("eth0", False),
        ("localhost.example.org", False),
    ],
)
def test_who_can_reach_it(host: str, local: bool) -> None:
    assert resolve(f"tcp://{host}:5650").local is local


@pytest.mark.parametrize(
    "endpoint",
    ["", "5650", "tcp://", "tcp://host", "tcp://host:65534", "tcp://host:x", "tcp://host:1;127.0.0.1:2", "inproc://a"],
)
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"feed endpoint; got .*; allowed: tcp://host:port"):
        resolve(endpoint)


def test_key_file(tmp_path: Path) -> None:
    key = tmp_path / "k.key"
    key.write_bytes(b"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7\n")
    assert read_key(key) == b"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
    key.write_bytes(b"\x00" * 40)
    with pytest.raises(ConfigError, match="40 Z85 characters"):
        read_key(key)
