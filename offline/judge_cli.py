"""``streamdec-train results`` and ``judge``: captions and pictures of test stimuli, and how good they are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from streamdec.errors import DataError

from .console import progress, tell

if TYPE_CHECKING:
    from .judge.verdict import Verdict


def add(commands: Any) -> None:
    """Add the commands."""
    results = commands.add_parser("results", help="what each tier of a generator makes of test stimuli, to judge")
    results.add_argument("bundle", type=Path)
    results.add_argument("generator", type=Path)
    results.add_argument("out", type=Path, help="new folder for pictures and results.tsv")
    stimuli = results.add_mutually_exclusive_group(required=True)
    stimuli.add_argument("--prepared", type=Path, help="store: its test items, all repetitions averaged")
    stimuli.add_argument("--simulated", type=int, metavar="N", help="so many of the 200 images of the demo's subject")
    results.add_argument("--repetitions", type=int, default=80, help="of each simulated image (default: 80)")
    results.add_argument(
        "--steps", type=_steps, default=(), metavar="N[,...]", help="of diffusion (default: the generator's most)"
    )
    results.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    results.add_argument("--threads", type=int, default=1, help="within one operation on the CPU (default: 1)")
    results.set_defaults(run=_results)

    judge = commands.add_parser("judge", help="captions and pictures beside what was shown, with controls")
    judge.add_argument(
        "results", type=Path, help="folder with results.tsv (by, key, label, caption, picture), or a recorded session"
    )
    judge.add_argument(
        "--truth", required=True, help="prepared store whose test items were shown; world, world:SEED: the simulated"
    )
    judge.add_argument(
        "--captions", type=Path, help="sentences about the stimuli of a store: id, caption (.tsv, .json)"
    )
    judge.add_argument(
        "--figures", default="", metavar="NAME[,...]", help="default: all that can be had; kin come along"
    )
    judge.add_argument("--weights", type=Path, help="folder of the networks' weights; default: the caches")
    judge.add_argument(
        "--bert", default="roberta-large", metavar="NAME_OR_FOLDER", help="of BERTScore (default: roberta-large)"
    )
    judge.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    judge.add_argument("--out", type=Path, metavar="JSON", help="write the figures there too")
    judge.set_defaults(run=_judge)


def _results(args: argparse.Namespace, out: Console, err: Console) -> None:
    from streamdec.decode import bundle as bundles
    from streamdec.decode.generate.generator import open_generator

    from .data.store import Prepared
    from .judge import make

    bundle = bundles.read(args.bundle, live=False)
    generator = open_generator(args.generator, bundle.manifest)
    with progress(err) as report:
        if args.prepared:
            requests = make.of_store(bundle, Prepared(args.prepared))
        else:
            requests = make.demo_subject(bundle, args.simulated, args.repetitions, report)
        made = make.make(
            requests,
            bundle,
            generator,
            args.out,
            steps=args.steps,
            device=args.device,
            threads=args.threads,
            report=report,
        )
    makers = ", ".join(dict.fromkeys(one.by for one in made))
    tell(out, f"{args.out}: {len(requests)} stimuli by {makers}")


def _judge(args: argparse.Namespace, out: Console, err: Console) -> None:
    import msgspec

    from .checkpoint import replace
    from .judge import results, truth, verdict
    from .judge.gauges import Options

    made = results.read(args.results)
    options = Options(
        frozenset(name.strip() for name in args.figures.split(",") if name.strip()),
        args.weights,
        args.bert,
        args.device,
    )
    with progress(err) as report:
        found = verdict.judge(made, truth.open_truth(args.truth, args.captions), options, report)
    _show(out, found)
    if args.out:
        try:
            replace(args.out, msgspec.json.format(msgspec.json.encode(found), indent=2))
        except OSError as error:
            raise DataError(f"{args.out} cannot be written", got=error.strerror) from error


def _steps(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: whole numbers, such as 1,2,4") from error


def _show(out: Console, found: Verdict) -> None:
    data = "simulated data" if found.simulated else "data"
    for kind in ("caption", "picture"):
        rows = [one for one in found.judgements if one.kind == kind]
        names = list(dict.fromkeys(name for one in rows for name in one.figures))
        own = names.index("two-way" if "two-way" in names else "attributes") if "attributes" in names else len(names)
        for columns in filter(None, (names[:own], names[own:])):
            shown = {name: f"{name} ↓" if name in found.lower else name for name in columns} | {"attributes": "all"}
            errors = [one.figures[name].error for one in rows for name in columns if name in one.figures]
            what = f"{kind}s of {data} {found.truth}, means over n stimuli, standard errors up to {max(errors):.3f}"
            tell(out, what + ("; ↓ better the lower" if set(columns) & set(found.lower) else ""))
            heads: list[Column | str] = [Column("by", no_wrap=True), "n", *(shown[name] for name in columns)]
            table = Table(*heads, box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
            for one in rows:
                cells = (one.figures.get(name) for name in columns)
                values = ("" if cell is None else f"{cell.value:.3f}" for cell in cells)
                table.add_row(", ".join(filter(None, (one.by, one.control))), str(one.n_stimuli), *values)
            out.print(table)
    for what, why in found.missing.items():
        tell(out, f"not there: {what}: {why}")
