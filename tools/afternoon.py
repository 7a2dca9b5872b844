"""A lab's first afternoon, from a new cap to a live decode, on simulated people with real processes and real streams.

    python tools/afternoon.py FOLDER [--short]

Some people sit in front of a screen and are recorded while they look at images: present, record, prepare, features,
fit, export. Then somebody comes whom no training ever saw, with an awkward cap: two channels missing, old names in
capitals, a header that says volts where microvolts come, a screen 60 ms behind its markers. A block of known images,
calibrate; then the bundle as it was and the calibrated one are served side by side while that person looks at images
that nobody saw before, and both sessions are kept and reported. Printed: every command with what it said, and how often
the right image was found before and after, with 95 % intervals (Clopper and Pearson) over the images.

Simulated: nobody was recorded. Responses differ more between images than real people's, and all people's sources prefer
the same, so that some minutes are enough to see anything; the images' known attributes stand in for a vision model.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import msgspec
from scipy.stats import binomtest

from streamdec.acquire.lsl.library import loopback
from streamdec.present.table import Row, table_of, write_table
from streamdec.simulate import things_layout
from streamdec.simulate.world import World

SFREQ = 250.0
LATENCY = 0.06
MISSING = "O1,FC4"
STREAMS = ("--eeg", "name=newcomer", "--markers", "name=streamdec-present")
# The pauses are short. The screen is none: it keeps to 60 Hz by the clock.
TIMING = ("--before", "0.3", "--after", "0.9", "--pace", "60")
PATIENT = "[inlet]\nwait = 120.0\n"  # a simulated person takes a while to come: it looks at all images first
MARKERS = '[intake.markers]\nignore = "catch"\n'
RECIPE = """simulated = true
[recipe]
tmin = -0.1
tmax = 0.6
filters = [{ kind = "band_pass", low = 0.5, high = 20.0, order = 2 }]
steps = [
  { kind = "baseline", tmin = -0.1, tmax = 0.0 },
  { kind = "resample", sfreq = 50.0 },
  { kind = "whiten" },
]
"""


class Sizes(msgspec.Struct, frozen=True):
    """How much is shown, and to whom.

    ``people`` are trained on, each seeing ``n_train`` images once. The newcomer sees ``n_block`` images in the
    calibration block and as many others afterwards, each ``repetitions`` times. ``soa`` seconds from image to image.
    ``distinctness`` as in :class:`streamdec.simulate.subject.Subject`.
    """

    people: int = 3
    n_train: int = 480
    n_block: int = 40
    repetitions: int = 6
    soa: float = 0.2
    distinctness: float = 10.0


FULL, SHORT = Sizes(), Sizes(people=1, n_train=80, n_block=10, repetitions=4, soa=0.1)


class Share(msgspec.Struct, frozen=True):
    """``hits`` of ``n`` images found, and the 95 % interval of the share."""

    hits: int
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper and Pearson's."""
        low, high = binomtest(self.hits, self.n).proportion_ci(0.95)
        return float(low), float(high)

    def line(self) -> str:
        """In per cent."""
        low, high = self.interval
        return f"{100 * self.hits / self.n:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


Found: TypeAlias = tuple[Share, Share]
"""Images found at the first place, and in the first five."""


def main() -> int:
    """Spend the afternoon; 0 when the calibrated bundle finds more images than the one it came from."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="new folder for everything")
    parser.add_argument(
        "--short", action="store_true", help="a minute or two: all of it runs, too little to find images by"
    )
    options = parser.parse_args()
    began = time.monotonic()
    lab = Lab(options.folder, SHORT if options.short else FULL)
    lab.train()
    lab.calibrate()
    before, after = lab.decode()
    chance = 100 / lab.n_gallery
    say(f"\nsimulated; {lab.n_gallery} images to choose from: chance {chance:.1f} % top-1, {5 * chance:.1f} % top-5")
    for repetition in sorted(before):
        for name, found in (("before", before), ("after", after)):
            first, five = found[repetition]
            say(f"presentation {repetition}, {name:6s}  top-1 {first.line()}  top-5 {five.line()}  n = {first.n}")
    say(f"the afternoon took {(time.monotonic() - began) / 60:.1f} min")
    last = max(before)
    return 0 if options.short or after[last][1].hits > before[last][1].hits else 1


class Lab:
    """The rooms of the afternoon: images, recordings, bundles, sessions."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        folder.mkdir(parents=True)
        self.folder, self.sizes = folder, sizes
        (folder / "lsl_api.cfg").write_text(loopback(f"afternoon-{os.getpid()}"), encoding="utf-8")
        os.environ |= {
            "LSLAPICFG": str(folder / "lsl_api.cfg"),
            "OPENBLAS_NUM_THREADS": "1",
            "SDL_VIDEODRIVER": "dummy",
        }
        world = World(0, n_train=sizes.n_train, images_per_concept=1, n_test=2 * sizes.n_block)
        things_layout.write_images(folder, world)
        self.images = folder / "image_set"
        rows = table_of(self.images)
        tests = [row for row in rows if row.marker.startswith("test")]
        self.n_gallery = len(rows)
        self.all = self._table("all", rows)
        self.training = self._table("training", [row for row in rows if row not in tests])
        self.block, self.unseen = self._table("block", tests[::2]), self._table("unseen", tests[1::2])
        self.recipe = self._config("recording", RECIPE + MARKERS)
        self.plain = self._config("serve", PATIENT + MARKERS)
        self.in_microvolts = self._config("microvolts", f'intake.unit = "microvolts"\n{PATIENT}{MARKERS}')
        self.bundle, self.calibrated = folder / "bundle.zip", folder / "calibrated.zip"

    def train(self) -> None:
        """Record the people the bundle is trained on, all at once, and train it."""
        say("\n# people with good caps look at the training images")
        people = {f"person-{number}": number for number in range(1, self.sizes.people + 1)}
        viewers = [self._viewer(name, seed, "--latency", "0") for name, seed in people.items()]
        self._show(self.training, 1, viewers, [self._recording(name) for name in people])
        stores = [self.folder / "stores" / name for name in people]
        for name, store in zip(people, stores, strict=True):
            run("offline.cli", "prepare", "recording", self._recorded(name), self.all, store, "--config", self.recipe)
        features, fitted = self.folder / "features", self.folder / "run"
        run("offline.cli", "features", stores[0], "attributes", features)
        run("offline.cli", "fit", "ridge", ",".join(map(str, stores)), features, fitted)
        run("offline.cli", "export", "--prepared", stores[0], fitted, self.bundle)

    def calibrate(self) -> None:
        """Record the newcomer's block, and make the bundle fit."""
        say("\n# somebody new, with an awkward cap, looks at a block of known images")

        def doctor() -> None:
            run("streamdec", "doctor", self.bundle, *STREAMS, "--config", self.plain, status=1)

        listeners = [self._recording("newcomer")]
        self._show(self.block, self.sizes.repetitions, [self._newcomer(0)], listeners, doctor)
        run(
            "streamdec",
            "calibrate",
            self.bundle,
            self._recorded("newcomer"),
            "--out",
            self.calibrated,
            "--config",
            self.plain,
        )

    def decode(self) -> list[dict[int, Found]]:
        """Serve both bundles while the newcomer looks at images never shown before; report, and count."""
        say("\n# the newcomer looks at other images; the bundle as it was and the calibrated one decode")
        sessions = self.folder / "sessions"
        listeners = [
            ("recording to ", ["serve", bundle, "--config", config, *STREAMS, "--record", sessions / bundle.stem])
            for bundle, config in ((self.bundle, self.in_microvolts), (self.calibrated, self.plain))
        ]
        for _, command in listeners:
            command += ["--endpoint", "tcp://127.0.0.1:0"]
        self._show(self.unseen, self.sizes.repetitions, [self._newcomer(1)], listeners)
        counts = []
        for bundle in (self.bundle, self.calibrated):
            (session,) = (sessions / bundle.stem).iterdir()
            run("streamdec", "sessions", "verify", session)
            run("streamdec", "report", session)
            counts.append(counted(session))
        return counts

    def _table(self, name: str, rows: Sequence[Row]) -> Path:
        path = self.images / f"{name}.tsv"
        write_table(path, rows, self.images)
        return path

    def _config(self, name: str, text: str) -> Path:
        path = self.folder / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return path

    def _viewer(self, name: str, seed: int, *options: object) -> list[object]:
        sizes = self.sizes
        return [
            *("--name", name, "--subject", seed, "--sfreq", SFREQ, *options),
            *("--distinctness", sizes.distinctness, "--shared", 1.0),
            *("--concepts", sizes.n_train, "--per-concept", 1, "--tests", 2 * sizes.n_block),
        ]

    def _newcomer(self, session: int) -> list[object]:
        rig = ("--latency", LATENCY, "--missing", MISSING, "--old-names", "--unit", "volts")
        sensor = ("--photodiode", "--on", self.sizes.soa / 2)
        return self._viewer("newcomer", 99, "--session", session, *rig, *sensor)

    def _recorded(self, name: str) -> Path:
        (session,) = (self.folder / "recorded" / name).iterdir()
        return session

    def _recording(self, name: str) -> tuple[str, list[object]]:
        return "recording ", [
            "record",
            self.folder / "recorded" / name,
            "--eeg",
            f"name={name}",
            *STREAMS[2:],
            "--config",
            self.plain,
        ]

    def _show(
        self,
        table: Path,
        repetitions: int,
        viewers: Sequence[Sequence[object]],
        listeners: Sequence[tuple[str, Sequence[object]]],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Present a table to some viewers; ``listeners``, with what they say once they are ready, record or decode."""
        out = self.folder / "presented" / table.stem
        with ExitStack() as stack:
            for viewer in viewers:
                stack.enter_context(started("streamdec.simulate.viewer", *viewer))
            soa = self.sizes.soa
            command = (
                "present",
                table,
                "--out",
                out,
                "--repetitions",
                repetitions,
                "--on",
                soa / 2,
                "--soa",
                soa,
                *TIMING,
            )
            screen = stack.enter_context(started("streamdec", *command))
            until(screen, "marker stream ")
            ready = [stack.enter_context(started("streamdec", *command)) for _, command in listeners]
            for (words, _), process in zip(listeners, ready, strict=True):
                until(process, words)
            meanwhile()
            finish(screen, "\n")  # Enter: all is ready, the images may come
            for process in ready:
                process.send_signal(signal.SIGINT)
                finish(process)


def counted(session: Path) -> dict[int, Found]:
    """Count how many images were found at their first, second, ... presentation, from a session's events."""
    with (session / "events.tsv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["outcome"] == "decided"]
    ranks: dict[int, list[int]] = {}
    for row in rows:
        ranks.setdefault(int(row["repetitions"]), []).append(int(row["rank"]))
    return {
        n: (Share(sum(rank == 1 for rank in each), len(each)), Share(sum(rank <= 5 for rank in each), len(each)))
        for n, each in ranks.items()
    }


def run(module: str, *arguments: object, status: int = 0) -> None:
    """Run a command to its end, and show what it said; it must end with ``status``."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    say(f"$ {shown(module, arguments)}")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    tell(done.stdout)
    if done.returncode != status:
        sys.exit(f"it ended with {done.returncode}, not {status}")


@contextmanager
def started(module: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start a program; it is ended with the context."""
    say(f"$ {shown(module, arguments)} &")
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def until(process: subprocess.Popen[str], words: str) -> None:
    """Read what a program says until it says some words."""
    assert process.stdout is not None
    for line in process.stdout:
        tell(line)
        if words in line:
            return
    sys.exit(f"it ended with {process.wait()} before it said {words!r}")


def finish(process: subprocess.Popen[str], typed: str = "") -> None:
    """Wait for a program to end well, and show the rest of what it said; ``typed`` goes to it first."""
    said, _ = process.communicate(typed)
    tell(said)
    if process.returncode:
        sys.exit(f"it ended with {process.returncode}")


def shown(module: str, arguments: Sequence[object]) -> str:
    """Give a command as one would type it."""
    name = {"offline.cli": "streamdec-train", "streamdec": "streamdec"}.get(module, f"python -m {module}")
    return " ".join([name, *map(str, arguments)])


def tell(said: str) -> None:
    """Print what a program said."""
    for line in said.splitlines():
        if " INFO| " not in line:  # of liblsl, which has no other way to be quiet about its configuration
            say(f"    {line}")


def say(line: str) -> None:
    """Print."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
