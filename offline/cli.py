"""``streamdec-train``, from data to bundle. The only file of the package that prints or exits."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from streamdec.config import read_toml
from streamdec.errors import ConfigError, StreamdecError

from . import generate_cli, judge_cli, prepare_cli, sweep_cli
from .console import progress, tell
from .methods.registry import NAMES, method
from .targets.registry import NAMES as TARGETS

if TYPE_CHECKING:
    from streamdec.decode.engine import Device

    from .data.store import Item
    from .evaluate import Evaluation, Retrieval

_EPILOG = """\
a first run:
  streamdec-train prepare things_eeg2 DATA prepared/sub-01 --subject sub-01
  streamdec-train features prepared/sub-01 gabor targets/gabor
  streamdec-train fit ridge prepared/sub-01 targets/gabor runs/ridge
  streamdec-train evaluate runs/ridge
  streamdec-train report runs --out report.html
  streamdec-train export runs/ridge bundles/ridge.zip

exit codes: 0 done, 1 failed while running, 2 wrong call or config
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    args = parser().parse_args(arguments)
    out, err = Console(), Console(stderr=True)
    try:
        args.run(args, out, err)
    except StreamdecError as error:
        if args.debug:
            raise
        err.print(f"streamdec-train: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        err.print("streamdec-train: interrupted; the same command goes on where it can", markup=False)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        "streamdec-train",
        description="Train the published decoders, compare them, and export them as bundles for streamdec serve.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    prepare_cli.add(commands)

    features = commands.add_parser("features", help="what EEG is aligned to, for the stimuli of a store")
    features.add_argument(
        "prepared", type=Path, help="store; or a folder of images, one folder per concept, for class centres"
    )
    features.add_argument(
        "encoder",
        metavar="ENCODER",
        help=f"{', '.join(TARGETS)}; options behind, such as @layer=8, @blur=medium, @vse, @captions=FILE; "
        "A+B puts two side by side, A|B averages two of one space",
    )
    features.add_argument("out", type=Path, help="folder for the features; a killed call goes on there")
    features.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    features.add_argument("--batch", type=int, default=64, help="items at once (default: 64)")
    features.set_defaults(run=_features)

    captions = commands.add_parser("captions", help="a sentence about each image of a store, for encoders of text")
    captions.add_argument("prepared", type=Path)
    captions.add_argument("model", metavar="NAME_OR_FOLDER", help="of transformers, such as Salesforce/blip2-opt-2.7b")
    captions.add_argument("out", type=Path, help="table (.tsv); a killed call goes on there")
    captions.add_argument("--prompt", default="A", help="A (default), B, C of NeuroAlign's table 5, or any text")
    captions.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    captions.add_argument("--batch", type=int, default=16, help="images at once (default: 16)")
    captions.set_defaults(run=_captions)

    fit = commands.add_parser("fit", help="fit a method")
    fit.add_argument("method", choices=NAMES)
    fit.add_argument("prepared", type=_paths, metavar="STORE[,STORE]", help="one store per subject")
    fit.add_argument(
        "targets", type=_roles, metavar="[ROLE=]FEATURES[,...]", help='folders of features; without a role: "image"'
    )
    fit.add_argument("out", type=Path, help="run folder; a killed call goes on there")
    fit.add_argument("--config", type=Path, help="TOML, see configs/methods/; default: the published settings")
    fit.add_argument("--seed", type=int, default=0)
    where = fit.add_mutually_exclusive_group()
    where.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    where.add_argument("--gpus", type=int, metavar="N", help="share each batch out over so many GPUs of this machine")
    fit.set_defaults(run=_fit)

    evaluate = commands.add_parser("evaluate", help="figures of a run on its test part")
    evaluate.add_argument("fitted", metavar="run", type=Path)
    evaluate.add_argument("--prepared", type=Path, help="another store whose test part is used")
    evaluate.add_argument(
        "--centres",
        type=_roles,
        metavar="[ROLE=]FEATURES[,...]",
        help="also against class centres: features of a folder of images, one folder per concept",
    )
    evaluate.add_argument(
        "--windows",
        choices=("masked", "retrained"),
        help="also over time windows: the epochs blanked outside, or the method fitted anew for each",
    )
    evaluate.add_argument("--transductive", action="store_true", help="also with all queries at once; kept apart")
    evaluate.add_argument("--device", default="cpu", help="to retrain on: cpu (default), cuda, ...")
    evaluate.set_defaults(run=_evaluate)

    report = commands.add_parser("report", help="tables and figures of runs, as one HTML file")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN_OR_FOLDER", help="runs, or folders of them")
    report.add_argument("--out", type=Path, required=True, metavar="REPORT.html")
    report.add_argument("--markdown", action="store_true", help="Markdown beside it too, its figures in a folder")
    report.add_argument(
        "--categories", type=Path, help="table of concepts, one column with category in its name: .tsv or .csv"
    )
    report.set_defaults(run=_report)

    sweep_cli.add(commands)
    judge_cli.add(commands)
    generate_cli.add(commands, _roles)

    export = commands.add_parser("export", help="a run -> a bundle that streamdec serve loads")
    export.add_argument(
        "fitted",
        metavar="run",
        type=Path,
        nargs="+",
        help="several: fitted on windows of other ends, one answer at each",
    )
    export.add_argument("out", type=Path, help="new folder or .zip")
    export.add_argument(
        "--prepared", type=Path, help="store whose subject the bundle is for and whose test items it shows"
    )
    export.set_defaults(run=_export)

    compile_ = commands.add_parser("compile", help="a bundle's encoder -> a faster engine, on the machine that serves")
    compile_.add_argument("bundle", type=Path)
    compile_.add_argument("--engine", required=True, choices=("aoti", "tensorrt-fp32", "tensorrt-fp16"))
    compile_.add_argument("--device", choices=("cpu", "cuda"), help="default: cpu for aoti, cuda for tensorrt")
    compile_.add_argument("--max-batch", type=int, default=1, metavar="N", help="epochs at once; default: 1, as live")
    compile_.add_argument("--prepared", type=Path, help="store of real epochs to check it on; default: made-up epochs")
    compile_.add_argument("--cache", default="", help="folder to keep it in; default: the user's cache")
    compile_.set_defaults(run=_compile)
    return top


def _features(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .targets.registry import encoder
    from .targets.store import compute

    items, images = _stimuli(args.prepared)
    with progress(err) as report:
        chosen = encoder(args.encoder, items, args.device)
        made = compute(chosen, items, images, args.out, report, args.batch)
    tell(out, f"{args.out}: {made.encoder}, {len(made.ids)} rows")


def _stimuli(path: Path) -> tuple[Sequence[Item], Path]:
    """Items of a prepared store and the folder of their images; or of a folder of images."""
    from .data.store import Prepared
    from .targets.images import items_below

    if path.is_dir() and not (path / "meta.json").exists():
        return items_below(path), path
    meta = Prepared(path).meta
    return [item for part in meta.items.values() for item in part], Path(meta.images)


def _captions(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .targets.captions import Captioner, write

    items, images = _stimuli(args.prepared)
    with progress(err) as report:
        captioner = Captioner(args.model, args.prompt, device=args.device)
        n = write(captioner, items, images, args.out, report, args.batch)
    tell(out, f"{args.out}: {n} captions by {args.model}")


def _fit(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .data.store import Prepared
    from .experiment import fit, open_run
    from .targets.store import Targets

    chosen = method(args.method)
    settings = chosen.configured(read_toml(args.config) if args.config else {}, f"config {args.config}")
    with progress(err) as report:
        if args.gpus is not None:
            from . import processes

            job = processes.Job(chosen.name, settings, tuple(args.prepared), args.targets, args.out, args.seed)
            processes.fit(job, args.gpus, report=report)
        else:
            fit(
                chosen,
                settings,
                [Prepared(path) for path in args.prepared],
                {role: Targets(path) for role, path in args.targets.items()},
                args.out,
                seed=args.seed,
                device=args.device,
                report=report,
            )
    _, _, fitted, _ = open_run(args.out)
    notes = ", ".join(f"{key} {value:.4g}" for key, value in fitted.notes.items())
    tell(out, f"{args.out}: {chosen.name}, {notes}")


def _evaluate(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .checkpoint import RunFolder, RunMeta
    from .data.store import Prepared
    from .experiment import evaluate_run, open_test
    from .targets.store import Targets

    run = RunFolder(args.fitted)
    prepared = Prepared(args.prepared) if args.prepared else None
    centres = {role: Targets(path) for role, path in args.centres.items()} if args.centres else None
    evaluation = evaluate_run(args.fitted, prepared, centres=centres)
    name = evaluation.subject
    if prepared is not None and evaluation.test_data not in evaluation.data:  # it takes no other's place
        folder = prepared.path.resolve()
        if folder.name != name:
            name += f".{folder.name}"
        elif name in run.read("run.json", RunMeta).subjects:  # another session of somebody the run knows
            name += f".{folder.parent.name}"
    run.keep_evaluation(name, evaluation)
    _show(out, evaluation)
    if args.windows:
        from .windows import time_windows

        with progress(err) as report:
            found = time_windows(args.fitted, prepared, args.windows, device=args.device, report=report)
        run.keep_evaluation(f"{name}-{args.windows}", found, "time_windows")
        for row in (*found.growing, *found.shrinking):
            tell(out, f"{1000 * row.start:.0f} to {1000 * row.stop:.0f} ms: top-1 {100 * row.averaged.top1:.2f} %")
    if args.transductive:
        from .transductive import transductive

        test = open_test(args.fitted, prepared)
        means, shown, repetitions = test.averaged()
        record = transductive(test.about, test.encode(means), test.gallery, shown, repetitions)
        run.keep_evaluation(name, record, "transductive")
        for how in ("csls", "sinkhorn", "whitened"):
            tell(out, f"transductive, {how}: top-1 {100 * getattr(record, how).top1:.2f} %")


def _report(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .report import writer

    report = writer()
    with progress(err) as say:
        gathered = report(args.runs, args.out, markdown=args.markdown, categories=args.categories, say=say)
    tell(out, f"{args.out}: {len(gathered.runs)} runs")


def _export(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .data.store import Prepared
    from .export import export

    for parity in export(args.fitted, args.out, Prepared(args.prepared) if args.prepared else None):
        tell(
            out,
            f"{args.out}: {parity.encoder} agrees with the trained encoder on {parity.n_epochs} epochs, "
            f"error {parity.max_abs_error:.2g}",
        )


def _compile(args: argparse.Namespace, out: Console, err: Console) -> None:
    from streamdec.decode import bundle
    from streamdec.decode.compiled import cache_folder

    from .data.store import Prepared
    from .engines import Wanted, compile_bundle

    usual: Device = "cpu" if args.engine == "aoti" else "cuda"
    device: Device = args.device or usual
    builds = compile_bundle(
        bundle.read(args.bundle),
        Wanted(args.engine, device, args.max_batch),
        cache_folder(args.cache),
        Prepared(args.prepared) if args.prepared else None,
        lambda line, done=0, total=0: tell(err, line),
    )
    for build in builds:
        agreed = build.parity
        epochs = f"{agreed.n_epochs} {'made-up' if build.made_up else 'real'} epochs"
        tell(out, f"{agreed.encoder}: {agreed.engine}, as ONNX on {epochs}, error {agreed.max_abs_error:.2g}")
    tell(out, f'serve it with engine.kind = "{args.engine}" and engine.device = "{device}" in the config')


def _show(out: Console, evaluation: Evaluation) -> None:
    data = "simulated data" if evaluation.simulated else "data"
    title = f"{evaluation.method} on {data} {evaluation.dataset} {evaluation.subject}"
    columns = ("epochs", "queries", "top-1 %", "95 %", "top-5 %", "median rank", "mAP")
    table = Table(*columns, title=title, caption="epochs averaged into each query; 95 % interval of top-1")
    for row in evaluation.curve:
        table.add_row(str(row.repetitions), *_cells(row))
    if evaluation.averaged and evaluation.averaged.repetitions is None:
        table.add_row("all, uneven", *_cells(evaluation.averaged))
    table.add_row("1 (all)", *_cells(evaluation.single))
    out.print(table)
    shown = evaluation.averaged or evaluation.single
    ways = ", ".join(f"{k}-way {100 * share:.1f} %" for k, share in shown.k_way.items())
    tell(out, f"gallery: {shown.n_candidates} of kind {shown.gallery}, chance {100 * shown.chance:.2g} %; {ways}")
    if evaluation.class_centre:
        centre = evaluation.class_centre
        shares = f"top-1 {100 * centre.top1:.2f} %, top-5 {100 * centre.top5:.2f} %"
        tell(out, f"against {centre.n_candidates} class centres: {shares}")
    if evaluation.multi_label:
        many = evaluation.multi_label
        figures = f"mAP {many.mean_average_precision:.4f}, AUC {many.auc:.4f}, Hamming {many.hamming:.4f}"
        tell(out, f"{many.n_labels} labels: {figures}")
    for label, value in evaluation.auc.items():
        tell(out, f"single-epoch AUC of {label}: {value:.4f}")
    if evaluation.offline_only:
        tell(out, f"offline only: {evaluation.offline_only}")


def _cells(row: Retrieval) -> tuple[str, ...]:
    low, high = row.top1_interval
    return (
        str(row.n_queries),
        f"{100 * row.top1:.2f}",
        f"{100 * low:.1f} – {100 * high:.1f}",
        f"{100 * row.top5:.2f}",
        f"{row.median_rank:g}",
        f"{row.mean_average_precision:.4f}",
    )


def _paths(text: str) -> list[Path]:
    return [Path(path) for path in text.split(",")]


def _roles(text: str) -> dict[str, Path]:
    """ROLE=FOLDER,... as a dictionary; a folder without a role is the image features."""
    # A folder may be called after its options: gabor@blur=low.
    pairs = re.findall(r"(?:^|,)(?:(\w+)=)?([^,]*)", text)
    roles = {role or "image": Path(path) for role, path in pairs}
    if len(roles) < len(pairs):
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: each role once")
    return roles


if __name__ == "__main__":
    sys.exit(main())
