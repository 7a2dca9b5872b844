"""``streamdec-train sweep`` and ``reproduce``: many runs by one command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from streamdec.errors import DataError

from .console import progress, tell
from .tables import NAMES as TABLES

if TYPE_CHECKING:
    from .evaluate import Retrieval
    from .progress import Report
    from .sweep import Executor, Resources, Result, Swept

_CAPTION = "mean ± SD over subjects, all repetitions averaged"


def add(commands: Any) -> None:
    """Add the commands."""
    sweep = commands.add_parser("sweep", help="fit and evaluate a grid of methods, protocols, subjects and seeds")
    sweep.add_argument("grid", type=Path, help="TOML, see configs/sweeps/")
    sweep.add_argument("out", type=Path, help="folder of the run folders; what is finished there is not done again")
    _add_common(sweep)
    sweep.set_defaults(run=_sweep)

    reproduce = commands.add_parser("reproduce", help="a published table, from the data to its figures")
    reproduce.add_argument("table", metavar="TABLE", help=", ".join(TABLES))
    reproduce.add_argument("out", type=Path, help="folder for all that is made; what is there is not made again")
    data = reproduce.add_mutually_exclusive_group(required=True)
    data.add_argument("--root", type=Path, help="folder above the data set")
    data.add_argument(
        "--simulated", action="store_true", help="the same grid on a few simulated subjects, with analytic encoders"
    )
    reproduce.add_argument("--layout", help="of the data, where there are several; prepare --check names them")
    reproduce.add_argument("--cpus", type=float, default=1.0, help="cores of a run (default: 1); Ray counts them")
    reproduce.add_argument("--gpus", type=float, default=0.0, help="GPUs of a run, or a share of one (default: none)")
    reproduce.add_argument("--memory", type=float, default=0.0, metavar="GIB", help="of a run; default: not said")
    _add_common(reproduce)
    reproduce.set_defaults(run=_reproduce)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="fan out over a Ray cluster; auto: over this machine's cores and GPUs"
    )
    parser.add_argument("--report", type=Path, metavar="REPORT.html", help="of all runs, at the end")


def _sweep(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .sweep import load, run

    grid, write = load(args.grid), _writer(args.report)
    with progress(err) as report:
        swept = run(grid, args.out, _executor(args.ray, grid.resources), report)
    write(swept, args.out, out, err)
    _show(out, err, swept, args.out)


def _reproduce(args: argparse.Namespace, out: Console, err: Console) -> None:
    from . import reproduce
    from .sweep import Resources

    write = _writer(args.report)
    resources = Resources(cpus=args.cpus, gpus=args.gpus, memory=args.memory)
    table, root = reproduce.table(args.table), args.root
    with progress(err) as report:
        if args.simulated:
            table, root = reproduce.simulated(table), args.out / "simulated"
            report = _saying("simulated", report)
            reproduce.simulate(table.simulated, root, report)
        swept = reproduce.reproduce(
            table,
            root,
            args.out,
            layout=args.layout,
            resources=resources,
            execute=_executor(args.ray, resources),
            report=report,
        )
    tell(out, f"{'simulated ' if args.simulated else ''}{args.table}: {' '.join(table.about.split())}")
    write(swept, args.out / "runs", out, err)
    _show(out, err, swept, args.out / "runs")


def _writer(path: Path | None) -> Callable[[Swept, Path, Console, Console], None]:
    """Make what writes the report, if one is wanted; what it lacks is said now, not after the hours the runs take."""
    if path is None:
        return lambda swept, runs, out, err: None
    from .report import writer

    report = writer()

    def write(swept: Swept, runs: Path, out: Console, err: Console) -> None:
        if swept.results:
            with progress(err) as say:
                gathered = report([runs], path, say=say)
            tell(out, f"{path}: {len(gathered.runs)} runs")

    return write


def _saying(what: str, report: Report) -> Report:
    return lambda line, done=0, total=0: report(f"{what}: {line}", done, total)


def _executor(address: str | None, resources: Resources) -> Executor:
    from .on_ray import on_ray
    from .sweep import one_by_one

    return on_ray(address, resources) if address else one_by_one(resources.device)


def _show(out: Console, err: Console, swept: Swept, folder: Path) -> None:
    """Mean and deviation over subjects of each row of the table; then what failed."""
    rows: dict[tuple[str, str], list[Result]] = {}
    for result in swept.results:
        entry, fold, *_ = result.cell.split("/")
        rows.setdefault((entry, fold), []).append(result)
    for title in dict.fromkeys(_title(result) for result in swept.results):
        row = Column("", overflow="fold")  # names that are cut look the same
        table = Table(row, "protocol", "subjects", "seeds", "top-1 %", "top-5 %", title=title, caption=_CAPTION)
        for (entry, fold), results in rows.items():
            shown = {(r.subject, r.seed): r.averaged or r.single for r in results if _title(r) == title}
            counts = (str(len({key[i] for key in shown})) for i in (0, 1))
            if shown:
                table.add_row(entry, fold, *counts, _mean(shown, "top1"), _mean(shown, "top5"))
        out.print(table)
    tell(out, f"{folder}: {len({result.cell for result in swept.results})} cells, {len(swept.results)} evaluations")
    for cell, failure in swept.failures.items():
        tell(err, f"{cell}: failed {failure.attempts} times; {failure.error}")
    if swept.failures:
        raise DataError(f"{len(swept.failures)} cells failed", do="the same command tries them, and only them, again")


def _title(result: Result) -> str:
    return f"{'simulated data' if result.simulated else 'data'} {result.dataset}"


def _mean(shown: dict[tuple[str, int], Retrieval], figure: str) -> str:
    from .summary import summarise

    mean = summarise({key: 100 * getattr(row, figure) for key, row in shown.items()})
    return f"{mean.value:.1f}" + (f" ± {mean.over_subjects:.1f}" if mean.over_subjects is not None else "")
