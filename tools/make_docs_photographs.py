"""Photographs of the programs' pages for the site: the dashboard, doctor's and report's, in Chromium, light and dark.

python tools/make_docs_photographs.py [NAME ...]    # default: all, on the full demo; some minutes
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import ViewportSize, sync_playwright

from streamdec import child
from streamdec.acquire.lsl.library import loopback
from streamdec.demo import (
    FULL_BUNDLE,
    FULL_DISTINCTNESS,
    FULL_GENERATOR,
    FULL_IDIOSYNCRASY,
    amplifier_process,
    serve_process,
    simulated_session,
)
from streamdec.sessions.report import report
from streamdec.simulate.amplifier import CATCH

TARGETS = Path(__file__).parents[1] / "docs" / "pages" / "pictures"
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def photograph(seconds: float = 60.0) -> None:
    """Take the dashboard's picture on the full demo."""
    with simulated_session(full=True) as feed, ExitStack() as stack, sync_playwright() as play:
        address = child.start(stack, "dashboard", feed.endpoint).split()[-1]
        browser = play.chromium.launch(executable_path=shutil.which("chromium"))
        size: ViewportSize = {"width": 1600, "height": 1000}
        pages = {each: browser.new_page(viewport=size, color_scheme=each) for each in SCHEMES}
        for shown in pages.values():
            shown.goto(address)
        pages["light"].wait_for_timeout(1e3 * seconds)
        for name, shown in pages.items():
            _keep(shown.screenshot(), f"dashboard-{name}")
        browser.close()


@contextmanager
def full_rig() -> Iterator[None]:
    """The full demo's amplifier, within a new folder that has a config to examine or serve it with."""
    with ExitStack() as stack, chdir(stack.enter_context(tempfile.TemporaryDirectory())):
        Path("lsl_api.cfg").write_text(loopback("pictures"), encoding="utf-8")
        os.environ["LSLAPICFG"] = str(Path("lsl_api.cfg").resolve())
        easier = ("--distinctness", str(FULL_DISTINCTNESS), "--idiosyncrasy", str(FULL_IDIOSYNCRASY))
        amplifier_process(stack, "amplifier", 8, *easier)
        text = f'bundle = "{FULL_BUNDLE}"\nrecord = "sessions"\ngenerate.generator = "{FULL_GENERATOR}"\n'
        Path("serve.toml").write_text(f'{text}[intake.markers]\nignore = "{CATCH}"\n', encoding="utf-8")
        yield


def photograph_doctor() -> None:
    """Let doctor examine the full demo's rig; take its page's picture."""
    doctor = [sys.executable, "-m", "streamdec", "doctor", "--config", "serve.toml", "--eeg", "amplifier"]
    doctor += ["--markers", "amplifier-markers", "--seconds", "10", "--out", "doctor.html"]
    shown = Path("doctor.html")
    with full_rig():
        while not shown.exists() or "no LSL stream" in shown.read_text(encoding="utf-8"):  # the amplifier is on its way
            subprocess.run(doctor, check=False)
        _take(shown, 1000)


def photograph_report(seconds: float = 60.0) -> None:
    """Record a session of the full demo and report it; take the picture of how the report begins."""
    with full_rig(), ExitStack() as stack:
        serve_process(stack, FULL_BUNDLE, "amplifier", "amplifier-markers", "--config", "serve.toml")
        time.sleep(seconds)
        stack.close()
        (folder,) = Path("sessions").iterdir()
        report(folder, Path("report.html"))
        _take(Path("report.html"), 1400)


def _take(shown: Path, height: int) -> None:
    """Take the pictures of a page's first ``height`` pixels."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"))
        for scheme in SCHEMES:
            tab = browser.new_page(viewport={"width": 1180, "height": height}, color_scheme=scheme)
            tab.goto(shown.resolve().as_uri())
            _keep(tab.screenshot(), f"{shown.stem}-{scheme}")
        browser.close()


def _keep(picture: bytes, name: str) -> None:
    path = TARGETS / f"{name}.webp"
    Image.open(io.BytesIO(picture)).save(path, quality=80)
    print(f"{path.relative_to(TARGETS.parents[2])}: {path.stat().st_size / 1024:.0f} KiB")


PHOTOGRAPHS: dict[str, Callable[[], None]] = {
    "dashboard": photograph,
    "doctor": photograph_doctor,
    "report": photograph_report,
}


if __name__ == "__main__":
    for chosen in sys.argv[1:] or PHOTOGRAPHS:
        PHOTOGRAPHS[chosen]()
