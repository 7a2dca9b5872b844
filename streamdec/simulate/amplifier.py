"""A virtual amplifier: plays a simulated subject as LSL streams, in real time.

The EEG stream has 63 labelled channels in microvolt; the marker stream says which image came on (its file, as
:meth:`World.ids` has it) or ``catch``. A sample is pushed when it has been taken, a marker when its image comes on:
never before.

Run ``python -m streamdec.simulate.amplifier --help``. It plays until it is stopped.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np

from ..acquire.lsl.library import local_clock
from ..acquire.lsl.outlet import LslOutlet
from ..signal.rate import Rate
from ..types import StreamInfo
from .forward import IDIOSYNCRASY
from .schedule import CATCH as CATCH
from .schedule import TARGET, Schedule, rsvp
from .subject import Subject
from .world import World

CHUNK = 10
"""Samples pushed at a time."""

_FULL_BLOCK = 40  # presentations, two sequences


def streams(subject: Subject, name: str = "simulated") -> tuple[StreamInfo, StreamInfo]:
    """Describe the EEG stream ``name`` and the marker stream ``name``-markers."""
    n = len(subject.ch_names)
    source = f"{name}-subject-{subject.seed}"
    eeg = StreamInfo(
        name=name,
        type="EEG",
        n_chans=n,
        sfreq=subject.sfreq,
        dtype="float32",
        source_id=source,
        ch_names=subject.ch_names,
        ch_types=("EEG",) * n,
        units=("microvolts",) * n,
    )
    markers = StreamInfo(
        name=f"{name}-markers", type="Markers", n_chans=1, sfreq=0.0, dtype="string", source_id=f"{source}-markers"
    )
    return eeg, markers


def blocks(subject: Subject, seed: int = 0, n_images: int | None = None) -> Iterator[Schedule]:
    """Show ``n_images`` of the test images (all when None) in random order, and again in another, for ever.

    A few images are repeated within a block, so that its sequences are as long as THINGS-EEG2's.
    """
    images = np.random.default_rng(seed).permutation(subject.world.n_images("test"))[:n_images]
    repetitions = max(1, _FULL_BLOCK // len(images))
    for block in itertools.count():
        yield rsvp("test", images, repetitions=repetitions, seed=(seed, block), sfreq=subject.sfreq)


def play(
    subject: Subject,
    schedules: Iterable[Schedule],
    *,
    name: str = "simulated",
    session: int = 0,
    stop: threading.Event | None = None,
) -> None:
    """Play runs one after the other, in real time, until they end or ``stop`` is set.

    Parameters
    ----------
    subject : Subject
        Who is recorded.
    schedules : iterable of Schedule
        What is shown; may be endless.
    name : str
        Of the EEG stream.
    session : int
        Whose noise is added.
    stop : threading.Event, optional
        Ends the play within a chunk.
    """
    stop = stop or threading.Event()
    eeg, markers = streams(subject, name)
    rate, noise = Rate(subject.sfreq), subject.noise(session)
    with closing(LslOutlet(eeg)) as samples_out, closing(LslOutlet(markers)) as markers_out:
        position, start = 0, local_clock()
        for schedule in schedules:
            ids = subject.world.ids(schedule.split)
            shown = 0
            onsets = position + schedule.samples
            for chunk in subject.record(schedule, noise, chunk=CHUNK):
                stamps = start + (position + np.arange(chunk.shape[1])) / subject.sfreq
                position += chunk.shape[1]
                while shown < len(onsets) and onsets[shown] < position:
                    code = schedule.codes[shown]
                    onset = start + rate.to_seconds(int(onsets[shown]))
                    _wait(onset)
                    markers_out.push([CATCH if code == TARGET else ids[code - 1]], onset)
                    shown += 1
                _wait(float(stamps[-1]))
                if stop.is_set():
                    return
                samples_out.push(chunk, stamps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Play test images until interrupted or terminated."""
    parser = argparse.ArgumentParser(
        prog="python -m streamdec.simulate.amplifier",
        description="Play a simulated subject as an LSL EEG stream and a marker stream, until stopped.",
    )
    parser.add_argument(
        "--name", default="simulated", help="name of the EEG stream; NAME-markers is the other [%(default)s]"
    )
    parser.add_argument("--subject", type=int, default=0, help="seed of the subject [%(default)s]")
    parser.add_argument("--session", type=int, default=0, help="another has other noise and order [%(default)s]")
    parser.add_argument("--world", type=int, default=0, help="seed of the image world [%(default)s]")
    parser.add_argument("--images", type=int, default=200, help="how many of the 200 test images to show [%(default)s]")
    parser.add_argument(
        "--distinctness", type=float, default=1.0, help="1 is as hard to decode as people [%(default)g]"
    )
    parser.add_argument(
        "--idiosyncrasy", type=float, default=IDIOSYNCRASY, help="of the responses, 0 to 1 [%(default)g, as people]"
    )
    parser.add_argument("--sfreq", type=float, default=1000.0, help="rate in Hz [%(default)g]")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    subject = Subject(
        World(options.world),
        options.subject,
        sfreq=options.sfreq,
        distinctness=options.distinctness,
        idiosyncrasy=options.idiosyncrasy,
    )
    schedules = blocks(subject, options.session, options.images)
    play(subject, schedules, name=options.name, session=options.session, stop=stop)


def _wait(until: float) -> None:
    while (left := until - local_clock()) > 0:
        time.sleep(left)


if __name__ == "__main__":
    main()
