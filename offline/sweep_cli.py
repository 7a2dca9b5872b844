"""``streamdec-train sweep`` and ``reproduce``: many runs by one command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from streamdec.errors import DataError

from .console import progress, tell

if TYPE_CHECKING:
    from .evaluate import Retrieval
    from .sweep import Executor, Resources, Result, Swept


def add(commands: Any) -> None:
    """Add the commands."""
    sweep = commands.add_parser("sweep", help="fit and evaluate a grid of methods, protocols, subjects and seeds")
    sweep.add_argument("grid", type=Path, help="TOML, see configs/sweeps/")
    sweep.add_argument("out", type=Path, help="folder of the run folders; what is finished there is not done again")
    _add_ray(sweep)
    sweep.set_defaults(run=_sweep)


def _add_ray(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="fan out over a Ray cluster; auto: over this machine's cores and GPUs"
    )


def _sweep(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .sweep import load, run

    grid = load(args.grid)
    with progress(err) as report:
        swept = run(grid, args.out, _executor(args.ray, grid.resources), report)
    _show(out, err, swept, args.out)


def _executor(address: str | None, resources: Resources) -> Executor:
    from .on_ray import on_ray
    from .sweep import one_by_one

    return on_ray(address, resources) if address else one_by_one(resources.device)


def _show(out: Console, err: Console, swept: Swept, folder: Path) -> None:
    """Mean and deviation over subjects of each row of the table; then what failed."""
    rows: dict[tuple[str, str, bool], list[Result]] = {}
    for result in swept.results:
        entry, fold, *_ = result.cell.split("/")
        rows.setdefault((entry, fold, result.simulated), []).append(result)
    table = Table("", "protocol", "data", "subjects", "seeds", "top-1 %", "top-5 %", caption="mean ± SD over subjects")
    for (entry, fold, simulated), results in rows.items():
        data = f"{results[0].dataset}{', simulated' if simulated else ''}"
        shown = {(result.subject, result.seed): result.averaged or result.single for result in results}
        subjects, seeds = ({key[i] for key in shown} for i in (0, 1))
        table.add_row(
            entry, fold, data, str(len(subjects)), str(len(seeds)), _mean(shown, "top1"), _mean(shown, "top5")
        )
    if rows:
        out.print(table)
    tell(out, f"{folder}: {len({result.cell for result in swept.results})} cells, {len(swept.results)} evaluations")
    for cell, failure in swept.failures.items():
        tell(err, f"{cell}: failed {failure.attempts} times; {failure.error}")
    if swept.failures:
        raise DataError(f"{len(swept.failures)} cells failed", do="the same command tries them, and only them, again")


def _mean(shown: dict[tuple[str, int], Retrieval], figure: str) -> str:
    from .summary import summarise

    mean = summarise({key: 100 * getattr(row, figure) for key, row in shown.items()})
    return f"{mean.value:.1f}" + (f" ± {mean.over_subjects:.1f}" if mean.over_subjects is not None else "")
