"""A real browser, a dashboard in a process of its own, and a feed to show."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from streamdec.feed import schema
from streamdec.feed.publisher import FeedSettings, Publisher

AXE = "axe-core@4.14.1"


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium, driven by Playwright; skips where one of them is not there."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        path = found or (own if Path(own).exists() else None)
        if path is None:
            pytest.skip("no Chromium: apt install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def axe(folder: Path) -> str:
    """The source of axe-core, from npm; skips where that is not there."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm, which axe-core comes from")
    command = [npm, "install", "--prefix", str(folder), "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", AXE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot fetch {AXE}: {done.stderr.strip().splitlines()[-1:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


class Dashboard:
    """`streamdec dashboard` as users start it."""

    def __init__(self, endpoint: str, *more: object, port: int = 0) -> None:
        self.endpoint = endpoint
        command = [sys.executable, "-m", "streamdec", "dashboard", "--endpoint", endpoint, "--port", str(port)]
        self.process = subprocess.Popen([*command, *map(str, more)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("dashboard at http"), line
        self.url = line.removeprefix("dashboard at ").strip()
        self.port = int(self.url.rstrip("/").rpartition(":")[2])

    def close(self) -> int:
        """End it as a user would; give its exit code."""
        self.process.terminate()
        code = self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.close()


class Feed:
    """A publisher in a thread of its own, which says what it is told to."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[tuple[schema.AnyMessage, Sequence[Any]] | None] = queue.SimpleQueue()
        ready: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(ready,))
        self._thread.start()
        self.endpoint = ready.get(timeout=10)

    def say(self, message: schema.AnyMessage, *payloads: Any) -> None:
        """Publish a message."""
        self._said.put((message, payloads))

    def _run(self, ready: queue.SimpleQueue[str]) -> None:
        with Publisher(FeedSettings(endpoint="tcp://127.0.0.1:0"), f"s{os.getpid()}") as publisher:
            ready.put(publisher.endpoint)
            while True:
                publisher.serve()
                with suppress(queue.Empty):
                    said = self._said.get(timeout=0.01)
                    if said is None:
                        return
                    publisher.publish(*said)

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._said.put(None)
        self._thread.join(10)
