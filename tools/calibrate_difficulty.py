"""How hard the simulated subjects are to decode: ridge on the THINGS-EEG2 recipe, on the continuous recordings.

    python tools/calibrate_difficulty.py                      # the shipped difficulty
    python tools/calibrate_difficulty.py --contrast 1.2 --idiosyncrasy 0.8 --subjects 0 1

Four sessions of the default world: 4000 training images x 4, 200 test images x 80. Epochs from -0.2 to 1.0 s, baseline,
250 Hz, 63 channels, whitened by the training epochs' covariance; ridge on the means of 4 repetitions, its strength
chosen per feature on held-out concepts; 200-way retrieval by cosine. All figures are simulated. Takes some minutes
and 2 GB.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np

from streamdec.signal.chain import Chain
from streamdec.signal.spec import Baseline, Drop, Resample, Signal
from streamdec.simulate import features, forward
from streamdec.simulate.leadfield import CH_NAMES
from streamdec.simulate.noise import Noise
from streamdec.simulate.schedule import TARGET, Schedule, rsvp
from streamdec.simulate.subject import Subject
from streamdec.simulate.things_layout import training_images
from streamdec.simulate.world import World
from streamdec.types import Float32, Float64, Int64

SIGNAL = Signal(CH_NAMES, 1000.0, -0.2, 1.0, steps=(Baseline(-0.2, 0.0), Resample(250.0), Drop(50)))
N_SESSIONS = 4
STRENGTHS = np.logspace(-5, 0, 11)  # of the kernel's largest eigenvalue


def epochs(subject: Subject, schedule: Schedule, noise: Noise, chain: Chain) -> Iterator[tuple[int, Float32]]:
    """Record a run; yield the image (0-based) and the epoch (63, 250) of each onset but the catch images'."""
    first, n_times = SIGNAL.window
    onsets = zip(schedule.samples + first, schedule.codes, strict=True)
    start, code = next(onsets)
    held, origin = np.empty((len(CH_NAMES), 0), np.float32), 0
    for chunk in subject.record(schedule, noise):
        held = np.concatenate([held, chunk], axis=1)
        while start + n_times <= origin + held.shape[1]:
            if code != TARGET:
                yield int(code) - 1, chain(held[:, start - origin : start - origin + n_times])
            start, code = next(onsets, (schedule.n_times, 0))
        keep = min(start - origin, held.shape[1])
        held, origin = held[:, keep:], origin + keep


def ridge(X: Float32, Y: Float64, groups: Int64) -> Float32:
    """Weights (n_inputs, n_features); strength per feature by its error on a fifth of the groups."""
    kernel = (X @ X.T).astype(np.float64)
    held_out = groups % 5 == 0
    eigenvalues, vectors = np.linalg.eigh(kernel[np.ix_(~held_out, ~held_out)])
    projected, across = vectors.T @ Y[~held_out], kernel[np.ix_(held_out, ~held_out)] @ vectors
    errors = [
        ((across @ (projected / (eigenvalues + s * eigenvalues[-1])[:, None]) - Y[held_out]) ** 2).sum(axis=0)
        for s in STRENGTHS
    ]
    strength = STRENGTHS[np.argmin(errors, axis=0)]
    eigenvalues, vectors = np.linalg.eigh(kernel)
    dual = vectors @ ((vectors.T @ Y) / (eigenvalues[:, None] + strength * eigenvalues[-1]))
    return np.asarray(X.T @ dual.astype(np.float32), np.float32)


def top(queries: Float32 | Float64, gallery: Float32 | Float64, truth: Int64, k: int) -> float:
    """Share of queries (n, D) whose own gallery row is among the k most similar, per cent."""
    q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery))
    similarity = q @ g.T
    own = similarity[np.arange(len(q)), truth]
    return float(100 * ((similarity > own[:, None]).sum(axis=1) < k).mean())


def measure(world: World, seed: int, idiosyncrasy: float) -> None:
    """Record, fit and print one subject."""
    begin = time.perf_counter()
    subject, chain = Subject(world, seed, idiosyncrasy=idiosyncrasy), Chain(SIGNAL, {})
    noises = [subject.noise(session) for session in range(N_SESSIONS)]
    X = np.zeros((world.n_images("train"), *chain.shape), np.float32)
    count = np.zeros(len(X))
    covariance = np.zeros((len(CH_NAMES), len(CH_NAMES)))
    for session, noise in enumerate(noises):
        schedule = rsvp("train", training_images(world, session), repetitions=2, seed=(seed, session, 0))
        for image, epoch in epochs(subject, schedule, noise, chain):
            X[image] += epoch
            count[image] += 1
            covariance += np.cov(epoch)
    eigenvalues, vectors = np.linalg.eigh(covariance / count.sum())
    whitener = ((vectors / np.sqrt(eigenvalues)) @ vectors.T).astype(np.float32)
    X = (whitener @ (X / count[:, None, None].astype(np.float32))).reshape(len(X), -1)
    centre = X.mean(axis=0)
    X -= centre

    targets = {"attributes": [world.attributes(split) for split in ("train", "test")]}
    images = [world.images(split) for split in ("train", "test")]
    targets |= {f.__name__: [f(x) for x in images] for f in (features.gabor, features.colour, features.pixels)}
    standard = {
        name: [(x - train.mean(axis=0)) / (train.std(axis=0) + 1e-6) for x in (train, test)]
        for name, (train, test) in targets.items()
    }
    ends = np.cumsum([train.shape[1] for train, _ in standard.values()])[:-1]
    concepts = np.arange(len(X)) // world.images_per_concept
    weights = ridge(X, np.hstack([train for train, _ in standard.values()]), concepts)

    shown: list[int] = []
    predicted: list[Float32] = []
    for session, noise in enumerate(noises):
        schedule = rsvp("test", np.arange(world.n_images("test")), repetitions=20, seed=(seed, session, 1))
        for image, epoch in epochs(subject, schedule, noise, chain):
            shown.append(image)
            predicted.append(((whitener @ epoch).ravel() - centre) @ weights)
    truth, single = np.array(shown), np.array(predicted)
    means = np.array([single[truth == image].mean(axis=0) for image in range(world.n_images("test"))])
    print(f"simulated subject {seed}, {time.perf_counter() - begin:.0f} s; top-1 / top-5 of {len(means)}, per cent")
    for name, s, m in zip(standard, np.split(single, ends, 1), np.split(means, ends, 1), strict=True):
        gallery, every = standard[name][1], np.arange(len(means))
        print(
            f"  {name:10s} single epochs {top(s, gallery, truth, 1):5.1f} / {top(s, gallery, truth, 5):5.1f}"
            f"    means of 80 {top(m, gallery, every, 1):5.1f} / {top(m, gallery, every, 5):5.1f}",
            flush=True,
        )


def main() -> None:
    """Measure the subjects that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contrast", type=float, default=forward.CONTRAST)
    parser.add_argument("--idiosyncrasy", type=float, default=forward.IDIOSYNCRASY)
    parser.add_argument("--subjects", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    forward.CONTRAST = options.contrast
    print(f"contrast {forward.CONTRAST}, idiosyncrasy {options.idiosyncrasy}")
    world = World(0)
    for seed in options.subjects:
        measure(world, seed, options.idiosyncrasy)


if __name__ == "__main__":
    main()
