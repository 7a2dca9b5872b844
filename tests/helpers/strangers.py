"""Simulated people: a bundle trained on some, through the real trainer, and a recorded block of another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from offline import experiment, export
from offline.data.store import Item, Meta, Prepared, Writer
from offline.methods.registry import method
from offline.targets.store import Targets, compute
from streamdec.acquire.record import Recorder
from streamdec.signal.chain import Chain
from streamdec.signal.mvnn import noise_covariance, whitener
from streamdec.signal.quality import robust_sd
from streamdec.signal.spec import Baseline, Drop, Signal, Whiten
from streamdec.simulate.leadfield import CH_NAMES
from streamdec.simulate.schedule import TARGET, Schedule, rsvp
from streamdec.simulate.subject import Subject
from streamdec.simulate.world import SPLITS, World
from streamdec.types import Chunk, ClockOffset, Connection, Marker, StreamInfo

SFREQ = 250.0
SIGNAL = Signal(CH_NAMES, SFREQ, -0.2, 0.6, steps=(Baseline(-0.2, 0.0), Drop(50), Whiten()))
WORLD = World(0, n_train=80, images_per_concept=4, n_test=60)
MISSING = ("CPz", "F6")
OLD_NAMES = {"T7": "T3", "T8": "T4", "P7": "T5", "P8": "T6"}
CATCH = "catch"


def person(seed: int) -> Subject:
    """Nine tenths of what one responds to is everybody's; easier to decode than people are."""
    return Subject(WORLD, seed, sfreq=SFREQ, shared=0.9, distinctness=4.0)


class _Attributes:
    """What the images show, standardised."""

    name = "attributes of the simulated world"

    def __init__(self) -> None:
        self.provenance = {"world": WORLD.seed}
        train = WORLD.attributes("train")
        mean, sd = train.mean(axis=0), train.std(axis=0) + 1e-6
        self._features = {
            key: ((row - mean) / sd).astype(np.float32)
            for split in SPLITS
            for key, row in zip(WORLD.ids(split), WORLD.attributes(split), strict=True)
        }

    def __call__(self, items, images):
        return np.stack([self._features[item.id] for item in items])


def train(folder: Path, seeds: Sequence[int]) -> Path:
    """Ridge on several people: the bundle's path."""
    front = Chain(Signal(CH_NAMES, SFREQ, SIGNAL.tmin, SIGNAL.tmax, steps=SIGNAL.steps[:2]), {})
    first, n_times = SIGNAL.window
    epochs: dict[str, np.ndarray] = {}
    shown: dict[str, np.ndarray] = {}
    for split in SPLITS:
        raw, index = [], []
        for seed in seeds:
            subject = person(seed)
            schedule = rsvp(split, np.arange(WORLD.n_images(split)), seed=(seed, len(split)), sfreq=SFREQ)
            data = np.concatenate(list(subject.record(schedule, subject.noise(0))), axis=1)
            kept = schedule.codes != TARGET
            raw += [data[:, at + first : at + first + n_times] for at in schedule.samples[kept]]
            index += (schedule.codes[kept] - 1).tolist()
        epochs[split], shown[split] = front(np.stack(raw)), np.array(index, np.int64)
    n = len(epochs["train"])
    white = whitener(noise_covariance(epochs["train"], np.full(n, 1 / n)))
    sd = np.median([robust_sd(epoch) for epoch in epochs["train"][::8]], axis=0)
    meta = Meta(
        dataset="simulated people",
        subject="several",
        simulated=True,
        kind="stimulus",
        signal=SIGNAL,
        shape=front.shape,
        channel_sd={},
        offline_only="",
        images="",
        config={},
        items={
            split: tuple(
                Item(key, WORLD.concept(split, i).name, WORLD.concept(split, i).name)
                for i, key in enumerate(WORLD.ids(split))
            )
            for split in SPLITS
        },
    )
    with Writer(folder / "store", meta, {"whitener": white}) as writer:
        for split in SPLITS:
            whitened = np.einsum("ij,njt->nit", white, epochs[split], optimize=True).astype(np.float32)
            writer.append(split, whitened, shown[split], 0, np.arange(len(whitened), dtype=np.int64))
        writer.close(dict(zip(CH_NAMES, map(float, sd), strict=True)))
    compute(_Attributes(), [item for part in meta.items.values() for item in part], Path(), folder / "targets")
    ridge = method("ridge")
    stores, targets = [Prepared(folder / "store")], {"image": Targets(folder / "targets")}
    experiment.fit(ridge, ridge.settings(), stores, targets, folder / "run")
    export.export([folder / "run"], folder / "bundle.zip")
    return folder / "bundle.zip"


def record(
    path: Path,
    seed: int,
    *,
    images: Sequence[int],
    repetitions: int,
    session: int = 1,
    latency: float = 0.06,
    volts: bool = True,
    photodiode: bool = False,
) -> Path:
    """An awkward cap: two channels missing, old names in capitals, another order, volts said to be microvolts."""
    subject = person(seed)
    schedule = rsvp("test", images, repetitions=repetitions, seed=(seed, session), sfreq=SFREQ)
    data = np.concatenate(list(subject.record(schedule, subject.noise(session))), axis=1)
    order = np.random.default_rng(0).permutation(len(CH_NAMES))
    rows = [row for row in order if CH_NAMES[row] not in MISSING]
    names = [OLD_NAMES.get(CH_NAMES[row], CH_NAMES[row]).upper() for row in rows]
    values = data[rows] * (1e-6 if volts else 1.0)
    units = ["microvolts"] * len(rows)
    if photodiode:
        light = np.full(data.shape[1], 0.1)
        for at in schedule.samples:
            light[at : at + round(0.1 * SFREQ)] = 1.0
        values = np.concatenate([values, light[None]])
        names, units = [*names, "Photodiode"], [*units, "arbitrary"]
    eeg = StreamInfo("cap", "EEG", len(names), SFREQ, "float32", "cap", ch_names=tuple(names), units=tuple(units))
    return write(path, eeg, values.astype(np.float32), texts(schedule), latency)


def texts(schedule: Schedule) -> list[tuple[float, str]]:
    """When each image's light comes on, seconds, and what its marker says."""
    ids = WORLD.ids("test")
    return [
        (at / SFREQ, CATCH if code == TARGET else ids[code - 1])
        for at, code in zip(schedule.samples.tolist(), schedule.codes.tolist(), strict=True)
    ]


def write(
    path: Path, eeg: StreamInfo, values: np.ndarray, lights: list[tuple[float, str]], latency: float, start: float = 1e3
) -> Path:
    """An XDF file as the recorder writes it; markers are stamped ``latency`` s before the lights."""
    markers = StreamInfo("screen", "Markers", 1, 0.0, "string", "screen")
    with Recorder(path, eeg, markers, "block") as recorder:
        for role, info in (("eeg", eeg), ("markers", markers)):
            recorder.event(Connection(role, "connected", start - 1, "", info))
            recorder.event(ClockOffset(role, 0.0, 0.0, start - 1))
        shown, now = 0, start
        for first in range(0, values.shape[1], 25):
            part = np.ascontiguousarray(values[:, first : first + 25])
            stamps = start + (first + np.arange(part.shape[1])) / eeg.sfreq
            now = float(stamps[-1])
            while shown < len(lights) and start + lights[shown][0] - latency <= now:
                recorder.event(Marker(lights[shown][1], start + lights[shown][0] - latency, now))
                shown += 1
            recorder.event(Chunk(part, stamps, now))
        recorder.event(Connection("eeg", "ended", now))
        recorder.close(30.0)
    return path
