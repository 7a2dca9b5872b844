"""A simulated person in front of a screen: an EEG stream, in real time, that answers to what the markers say is shown.

The light of an image comes ``latency`` after its marker's stamp, as on a real screen, and the response starts there.
What the cap sends can be as awkward as caps are: channels missing, names in an older fashion, a header that states
another unit than the samples have, a light sensor beside the EEG.

Run ``python -m streamdec.simulate.viewer --help``. It plays until it is stopped; images are known by the last two parts
of their stimulus key, which are those of :meth:`.world.World.ids`. Whatever else is shown evokes the average response.
"""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import closing

import msgspec
import numpy as np

from ..acquire.lsl.library import local_clock
from ..acquire.lsl.markers import LslMarkers
from ..acquire.lsl.outlet import LslOutlet
from ..acquire.markers import MarkerReader
from ..acquire.query import StreamQuery
from ..errors import ConfigError
from ..signal.rate import Rate
from ..types import Float32, Onset, StreamInfo
from .leadfield import CH_NAMES
from .schedule import TARGET
from .subject import Electrodes, Subject
from .world import SPLITS, Split, World

PHOTODIODE = "Photodiode"
_CHUNK = 0.02  # seconds of samples pushed at a time
_AHEAD = 1.0  # seconds that light may lie ahead of the samples
_OLD_NAMES = {"T7": "T3", "T8": "T4", "P7": "T5", "P8": "T6"}
_DARK, _LIGHT, _FLICKER = 0.1, 1.0, 0.02


class Rig(msgspec.Struct, frozen=True):
    """How the cap and the screen are.

    ``latency`` from a marker's stamp to its light, s; ``missing`` channels that are not sent; ``old_names`` T3 for T7
    and its like, all in capitals; ``unit`` what the header states, while the samples stay microvolts; ``photodiode`` a
    channel more, light for ``on`` s with each image.
    """

    latency: float = 0.06
    missing: tuple[str, ...] = ()
    old_names: bool = False
    unit: str = "microvolts"
    photodiode: bool = False
    on: float = 0.1

    def __post_init__(self) -> None:
        unknown = set(self.missing) - set(CH_NAMES)
        if unknown:
            raise ConfigError("missing channels", got=", ".join(sorted(unknown)), allowed=", ".join(CH_NAMES))
        if not 0 <= self.latency <= _AHEAD / 2:
            raise ConfigError("latency", got=f"{self.latency:g} s", allowed=f"0 to {_AHEAD / 2:g} s")

    def stream(self, subject: Subject, name: str) -> StreamInfo:
        """Describe the EEG stream."""
        sent = [ch for ch in CH_NAMES if ch not in self.missing]
        names = [_OLD_NAMES.get(ch, ch).upper() for ch in sent] if self.old_names else sent
        n = len(sent)
        return StreamInfo(
            name=name,
            type="EEG",
            n_chans=n + self.photodiode,
            sfreq=subject.sfreq,
            dtype="float32",
            source_id=f"{name}-subject-{subject.seed}",
            ch_names=(*names, *[PHOTODIODE] * self.photodiode),
            ch_types=(*["EEG"] * n, *["AUX"] * self.photodiode),
            units=(*[self.unit] * n, *["arbitrary"] * self.photodiode),
        )


class Viewer:
    """A person with a cap on.

    Parameters
    ----------
    subject : Subject
    rig : Rig
    start : float
        LSL clock of the first sample.
    session : int
        Whose noise is added.
    """

    def __init__(self, subject: Subject, rig: Rig, start: float, session: int = 0) -> None:
        self._subject, self._rig, self._start = subject, rig, start
        self._rate = Rate(subject.sfreq)
        ahead = self._rate.to_samples(_AHEAD)
        self._electrodes = Electrodes(subject, subject.noise(session), ahead=ahead)
        self._rows = [row for row, ch in enumerate(CH_NAMES) if ch not in rig.missing]
        self._light = np.zeros(2 * ahead, np.bool_)
        self._flicker = np.random.default_rng([subject.seed, session])
        self._known: dict[str, tuple[Split, int]] = {
            name: (split, code) for split in SPLITS for code, name in enumerate(subject.world.ids(split), 1)
        }

    def see(self, onset: Onset) -> None:
        """Let an image come on ``latency`` after its marker; light a second ahead of the samples is passed over."""
        split, code = self._known.get("/".join(onset.key.split("/")[-2:]), (SPLITS[0], TARGET))
        first = int(np.ceil((onset.time + self._rig.latency - self._start) * self._rate.sfreq))  # first sample in light
        ahead = first - self._electrodes.position
        if ahead < len(self._light) // 2:
            self._electrodes.respond(self._subject.response(split, code), first)
            self._light[max(ahead, 0) : max(ahead + self._rate.to_samples(self._rig.on), 0)] = True

    def read(self, n: int) -> Float32:
        """Measure the next ``n`` samples: (n_chans, n) float32, as the stream's header has the channels."""
        eeg = self._electrodes.read(n)[self._rows]
        light = np.where(self._light[:n], _LIGHT, _DARK) + self._flicker.normal(0, _FLICKER, n)
        self._light = np.concatenate([self._light[n:], np.zeros(n, np.bool_)])
        return np.concatenate([eeg, light[None].astype(np.float32)]) if self._rig.photodiode else eeg


def view(
    subject: Subject,
    rig: Rig,
    markers: StreamQuery,
    *,
    name: str = "viewer",
    session: int = 0,
    stop: threading.Event | None = None,
) -> None:
    """Sit in front of the screen until ``stop`` is set.

    Parameters
    ----------
    subject : Subject
    rig : Rig
    markers : StreamQuery
        What is shown. The stream may come and go.
    name : str
        Of the EEG stream.
    session : int
        Whose noise is added.
    stop : threading.Event, optional
    """
    stop = stop or threading.Event()
    reader = MarkerReader()
    with closing(LslOutlet(rig.stream(subject, name))) as outlet, closing(LslMarkers(markers)) as shown:
        start = local_clock()
        viewer = Viewer(subject, rig, start, session)
        n = max(1, round(_CHUNK * subject.sfreq))
        position = 0
        while not stop.is_set():
            stamps = start + (position + np.arange(n)) / subject.sfreq
            _wait(float(stamps[-1]))
            for marker in shown.pull():
                onset = reader(marker)
                if isinstance(onset, Onset):
                    viewer.see(onset)
            outlet.push(viewer.read(n), stamps)
            position += n


def main(arguments: Sequence[str] | None = None) -> None:
    """Sit there until interrupted or terminated."""
    parser = argparse.ArgumentParser(
        prog="python -m streamdec.simulate.viewer",
        description="A simulated person in front of `streamdec present`: an EEG stream that answers to its markers.",
    )
    parser.add_argument("--name", default="viewer", help="name of the EEG stream [%(default)s]")
    parser.add_argument("--markers", default="streamdec-present", help="name of the marker stream [%(default)s]")
    person = parser.add_argument_group("the person")
    person.add_argument("--subject", type=int, default=0, help="seed of the subject [%(default)s]")
    person.add_argument("--session", type=int, default=0, help="another has other noise [%(default)s]")
    person.add_argument(
        "--distinctness", type=float, default=1.0, help="1 is as hard to decode as people [%(default)g]"
    )
    person.add_argument("--shared", type=float, default=0.0, help="of the responses is everybody's [%(default)g]")
    person.add_argument("--sfreq", type=float, default=1000.0, help="rate in Hz [%(default)g]")
    world = parser.add_argument_group("the world whose images are shown")
    world.add_argument("--world", type=int, default=0, help="its seed [%(default)s]")
    world.add_argument("--concepts", type=int, default=400, help="training concepts [%(default)s]")
    world.add_argument("--per-concept", type=int, default=10, help="training images of each [%(default)s]")
    world.add_argument("--tests", type=int, default=200, help="test concepts [%(default)s]")
    rig = parser.add_argument_group("cap and screen")
    rig.add_argument("--latency", type=float, default=0.06, help="from marker to light, s [%(default)g]")
    rig.add_argument("--missing", default="", metavar="A,B", help="channels that are not sent")
    rig.add_argument("--old-names", action="store_true", help="T3 for T7 and its like, all in capitals")
    rig.add_argument(
        "--unit", default="microvolts", help="what the header states; the samples are microvolts [%(default)s]"
    )
    rig.add_argument("--photodiode", action="store_true", help="a light sensor's channel beside the EEG")
    rig.add_argument("--on", type=float, default=0.1, help="how long it sees each image, s [%(default)g]")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    shown = World(options.world, n_train=options.concepts, images_per_concept=options.per_concept, n_test=options.tests)
    subject = Subject(
        shown, options.subject, sfreq=options.sfreq, distinctness=options.distinctness, shared=options.shared
    )
    for split in SPLITS:
        subject.response(split, TARGET)  # looks at all images once, which takes a while
    cap = Rig(
        latency=options.latency,
        missing=tuple(filter(None, options.missing.split(","))),
        old_names=options.old_names,
        unit=options.unit,
        photodiode=options.photodiode,
        on=options.on,
    )
    view(subject, cap, StreamQuery(name=options.markers), name=options.name, session=options.session, stop=stop)


def _wait(until: float) -> None:
    while (left := until - local_clock()) > 0:
        time.sleep(left)


if __name__ == "__main__":
    main()
