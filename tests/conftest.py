"""Shared fixtures: real recordings, liblsl kept to this machine, no model hub, one thread."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

# Read as libraries are loaded, here and in child processes. What tests compute is small: two threads of each of several
# workers would wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
from hypothesis import settings

from streamdec.acquire.lsl.library import loopback

# How long an example takes is the machine's business.
settings.register_profile("streamdec", deadline=None)
settings.load_profile("streamdec")

# liblsl reads its configuration once, at its first call in a process, and child processes inherit this.
_lsl_config = Path(tempfile.mkdtemp(prefix="streamdec-tests-")) / "lsl_api.cfg"
_lsl_config.write_text(loopback(f"streamdec-tests-{uuid.uuid4().hex}"), encoding="utf-8")
os.environ["LSLAPICFG"] = str(_lsl_config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: of several workers (``pytest -n 3``) none is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real recordings; skips where it is absent."""
    root = Path(os.environ.get("STREAMDEC_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real recordings at {root}: set STREAMDEC_TEST_DATA")
    return root


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that do not depend on which tests ran before."""
    return np.random.default_rng(0)


@pytest.fixture
def stream_name() -> str:
    """A stream name no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"
