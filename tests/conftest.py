"""Shared fixtures: real recordings, liblsl kept to this machine, no model hub."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

# liblsl reads its configuration once, at its first call in a process, and child processes inherit this.
_LSL_CONFIG = """[log]
level = -3
[ports]
IPv6 = disable
BasePort = {port}
PortRange = 64
[multicast]
ResolveScope = machine
Interfaces = {{127.0.0.1}}
ListenAddress = 127.0.0.1
[lab]
SessionID = {session}
KnownPeers = {{127.0.0.1}}
[tuning]
MulticastMinRTT = 0.05
MulticastMaxRTT = 1.0
UnicastMinRTT = 0.05
UnicastMaxRTT = 1.0
"""
_lsl_config = Path(tempfile.mkdtemp(prefix="streamdec-tests-")) / "lsl_api.cfg"
_session = uuid.uuid4()
_lsl_config.write_text(
    _LSL_CONFIG.format(session=f"streamdec-tests-{_session.hex}", port=30000 - 64 * (_session.int % 32)),
    encoding="utf-8",
)
os.environ["LSLAPICFG"] = str(_lsl_config)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real recordings; skips where it is absent."""
    root = Path(os.environ.get("STREAMDEC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real recordings at {root}: set STREAMDEC_TEST_DATA")
    return root


@pytest.fixture
def stream_name() -> str:
    """A stream name no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"
