"""What a generator makes of the test part, tier by tier and without a deadline: results to judge.

The live side decides under its deadlines which tier answers; here every tier answers everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streamdec.config import Config
from streamdec.decode.bundle import Bundle
from streamdec.decode.evidence import Evidence
from streamdec.decode.gallery import top
from streamdec.decode.generate.client import Event as Said
from streamdec.decode.generate.generator import OpenGenerator
from streamdec.decode.generate.job import KINDS, LADDER, Drop, Kind, Request, Result
from streamdec.decode.generate.link import Notice
from streamdec.decode.generate.tiers.open import open_first, open_tiers
from streamdec.demo import DEMO_SESSION, FULL_DISTINCTNESS, FULL_IDIOSYNCRASY
from streamdec.errors import ConfigError, DataError
from streamdec.generation import BUDGETS, Generation
from streamdec.intake import IntakeSettings
from streamdec.serve import engines, session
from streamdec.session import MemoryOutlet
from streamdec.simulate.amplifier import CATCH, streams
from streamdec.simulate.schedule import TARGET, rsvp
from streamdec.simulate.subject import Subject
from streamdec.simulate.world import World
from streamdec.types import Candidate, Chunk, Event, Marker

from ..data.store import Prepared
from ..progress import Report, silent
from .results import Made, write

BLANK = "{} without EEG"
"""A model on the mean embedding of all stimuli: what a language model says by the label alone, what follows from it."""

_CHUNK = 100  # samples of simulated EEG at a time; any size gives the same epochs
_TOP = 5


def of_store(bundle: Bundle, prepared: Prepared) -> list[Request]:
    """Ask about every test item of a store: the mean of its repetitions, encoded as the live loop encodes it.

    Raises
    ------
    DataError
        The bundle's encoder does not take the store's epochs.
    """
    head = bundle.manifest.heads[-1]
    part = prepared.part("test")
    if tuple(prepared.meta.shape) != head.shape:
        raise DataError(f"epochs of {prepared.path}", got=prepared.meta.shape, allowed=f"{head.shape}, of the bundle")
    items = prepared.items("test")
    epochs_of = part.of_item()
    shown = [i for i, rows in enumerate(epochs_of) if len(rows)]
    means = part.means([epochs_of[i] for i in shown])
    encoder = engines(bundle, Config())[head.horizon]
    out: list[Request] = []
    for i, mean in zip(shown, means, strict=True):
        # One epoch that is a mean: the calibration below is that of so many repetitions.
        evidence = Evidence("none", bundle.manifest.heads)
        query = msgspec.structs.replace(
            evidence.query(items[i].id, head.horizon, mean, encoder), repetitions=len(epochs_of[i])
        )
        scores = bundle.gallery.scores(query.embedding)
        chances = evidence.probabilities(query, scores)
        candidates = tuple(
            Candidate(bundle.gallery.ids[g], bundle.gallery.labels[g], float(scores[g]), float(chances[g]))
            for g in top(scores, _TOP)
        )
        # Tiers do not look at the kind, nor, without a deadline, at the time.
        out.append(
            Request(0, "caption", items[i].id, query.repetitions, 0.0, math.inf, candidates, query.raw.copy(), mean)
        )
    return out


def demo_subject(bundle: Bundle, n: int, repetitions: int, report: Report = silent) -> list[Request]:
    """Show ``n`` of the 200 test images, from all over them, to the full demo's subject: see :func:`simulated`.

    Raises
    ------
    ConfigError
        There are not so many, or there is no repetition.
    """
    subject = Subject(World(0), 0, distinctness=FULL_DISTINCTNESS, idiosyncrasy=FULL_IDIOSYNCRASY)
    n_images = subject.world.n_images("test")
    if not 1 <= n <= n_images:
        raise ConfigError("simulated stimuli", got=n, allowed=f"1..{n_images}")
    if repetitions < 1:
        raise ConfigError("repetitions", got=repetitions, allowed="1 or more")
    images = np.linspace(0, n_images - 1, n).round().astype(int).tolist()
    return simulated(bundle, subject, images, repetitions, DEMO_SESSION, report)


def simulated(
    bundle: Bundle,
    subject: Subject,
    images: Sequence[int],
    repetitions: int,
    seed: int = 0,
    report: Report = silent,
) -> list[Request]:
    """Show test images to a simulated subject and ask as a live session asks, once all repetitions are in.

    Parameters
    ----------
    bundle : Bundle
    subject : Subject
    images : sequence of int
        Of the world's test part.
    repetitions : int
        Presentations of each.
    seed : int
        Of the session: its noise and its order.
    report : callable
        Told how many presentations are decided.

    Raises
    ------
    DataError
        An image was never decided.
    """
    kept = _Kept()
    eeg, _ = streams(subject)
    now = 0.0

    def clock() -> float:
        return now

    intake = IntakeSettings()
    intake = msgspec.structs.replace(intake, markers=msgspec.structs.replace(intake.markers, ignore=CATCH))
    config = msgspec.structs.replace(Config(), intake=intake)
    loop = session(
        bundle, eeg, MemoryOutlet(), config, engines(bundle, config), clock, None, Generation(kept, BUDGETS, clock)
    )
    n_all = len(images) * repetitions
    for event in _events(subject, images, repetitions, seed):
        now = event.arrival
        loop.step(event)
        report(f"simulated session: {kept.n_asked} of {n_all} presentations", kept.n_asked, n_all)
    loop.close("end")
    ids = subject.world.ids("test")
    for image in images:
        if ids[image] not in kept.newest:
            raise DataError(f"simulated session: {ids[image]!r}", got="no decision", do="show it more often")
    return [kept.newest[ids[image]] for image in images]


def make(
    requests: Sequence[Request],
    bundle: Bundle,
    generator: OpenGenerator,
    out: Path,
    *,
    steps: Sequence[int] = (),
    device: str = "cpu",
    threads: int = 1,
    report: Report = silent,
) -> list[Made]:
    """Let every tier answer every request, and write the results folder.

    Parameters
    ----------
    requests : sequence of Request
        One per stimulus.
    bundle : Bundle
    generator : OpenGenerator
    out : Path
        New folder.
    steps : sequence of int
        Of diffusion, a maker each ("diffusion 2"); the model's most steps where none are given.
    device : str
        As torch names it.
    threads : int
        Within one operation on the CPU.
    report : callable
        Told how many results there are.

    Raises
    ------
    ConfigError
        The folder holds something, or the model does not take so many steps.
    BundleError, EngineError
        A tier cannot be opened, or fails.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} holds something", do="name a new folder")
    try:
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        made: list[Made] = []
        for by, kind, answer in _makers(requests, bundle, generator, steps, device, threads):
            for n, request in enumerate(requests):
                report(f"{by}: {n} of {len(requests)}", n, len(requests))
                made.append(_kept(by, kind, request, answer(request), out, n))
        write(out, made)
    except OSError as error:
        raise DataError(f"results {out} cannot be written", got=error.strerror) from error
    return made


def _makers(
    requests: Sequence[Request],
    bundle: Bundle,
    generator: OpenGenerator,
    steps: Sequence[int],
    device: str,
    threads: int,
) -> Iterator[tuple[str, Kind, Callable[[Request], Result]]]:
    """One after the other: models are large."""
    for kind in KINDS:
        first = open_first(kind, bundle, generator)
        if first is not None:
            yield LADDER[kind][0], kind, first.run
        for tier in open_tiers(generator, kind, device, threads):
            fewest, most = tier.units
            wanted = list(steps) if steps and tier.name == "diffusion" else [most]
            wrong = [n for n in wanted if not fewest <= n <= most]
            if wrong:
                raise ConfigError("diffusion steps", got=wrong[0], allowed=f"{fewest}..{most}, as the generator says")

            def answer(request: Request, n: int, tier: Any = tier) -> Result:
                result: Result = tier.run(request, n, math.inf, lambda: 0.0, lambda so_far, done: True)
                return result

            for n in wanted:
                name = f"{tier.name} {n}" if tier.name == "diffusion" else tier.name
                yield name, kind, lambda request, n=n: answer(request, n)  # type: ignore[misc]
            if tier.name != "latent":
                mean = np.mean([request.embedding for request in requests], axis=0, dtype=np.float32)
                yield (
                    BLANK.format(tier.name),
                    kind,
                    lambda request, n=most, mean=mean: answer(  # type: ignore[misc]
                        msgspec.structs.replace(request, embedding=mean), n
                    ),
                )


def _kept(by: str, kind: Kind, request: Request, result: Result, out: Path, n: int) -> Made:
    label = request.candidates[0].label
    if kind == "caption":
        return Made(by, request.key, label, result.text)
    file = out / "pictures" / by.replace(" ", "-") / f"{n:04d}.{result.media.partition('/')[2] or 'png'}"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(result.image)
    return Made(by, request.key, label, picture=file)


class _Kept:
    """A maker of captions that makes none, but keeps the newest question about each stimulus."""

    kinds: tuple[Kind, ...] = ("caption",)

    def __init__(self) -> None:
        self.workers: dict[str, Notice] = {}
        self.newest: dict[str, Request] = {}
        self.n_asked = 0
        self._ended = 0

    def ask(self, request: Request) -> None:
        """Keep a question, its arrays copied."""
        assert request.epoch is not None
        self.n_asked += 1
        self.newest[request.key] = msgspec.structs.replace(
            request, deadline=math.inf, embedding=request.embedding.copy(), epoch=request.epoch.copy()
        )

    def poll(self, most: int) -> list[Said]:
        """End what was asked."""
        ended = range(self._ended + 1, min(self._ended + most, self.n_asked) + 1)
        self._ended += len(ended)
        return [Drop(id_, "kept") for id_ in ended]

    def finish(self) -> list[Said]:
        """End all of it."""
        return self.poll(self.n_asked)


def _events(subject: Subject, images: Sequence[int], repetitions: int, seed: int) -> Iterator[Event]:
    """A session of a simulated subject, as an inlet hands it out."""
    schedule = rsvp("test", list(images), repetitions=repetitions, seed=(seed, 0), sfreq=subject.sfreq)
    ids = subject.world.ids("test")
    sent = shown = 0
    for data in subject.record(schedule, subject.noise(seed), chunk=_CHUNK):
        stamps = (sent + np.arange(data.shape[1])) / subject.sfreq
        sent += data.shape[1]
        arrival = sent / subject.sfreq
        yield Chunk(data, stamps, arrival)
        while shown < len(schedule.samples) and schedule.samples[shown] < sent:
            code = schedule.codes[shown]
            stamp = float(schedule.samples[shown] / subject.sfreq)
            yield Marker(CATCH if code == TARGET else ids[code - 1], stamp, arrival)
            shown += 1
