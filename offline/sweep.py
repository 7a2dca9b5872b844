"""A grid of runs: methods x protocols x subjects x seeds, each fitted and evaluated in a run folder of its own.

::

    OUT/
      nice/intra/sub-01/seed-0/       a run folder (see :mod:`.checkpoint`), with its evaluations
      nice/left_out/sub-01/seed-0/    fitted on all the others
      mused/joint/seed-0/             one model of all subjects, evaluated on each
      mused/added/sub-01/seed-0/      left_out's model of that subject and seed, with the subject added to it
      results.jsonl                   one line per evaluation
      failures.json                   cells that failed as often as they may, while there are any

The folders are the state: a cell whose evaluations are there is finished, whoever made it and whenever, and is not done
again; a fit that was killed goes on after its last finished pass.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from streamdec.config import convert, read_toml
from streamdec.errors import ConfigError, StreamdecError

from .checkpoint import RunFolder, replace, writing
from .data.joined import check_alike
from .data.store import PartName, Prepared
from .evaluate import Evaluation
from .experiment import check_roles, describe, evaluate_run, fit
from .methods.base import MethodSettings
from .methods.registry import method
from .progress import Report, silent
from .targets.frozen import check_device
from .targets.store import Targets

Protocol: TypeAlias = Literal["intra", "left_out", "joint", "added"]


class Resources(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one cell needs: ``cpus`` and ``gpus``, which may be shares, and ``memory`` in GiB, 0 for not said.

    Ray places cells by it. Without Ray, cells run one after the other, and ``gpus`` only says whether on the GPU.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: float = 0.0

    def __post_init__(self) -> None:
        if self.cpus <= 0 or self.gpus < 0 or self.memory < 0:
            raise ConfigError("resources", got=self, allowed="cpus above 0, gpus and memory 0 or more")

    @property
    def device(self) -> str:
        """As torch names it."""
        return "cuda" if self.gpus else "cpu"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A method with its settings: one row of a table.

    ``targets`` per role the name of target features; ``settings`` what differs from the published ones, also below
    ``schedule``, keys as in ``configs/methods``; ``stores`` the name of a preparation, where the grid has several;
    ``protocols`` where they are not the grid's.
    """

    method: str
    targets: dict[str, str]
    settings: dict[str, Any] = {}
    stores: str = ""
    protocols: tuple[Protocol, ...] = ()


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to run.

    ``stores`` per name of a preparation the folder of each subject; ``targets`` folders of target features by name;
    ``methods`` by the name that a table gives them; ``protocols``: "intra" fits and tests each subject alone,
    "left_out" fits all the others, "joint" fits one model of all and tests it on each, "added" goes on from the row's
    own "left_out" model with the subject alone, for methods with a setting ``base``; ``retries`` further attempts at a
    cell that fails.
    """

    stores: dict[str, dict[str, str]]
    targets: dict[str, str]
    methods: dict[str, Entry]
    protocols: tuple[Protocol, ...] = ("intra",)
    seeds: tuple[int, ...] = (0, 1, 2)
    retries: int = 1
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        if self.retries < 0 or any(seed < 0 for seed in self.seeds):
            raise ConfigError("grid", got=f"seeds {self.seeds}, retries {self.retries}", allowed="0 or more")


class Cell(msgspec.Struct, frozen=True):
    """One run.

    ``name`` its folder below the sweep's; ``train`` and ``test`` store folders; ``targets`` per role; ``base`` the cell
    it goes on from, "" for none.
    """

    name: str
    method: str
    settings: dict[str, Any]
    train: tuple[str, ...]
    test: tuple[str, ...]
    targets: dict[str, str]
    seed: int
    base: str = ""

    @property
    def parts(self) -> list[tuple[str, PartName]]:
        """Stores and their parts that it reads."""
        return [(path, "train") for path in self.train] + [(path, "test") for path in self.test]


class Result(Evaluation, frozen=True, kw_only=True):
    """A line of ``results.jsonl``: an evaluation, and the cell it is of."""

    cell: str


class Failure(msgspec.Struct, frozen=True):
    """``attempts`` at a cell, and the ``error`` of the last one."""

    attempts: int
    error: str


class Swept(msgspec.Struct, frozen=True):
    """What a sweep has: ``results`` of the finished cells, in the grid's order, and ``failures`` by cell."""

    results: tuple[Result, ...]
    failures: dict[str, Failure]


Todo: TypeAlias = deque[tuple[Cell, int]]
Executor: TypeAlias = Callable[[Todo, Path, Report], Iterator[tuple[Cell, int, str]]]
"""Takes cells with the number of the attempt from a queue, which may grow meanwhile, until it is empty; gives each
back with its error, "" for none."""


def load(path: Path) -> Grid:
    """Read a grid; paths in it are relative to its file.

    Raises
    ------
    ConfigError
        An unknown key, a wrong value, or a name that stands for nothing.
    """
    grid = convert(read_toml(path), Grid, f"grid {path}")
    base = path.resolve().parent
    return msgspec.structs.replace(
        grid,
        stores={name: {s: str(base / store) for s, store in stores.items()} for name, stores in grid.stores.items()},
        targets={name: str(base / features) for name, features in grid.targets.items()},
    )


def cells(grid: Grid) -> list[Cell]:
    """Work a grid out.

    Raises
    ------
    ConfigError
        An unknown method, a wrong setting, a name of stores or target features that the grid does not have, subjects
        too few to leave one out.
    """
    made: dict[str, Cell] = {}
    for name, entry in grid.methods.items():
        where = f"methods.{name}"
        _check_name(name)
        chosen = method(entry.method)
        settings = chosen.configured(entry.settings, f"{where}.settings")
        check_roles(chosen, entry.targets)
        targets = {role: _named(grid.targets, of, f"{where}.targets.{role}") for role, of in entry.targets.items()}
        preparation = entry.stores or (next(iter(grid.stores)) if len(grid.stores) == 1 else "")
        stores = _named(grid.stores, preparation, f"{where}.stores")
        protocols = entry.protocols or grid.protocols
        if "added" in protocols and not ("left_out" in protocols and "base" in chosen.settings.__struct_fields__):
            raise ConfigError(f"{where}, protocol added", allowed="with left_out, of a method that has a setting base")
        for protocol in sorted(protocols, key="added".__eq__):  # last: it goes on from left_out
            for place, train, test in _folds(protocol, stores):
                for seed in grid.seeds:
                    cell = f"{name}/{place}/seed-{seed}"
                    plain = msgspec.json.decode(msgspec.json.encode(settings))
                    base = f"{name}/{place.replace('added', 'left_out', 1)}/seed-{seed}" if protocol == "added" else ""
                    made[cell] = Cell(cell, entry.method, plain, train, test, targets, seed, base)
    if not made:
        raise ConfigError("grid", got="no cells", allowed="a method, a protocol, a subject and a seed or more")
    return list(made.values())


def _folds(protocol: Protocol, stores: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Folder, training stores and test stores of each model."""
    everyone = tuple(stores.values())
    if protocol == "joint":
        yield "joint", everyone, everyone
        return
    if protocol == "left_out" and len(stores) < 2:
        raise ConfigError("left_out", got=f"{len(stores)} subjects", allowed="2 or more")
    for subject, own in stores.items():
        _check_name(subject)
        others = tuple(store for store in everyone if store != own)
        yield f"{protocol}/{subject}", others if protocol == "left_out" else (own,), (own,)


def _check_name(name: str) -> None:
    if not name or name != Path(name).name or name in (".", ".."):
        raise ConfigError("name in a grid", got=name, allowed="what can be the name of a folder")


def _named(known: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in known:
        raise ConfigError(where, got=name or "none", allowed=", ".join(known) or "none: the grid names none")
    return known[name]


def run(grid: Grid, out: Path, execute: Executor | None = None, report: Report = silent) -> Swept:
    """Do what of a grid is not done yet.

    Parameters
    ----------
    grid : Grid
    out : Path
        Folder of the run folders.
    execute : callable, optional
        How; one cell after the other in this process when omitted.
    report : callable
        Told how many cells are finished.

    Raises
    ------
    ConfigError
        A folder holds a run of other settings or other data, stores of one cell are prepared in different ways, or the
        device is not there; nothing was started.
    DataError
        A store or target features cannot be opened or lack what a cell needs, and nothing was started; ``out`` cannot
        be written.
    """
    out = out.resolve()
    wanted = cells(grid)
    plan = _Plan(wanted, out)
    execute = execute or one_by_one(grid.resources.device)
    finished = {cell.name: found for cell in wanted if (found := plan.finished(cell))}
    lines = [msgspec.json.encode(result) + b"\n" for found in finished.values() for result in found]
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        replace(out / "results.jsonl", b"".join(lines))
    failures: dict[str, Failure] = {}
    _keep(failures, out)
    todo: Todo = deque()
    waiting = [cell for cell in wanted if cell.name not in finished]

    def admit() -> None:
        """Let those begin that wait for nothing; give up those that wait for what failed."""
        for cell in waiting.copy():
            if not cell.base or cell.base in finished:
                todo.append((cell, 1))
            elif cell.base in failures:
                failures[cell.name] = Failure(0, f"{cell.base} failed")
            else:
                continue
            waiting.remove(cell)

    report(f"{len(finished)} of {len(wanted)} cells are finished", len(finished), len(wanted))

    def say(line: str, done: int = 0, total: int = 0) -> None:
        report(line, len(finished) + len(failures), len(wanted))

    admit()
    for cell, attempt, error in execute(todo, out, say):
        if not error:
            finished[cell.name] = plan.finished(cell)
            assert finished[cell.name], f"{cell.name} left no evaluation"
            with writing(out), (out / "results.jsonl").open("ab") as file:
                file.writelines(msgspec.json.encode(result) + b"\n" for result in finished[cell.name])
            say(f"{cell.name}: {_figures(finished[cell.name])}")
        elif attempt <= grid.retries:
            todo.append((cell, attempt + 1))
            say(f"{cell.name}: {error}; attempt {attempt + 1} follows")
        else:
            failures[cell.name] = Failure(attempt, error)
            say(f"{cell.name}: {error}; given up")
        admit()
        _keep(failures, out)
    return Swept(tuple(result for cell in wanted for result in finished.get(cell.name, ())), failures)


class _Plan:
    """The cells, and what each one's run is; every store and every folder of features is opened once."""

    def __init__(self, wanted: Sequence[Cell], out: Path) -> None:
        self.out = out
        stores = {path: Prepared(Path(path)) for path in {path for cell in wanted for path in cell.train + cell.test}}
        features = {path: Targets(Path(path)) for path in {path for cell in wanted for path in cell.targets.values()}}
        for together in {cell.train + cell.test for cell in wanted}:
            check_alike([stores[path] for path in together])
        shown = {(of_role, *part) for cell in wanted for of_role in cell.targets.values() for part in cell.parts}
        for of_role, path, part in sorted(shown):
            features[of_role].check(stores[path].items(part))
        self._about = {path: store.meta for path, store in stores.items()}
        self._run = {
            cell.name: describe(
                method(cell.method),
                _settings(cell, out),
                [stores[path] for path in cell.train],
                {role: features[path] for role, path in cell.targets.items()},
                cell.seed,
            )
            for cell in wanted
        }

    def finished(self, cell: Cell) -> tuple[Result, ...]:
        """Read the evaluations of a cell, () unless all are there and of these very data."""
        folder = RunFolder(self.out / cell.name)
        folder.check(self._run[cell.name])
        found = []
        for about in (self._about[path] for path in cell.test):
            name = folder.evaluation(about.subject)
            if not (folder.path / name).exists():
                return ()
            evaluation = folder.read(name, Evaluation)
            if evaluation.test_data != about.fingerprint:
                return ()
            found.append(Result(**msgspec.structs.asdict(evaluation), cell=cell.name))
        return tuple(found)


def _keep(failures: Mapping[str, Failure], out: Path) -> None:
    with writing(out):
        if failures:
            replace(out / "failures.json", msgspec.json.format(msgspec.json.encode(failures), indent=1))
        else:
            (out / "failures.json").unlink(missing_ok=True)


def _figures(results: Sequence[Result]) -> str:
    shown = [result.averaged or result.single for result in results]
    return f"top-1 {100 * sum(row.top1 for row in shown) / len(shown):.1f} %"


def one_by_one(device: str) -> Executor:
    """Make the executor that does cells in this process.

    Raises
    ------
    ConfigError
        The device is not there.
    """
    if device != "cpu":
        check_device(device)

    def execute(todo: Todo, out: Path, report: Report) -> Iterator[tuple[Cell, int, str]]:
        while todo:
            cell, attempt = todo.popleft()
            yield cell, attempt, attempt_at(cell, out, device, report)

    return execute


def attempt_at(cell: Cell, out: Path, device: str, report: Report = silent) -> str:
    """Fit and evaluate a cell; return the error in one line, "" for none.

    What no one foresaw is kept in full in the run folder's ``error.txt``.
    """
    try:
        _work(cell, out, device, lambda line, done=0, total=0: report(f"{cell.name}: {line}"))
    except StreamdecError as error:
        return str(error)
    except Exception as error:
        kept = out / cell.name / "error.txt"
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(traceback.format_exc(), encoding="utf-8")
        return f"{type(error).__name__}: {' '.join(str(error).split())}; see {kept}"
    return ""


def _settings(cell: Cell, out: Path) -> MethodSettings:
    chosen = msgspec.convert(cell.settings, method(cell.method).settings)
    return msgspec.structs.replace(chosen, base=str(out / cell.base)) if cell.base else chosen


def _work(cell: Cell, out: Path, device: str, report: Report) -> None:
    chosen, folder = method(cell.method), RunFolder(out / cell.name)
    stores = [Prepared(Path(path)) for path in cell.train]
    targets = {role: Targets(Path(path)) for role, path in cell.targets.items()}
    fit(chosen, _settings(cell, out), stores, targets, folder.path, seed=cell.seed, device=device, report=report)
    for path in cell.test:
        evaluation = evaluate_run(folder.path, Prepared(Path(path)))
        folder.keep_evaluation(evaluation.subject, evaluation)
    (folder.path / "error.txt").unlink(missing_ok=True)
    folder.resume.unlink(missing_ok=True)  # as large as four encoders, and of no more use
