"""Leave-one-subject-out on real EEG: first against second, non-matching picture, of 20 people (UCI EEG database).

    python tools/uci_objects.py ../shared/data/eeg/uci_objects OUT [--methods ridge nice mused] [--workers 2]

Each of the 20 subjects is left out once; the others' epochs are fitted, and each of the left-out subject's epochs is
decided alone through a gallery of the two classes. Nothing of the left-out subject is used before: no mean, deviation
or whitener of theirs, no baseline from before the onset, which the files do not have.

Window, rate and settings are chosen without the left-out subject: the subjects are dealt into two halves, each
candidate is cross-validated inside one half (five times two subjects left out), and the best is used for the subjects
of the other half, fitted on all 19 others. Everything is kept in OUT; a killed call goes on there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from offline.checkpoint import RunFolder
from offline.data.epoch_files import EpochFiles, Stored
from offline.data.prepare import Recipe, prepare
from offline.data.store import Int64, Item, PartName, Prepared
from offline.evaluate import Evaluation
from offline.experiment import evaluate_run, fit
from offline.methods.registry import method
from offline.targets.registry import encoder
from offline.targets.store import Targets, compute
from streamdec.config import convert
from streamdec.errors import DataError
from streamdec.signal.spec import Resample, Scale
from streamdec.types import Float32

CLASSES = ("S1 obj", "S2 nomatch")
NO_EEG = ("X", "Y", "nd")  # the eyes, and a channel that was not connected
_UNIT = 0.1  # microvolts to about 1, which networks expect
N_FOLDS = 5


class Candidate(NamedTuple):
    """A way to prepare and fit: rate in Hz, end of the window in s, and settings other than the defaults."""

    sfreq: float
    tmax: float
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """As the folder of the prepared stores is called."""
        return f"{self.sfreq:g}Hz-{round(1000 * self.tmax)}ms"


def _network(**settings: Any) -> dict[str, Any]:
    """Settings and how to train on 380 epochs: the published passes are for forty times as many.

    One epoch per subject is held out, too few to choose a pass by: the last one is kept.
    """
    schedule = {"n_epochs_train": 40, "batch_size": 64, "learning_rate": 1e-3, "betas": [0.9, 0.999], "cosine": True}
    return {"schedule": schedule | {"keep": "last"} | settings.pop("schedule", {}), **settings}


def _mused(n_times: int, **settings: Any) -> dict[str, Any]:
    """A transformer of a size for 380 epochs; patches of all channels and ``n_times`` samples."""
    return _network(width=64, n_layers=2, n_hidden=128, dropout=0.5, patch=[61, n_times], **settings)


CANDIDATES: dict[str, tuple[Candidate, ...]] = {
    "ridge": tuple(Candidate(sfreq, tmax, {}) for sfreq in (20.0, 32.0) for tmax in (0.5, 0.7, 1.0)),
    # TSConv needs 75 samples
    "nice": (
        Candidate(128.0, 0.7, _network()),
        Candidate(128.0, 1.0, _network()),
    ),
    "mused": (
        Candidate(20.0, 0.5, _mused(10)),
        Candidate(20.0, 0.5, _mused(10, orthogonality=0.0)),
        Candidate(20.0, 0.5, _mused(5, orthogonality=0.0)),
        Candidate(20.0, 1.0, _mused(20, orthogonality=0.0)),
    ),
}


class Recordings:
    """The file, subject by subject."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.npz"))
        if len(files) != 1:
            raise DataError(f"recordings in {folder}", got=f"{len(files)} files .npz", allowed="one")
        with np.load(files[0], allow_pickle=False) as file:
            self._data, condition, self._of = file["X"], file["cond"], file["subj"]
            self._ch_names, self._sfreq = tuple(str(name) for name in file["ch"]), float(file["sfreq"])
        self._path = files[0]
        self._class = np.array([CLASSES.index(name) if name in CLASSES else -1 for name in condition], np.int64)
        self.subjects = tuple(str(name) for name in np.unique(self._of))

    def source(self, subject: str, part: PartName, candidate: Candidate) -> Classes:
        """One subject's epochs of both classes, all in one part."""
        rows = np.flatnonzero((self._of == subject) & (self._class >= 0))

        def read(index: Int64) -> Float32:
            return np.asarray(self._data[rows[index]], np.float32)

        stored = Stored(
            self._path,
            self._path.parent,
            self._ch_names,
            np.arange(self._data.shape[2]) / self._sfreq,
            tuple(Item(name, name, name) for name in CLASSES),
            self._class[rows],
            np.zeros(len(rows), np.int64),
            read,
        )
        picks = tuple(name for name in self._ch_names if name not in NO_EEG)
        n_times = round(candidate.tmax * self._sfreq)
        recipe = Recipe(0.0, (n_times - 1) / self._sfreq, picks, steps=(Resample(candidate.sfreq), Scale(_UNIT)))
        return Classes("uci_objects", subject, {part: stored}, recipe)


class Classes(EpochFiles):
    """Epochs of classes."""

    kind: Literal["stimulus", "class"] = "class"


class Task(NamedTuple):
    """One fit: the subjects ``held`` are left out of ``among`` and decided."""

    folder: Path
    stores: Path
    method: str
    settings: dict[str, Any]
    among: tuple[str, ...]
    held: tuple[str, ...]


def run(task: Task) -> list[Evaluation]:
    """Fit and evaluate, one record per left-out subject."""
    import torch

    torch.set_num_threads(1)
    chosen = method(task.method)
    settings = convert(task.settings, chosen.settings, f"settings of {task.method}")
    stores = [Prepared(task.stores / f"{subject}-train") for subject in task.among if subject not in task.held]
    fit(chosen, settings, stores, {"image": Targets(task.stores.parent / "classes")}, task.folder)
    found = []
    for subject in task.held:
        found.append(evaluate_run(task.folder, Prepared(task.stores / f"{subject}-test")))
        RunFolder(task.folder).keep_evaluation(subject, found[-1])
    return found


def prepared(recordings: Recordings, candidate: Candidate, out: Path) -> Path:
    """Prepare each subject twice, as what is fitted and as what is tested; return the folder."""
    folder = out / "prepared" / candidate.name
    for subject in recordings.subjects:
        for part in ("train", "test"):
            store = folder / f"{subject}-{part}"
            if not store.exists():
                prepare(recordings.source(subject, part, candidate), "pooled", store)
    items = Prepared(store).meta.items["test"]
    compute(encoder("classes", items), items, Path(), folder.parent / "classes")
    return folder


def evaluated(method_name: str, recordings: Recordings, out: Path, pool: Executor) -> dict[str, Evaluation]:
    """Choose inside each half, then leave out each subject of the other."""
    candidates = CANDIDATES[method_name]
    stores = [prepared(recordings, candidate, out) for candidate in candidates]
    halves = recordings.subjects[::2], recordings.subjects[1::2]
    final = []
    for number, half in enumerate(halves):
        tasks = [
            Task(
                out / "choosing" / method_name / f"half-{number}" / f"candidate-{i}-fold-{fold}",
                store,
                method_name,
                candidate.settings,
                half,
                half[fold::N_FOLDS],
            )
            for i, (candidate, store) in enumerate(zip(candidates, stores, strict=True))
            for fold in range(N_FOLDS)
        ]
        areas = [np.mean([area(each) for each in found]) for found in pool.map(run, tasks)]
        means = np.mean(np.reshape(areas, (len(candidates), N_FOLDS)), axis=1)
        best = int(np.argmax(means))
        for candidate, mean in zip(candidates, means, strict=True):
            mark = "  <- taken for the other half" if candidate is candidates[best] else ""
            print(f"{method_name}, half {number}: {mean:.3f} {candidate.name} {candidate.settings}{mark}", flush=True)
        final += [
            Task(
                out / "runs" / method_name / subject,
                stores[best],
                method_name,
                candidates[best].settings,
                recordings.subjects,
                (subject,),
            )
            for subject in halves[1 - number]
        ]
    found = [one for (one,) in pool.map(run, final)]
    return {one.subject: one for one in found}


def area(evaluation: Evaluation) -> float:
    """AUC; of two classes both have the same."""
    return evaluation.auc[CLASSES[0]]


def table(found: Mapping[str, Mapping[str, Evaluation]], subjects: Sequence[str]) -> str:
    """Markdown: a row per left-out subject, a column per method."""
    lines = ["| left out | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    areas = {name: [area(of_method[subject]) for subject in subjects] for name, of_method in found.items()}
    for i, subject in enumerate(subjects):
        lines.append(f"| {subject} | " + " | ".join(f"{values[i]:.3f}" for values in areas.values()) + " |")
    for what, figure in (("mean", np.mean), ("SD", partial(np.std, ddof=1))):
        lines.append(f"| {what} | " + " | ".join(f"{figure(values):.3f}" for values in areas.values()) + " |")
    right = {name: np.mean([one.single.top1 for one in of_method.values()]) for name, of_method in found.items()}
    lines.append("| right of two, % | " + " | ".join(f"{100 * share:.1f}" for share in right.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="folder of the .npz file")
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="+", choices=tuple(CANDIDATES), default=tuple(CANDIDATES))
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each (default: 2)")
    args = parser.parse_args()
    start = time.perf_counter()
    recordings = Recordings(args.recordings)
    found = {}
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        for name in args.methods:
            found[name] = evaluated(name, recordings, args.out, pool)
            print(f"{name}: {time.perf_counter() - start:.0f} s since the start", flush=True)
    text = table(found, recordings.subjects)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
