"""Run folders -> records: what was run, which runs are the same but for subject and seed, and what differs else.

Any folder of run folders is read, nested as it may be; a run inside a run (a window that was retrained) is part of it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from streamdec.errors import DataError, StreamdecError

from ..checkpoint import FittedMeta, RunFolder, RunMeta
from ..evaluate import Evaluation
from ..methods.registry import method
from ..targets.store import Targets
from ..transductive import Transductive
from ..windows import TimeWindows

_T = TypeVar("_T")
_SUBJECTS = "training_subjects"
_CELL = re.compile(r"([^/]+)/(?:joint|(?:intra|left_out)/[^/]+)/seed-\d+$")  # how a sweep names its run folders


class Run(msgspec.Struct, frozen=True, eq=False):
    """One run folder.

    ``row`` the name a sweep's grid gives its method, "" without a sweep; ``history`` a dictionary per pass; ``targets``
    per role the name of the target encoder.
    """

    path: Path
    row: str
    meta: RunMeta
    notes: dict[str, Any]
    history: tuple[dict[str, float], ...]
    evaluations: tuple[Evaluation, ...]
    transductive: tuple[Transductive, ...]
    windows: tuple[TimeWindows, ...]
    targets: dict[str, str]


class Entry(msgspec.Struct, frozen=True, eq=False):
    """A run and one of its evaluations."""

    run: Run
    evaluation: Evaluation


class Variant(msgspec.Struct, frozen=True, eq=False):
    """Runs of one method that differ in subject, protocol and seed alone.

    ``title`` unique in a data set; ``named`` whether it is a name that somebody gave; ``base`` whether it is the method
    itself, against which ablations are held; ``changed`` what another one changes, such as ``dla=fixed``.
    """

    method: str
    title: str
    changed: str
    base: bool
    named: bool
    entries: tuple[Entry, ...]

    def of(self, protocol: str) -> tuple[Entry, ...]:
        """Entries of a protocol, by subject and seed."""
        chosen = (entry for entry in self.entries if entry.evaluation.protocol == protocol)
        return tuple(sorted(chosen, key=lambda entry: (entry.evaluation.subject, entry.evaluation.seed)))

    @property
    def fewer_subjects(self) -> bool:
        """Whether it differs from the method as it is in how many subjects it was fitted to, and in nothing else."""
        return re.fullmatch(f"{_SUBJECTS}=\\d+", self.changed) is not None

    def runs(self) -> tuple[Run, ...]:
        """Each run once."""
        return tuple({entry.run.path: entry.run for entry in self.entries}.values())


class DataSet(msgspec.Struct, frozen=True, eq=False):
    """All variants that were tested on one data set. ``classes`` whether its items are classes; else stimuli."""

    name: str
    simulated: bool
    classes: bool
    variants: tuple[Variant, ...]

    def bases(self) -> tuple[Variant, ...]:
        """One per method."""
        return tuple(variant for variant in self.variants if variant.base)

    def numbers(self) -> dict[str, int]:
        """Number the variants by title, methods as they are first: one colour each in all figures."""
        ordered = sorted(self.variants, key=lambda variant: not variant.base)
        return {variant.title: number for number, variant in enumerate(ordered)}

    def protocols(self) -> tuple[str, ...]:
        """Those that have entries."""
        return tuple(name for name in ("intra", "left_out") if any(variant.of(name) for variant in self.variants))


class Gathered(msgspec.Struct, frozen=True, eq=False):
    """``unfinished`` runs that have no evaluation yet; ``doubled`` runs that repeat another one and do not count."""

    runs: tuple[Run, ...]
    data_sets: tuple[DataSet, ...]
    unfinished: tuple[Path, ...]
    doubled: tuple[Path, ...]

    def store_of(self, evaluation: Evaluation) -> Path | None:
        """Find the prepared store an evaluation was made on, where one of the runs was fitted to it."""
        for run in self.runs:
            for path, fingerprint in zip(run.meta.prepared, run.meta.data, strict=True):
                if fingerprint == evaluation.test_data:
                    return Path(path)
        return None


def gather(paths: Sequence[Path]) -> Gathered:
    """Read run folders, and folders of them.

    Raises
    ------
    DataError
        A path is not there, holds no run, none is evaluated, or a record is damaged.
    """
    found: dict[Path, None] = {}
    for path in paths:
        below = [folder.resolve() for folder in _run_folders(path)]
        if not below:
            raise DataError(
                f"{path}", got="no run folder in it" if path.is_dir() else "nothing there", do="streamdec-train fit"
            )
        found |= dict.fromkeys(below)
    runs = [read(path) for path in found]
    finished = tuple(run for run in runs if run.evaluations)
    if not finished:
        raise DataError(
            f"{', '.join(map(str, paths))}",
            got=f"{len(runs)} runs, none evaluated",
            do="evaluate them: streamdec-train evaluate",
        )
    entries, doubled = _once([Entry(run, evaluation) for run in finished for evaluation in run.evaluations])
    groups = _grouped(entries, lambda entry: (entry.evaluation.dataset, entry.evaluation.simulated, _classes(entry)))
    data_sets = tuple(
        DataSet(name, simulated, classes, _variants(groups[name, simulated, classes]))
        for name, simulated, classes in sorted(groups)
    )
    unfinished = tuple(run.path for run in runs if not run.evaluations)
    return Gathered(finished, data_sets, unfinished, doubled)


def read(path: Path) -> Run:
    """Read a run folder."""
    folder = RunFolder(path)
    meta = folder.read("run.json", RunMeta)
    fitted = (path / "fitted.json").exists()
    history = path / "history.jsonl"
    lines = history.read_text(encoding="utf-8").splitlines() if history.exists() else []
    in_sweep = _CELL.search(path.as_posix())
    return Run(
        path,
        in_sweep[1] if in_sweep else "",
        meta,
        folder.read("fitted.json", FittedMeta).notes if fitted else {},
        tuple({line["pass"]: line for line in map(msgspec.json.decode, lines)}.values()),
        _records(folder, "evaluations", Evaluation),
        _records(folder, "transductive", Transductive),
        _records(folder, "time_windows", TimeWindows),
        {role: _encoder(Path(target)) for role, target in meta.targets.items()},
    )


def _run_folders(path: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(path, followlinks=True):
        below.sort()
        if "run.json" in files:
            below.clear()
            yield Path(folder)


def _records(folder: RunFolder, name: str, kind: type[_T]) -> tuple[_T, ...]:
    paths = sorted((folder.path / name).glob("*.json"))
    return tuple(folder.read(f"{name}/{path.name}", kind) for path in paths)


def _encoder(path: Path) -> str:
    """Name of a target encoder; where the features are gone, of their folder."""
    try:
        return Targets(path).meta.encoder
    except StreamdecError:
        return path.name


def _classes(entry: Entry) -> bool:
    return entry.evaluation.averaged is None


def _once(entries: Sequence[Entry]) -> tuple[list[Entry], tuple[Path, ...]]:
    """Keep the first of runs alike in settings, protocol, subject and seed, with all sessions it was tested on."""
    first: dict[object, Path] = {}
    kept: dict[object, Entry] = {}
    doubled = []
    for entry in entries:
        e, path = entry.evaluation, entry.run.path
        key = (_identity(entry), e.dataset, e.simulated, e.protocol, e.subject, e.seed, len(entry.run.meta.prepared))
        if first.setdefault(key, path) == path:
            kept.setdefault((key, e.test_data), entry)
        else:
            doubled.append(path)
    return list(kept.values()), tuple(dict.fromkeys(doubled))


def _identity(entry: Entry) -> tuple[tuple[str, str], ...]:
    own = {"method": entry.run.meta.method, "row": entry.run.row}
    return tuple(sorted((own | _choices(entry.run)).items()))


def _choices(run: Run) -> dict[str, str]:
    """Everything a run's author could choose, as text."""
    of_targets = {f"target {role}": encoder for role, encoder in run.targets.items()}
    settings = flat(run.meta.settings)
    if settings.get("base"):  # which run it goes on from differs with subject and seed
        settings["base"] = "a run"
    return settings | of_targets


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``a.b`` -> text."""
    out: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return out


def _variants(entries: Sequence[Entry]) -> tuple[Variant, ...]:
    of_method = _grouped(entries, lambda entry: entry.run.meta.method)
    return tuple(variant for name in sorted(of_method) for variant in _family(name, of_method[name]))


def _family(name: str, entries: Sequence[Entry]) -> list[Variant]:
    """Split the entries of one method by what differs among them; the method as it is comes first."""
    choices = {id(entry): _choices(entry.run) for entry in entries}
    # How many subjects a model was fitted to tells its runs apart only where the protocol does not say it already.
    alike = _grouped(entries, lambda entry: (str(choices[id(entry)]), entry.evaluation.protocol))
    told = [entry for same in alike.values() if len(set(map(_n_subjects, same))) > 1 for entry in same]
    if told:
        most = max(map(_n_subjects, told))
        numbers = {id(entry): _n_subjects(entry) for entry in told}
        for entry in entries:
            choices[id(entry)][_SUBJECTS] = str(numbers.get(id(entry), most))
    keys = sorted({key for chosen in choices.values() for key in chosen})
    varying = [key for key in keys if len({chosen.get(key) for chosen in choices.values()}) > 1]
    groups = _grouped(entries, lambda entry: (*(choices[id(entry)].get(key) for key in varying), entry.run.row))
    base = max(groups, key=lambda values: _closeness(name, dict(zip(varying, values, strict=False)), groups[values]))
    out = []
    for values in sorted(groups, key=lambda values: (values != base, str(values))):
        differing = [i for i, key in enumerate(varying) if values[i] != base[i]]
        changed = ", ".join(_change(varying[i], values[i]) for i in differing)
        row, members = values[-1], tuple(groups[values])
        if values == base:
            out.append(Variant(name, row or name, "", True, True, members))
            continue
        named = bool(row) and sum(other[-1] == row for other in groups) == 1
        title = row if named else f"{row or name}, {changed}"
        out.append(Variant(name, title, changed or "prepared otherwise", False, named, members))
    return out


def _n_subjects(entry: Entry) -> int:
    return len(entry.run.meta.prepared)


def _change(key: str, value: str | None) -> str:
    return f"without {key}" if value is None else f"{key}={value}"


def _closeness(name: str, values: dict[str, str | None], entries: Sequence[Entry]) -> tuple[int, ...]:
    """Tell how near to the published settings: those as by default, then target features, subjects, entries."""
    try:
        usual = flat(msgspec.json.decode(msgspec.json.encode(method(name).settings())))
    except StreamdecError:  # a run of a method this version does not have
        usual = {}
    as_usual = sum(values[key] == usual[key] for key in values if key in usual)
    n_targets = sum(value is not None for key, value in values.items() if key.startswith("target "))
    return as_usual, n_targets, int(values.get(_SUBJECTS) or 0), len(entries)


def _grouped(entries: Sequence[Entry], key: Callable[[Entry], Any]) -> dict[Any, list[Entry]]:
    out: dict[Any, list[Entry]] = {}
    for entry in entries:
        out.setdefault(key(entry), []).append(entry)
    return out


def counts(gathered: Gathered) -> str:
    """Say how many runs of which methods there are."""
    of_method = Counter(run.meta.method for run in gathered.runs)
    return ", ".join(f"{n} of {name}" for name, n in sorted(of_method.items()))
