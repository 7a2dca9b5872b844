"""The demo's bundle: a simulated subject recorded in the THINGS-EEG2 layout, ridge fitted to it, exported.

    python tools/make_demo_bundle.py       # some minutes, and 7 GB of disk for a while

Writes streamdec/simulate/demo_bundle.zip. Everything goes through `streamdec-train`, as a user's own data would. The
subject is the one the virtual amplifier plays by default; the sessions trained on are not the one it plays. What it
reaches is printed, and is a simulated figure.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from offline.cli import main as train
from streamdec.demo import DEMO_BUNDLE, DEMO_SESSION
from streamdec.simulate.subject import Subject
from streamdec.simulate.things_layout import write
from streamdec.simulate.world import World


def run(*arguments: str | Path) -> None:
    """One `streamdec-train` command; stop where it fails."""
    words = [str(word) for word in arguments]
    print("streamdec-train", *words, flush=True)
    code = train(words)
    if code:
        sys.exit(code)


def main() -> None:
    """Simulate, prepare, fit, evaluate, export."""
    with tempfile.TemporaryDirectory(prefix="streamdec-demo-") as folder:
        root = Path(folder)
        n_sessions = 4
        assert n_sessions <= DEMO_SESSION  # the demo plays noise and orders of a session that was not trained on
        write(root / "data", [Subject(World(0), 0)], n_sessions=n_sessions, test_repetitions=4)
        run("prepare", "things_eeg2", root / "data", root / "prepared", "--subject", "sub-01")
        run("features", root / "prepared", "attributes", root / "targets")
        run("fit", "ridge", root / "prepared", root / "targets", root / "run")
        run("evaluate", root / "run")
        DEMO_BUNDLE.unlink(missing_ok=True)
        run("export", root / "run", DEMO_BUNDLE)
    print(f"{DEMO_BUNDLE}: {DEMO_BUNDLE.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
