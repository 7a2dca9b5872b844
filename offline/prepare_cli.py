"""``streamdec-train prepare`` and ``fetch``: data onto the disk, and into a store."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console

from streamdec.config import convert, read_toml
from streamdec.errors import ConfigError, DataError

from .console import progress, tell

if TYPE_CHECKING:
    from .data.prepare import Source, Whitening
    from .data.store import Meta, PartName

_Command: TypeAlias = Callable[[argparse.Namespace, Console, Console], None]

_THINGS = {
    "things_eeg2": "THINGS-EEG2: raw, official, NICE/ATM, UBP or NeuroBridge files",
    "things_meg": "THINGS-MEG: .fif, ATM or UBP files",
}


def add(commands: Any) -> None:
    """Add the commands."""
    prepare = commands.add_parser("prepare", help="a data set -> epochs as the live chain gives them")
    prepare.add_argument(
        "--check", type=Path, metavar="ROOT", help="say what lies below ROOT and what is wrong with it"
    )
    prepare.add_argument("--images", dest="check_images", type=Path, help="folder above the images, where ROOT is not")
    prepare.set_defaults(run=_check)
    sets = prepare.add_subparsers(metavar="DATASET")
    for name, what in _THINGS.items():
        things = sets.add_parser(name, help=what)
        _add_source(things)
        things.add_argument("--layout", help="needed where there are several; --check names them")
        things.add_argument(
            "--config", type=Path, help=f"TOML, see configs/data/{name}.toml; default: the layout's recipe"
        )
        things.add_argument(
            "--whitener",
            choices=("pooled", "session", "official"),
            help="pooled (default): one for all sessions, can run live; session: one each, as NICE and UBP have it; "
            "official: one each from training and test part, as the release has it",
        )
        things.set_defaults(run=_alone(_prepare_things), dataset=name)
    fmri = sets.add_parser("things_fmri", help="THINGS-fMRI: single-trial responses as tables")
    _add_source(fmri)
    fmri.add_argument("--config", type=Path, help="TOML, see configs/data/things_fmri.toml")
    fmri.set_defaults(run=_alone(_prepare_fmri))
    recording = sets.add_parser("recording", help="any recording and a table: marker -> image or class")
    recording.add_argument("recording", type=Path, help="XDF, or what mne reads")
    recording.add_argument("table", type=Path, help=".tsv or .csv: columns marker, and image or label")
    recording.add_argument("out", type=Path, help="new folder for the prepared store")
    recording.add_argument("--config", type=Path, required=True, help="TOML, see configs/data/recording.toml")
    recording.add_argument("--train", type=_stretch, metavar="FROM:TO", help="fraction of the recording, such as 0:0.5")
    recording.add_argument("--test", type=_stretch, metavar="FROM:TO", help="fraction of the recording, such as 0.5:1")
    _add_half(recording)
    recording.set_defaults(run=_alone(_prepare_recording))

    fetch = commands.add_parser("fetch", help="public data sets: which there are, their terms, their files")
    fetch.add_argument("data_set", nargs="?", metavar="DATASET", help="its terms and files; without: which there are")
    fetch.add_argument(
        "out", type=Path, nargs="?", metavar="DEST", help="folder; a call that was cut off goes on there"
    )
    fetch.add_argument("--subject", action="append", default=[], help="such as sub-01; may be repeated; default: all")
    fetch.add_argument("--accept-terms", action="store_true", help="you have read the terms and keep to them")
    fetch.add_argument("--listing", type=Path, help="TOML of your own, in the form of offline/data/files.toml")
    fetch.set_defaults(run=_fetch)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, help="folder above the files and the images")
    parser.add_argument("out", type=Path, help="new folder for the prepared store")
    parser.add_argument("--subject", default="sub-01", help="default: sub-01")
    parser.add_argument("--images", type=Path, help="folder above the images, where ROOT is not")
    _add_half(parser)


def _add_half(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--half", action="store_true", help="store float16: half of the space, three digits")


def _alone(command: _Command) -> _Command:
    """Refuse options that stand before DATASET: they are those of ``--check``, and would do nothing."""

    def run(args: argparse.Namespace, out: Console, err: Console) -> None:
        if args.check or args.check_images:
            raise ConfigError("prepare", got="options before DATASET", allowed="--check ROOT alone, or options behind")
        command(args, out, err)

    return run


def _check(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .data import layouts

    if args.check is None:
        raise ConfigError("prepare", got="nothing", allowed="a DATASET, or --check ROOT")
    if not args.check.is_dir():
        raise DataError(f"{args.check} is no folder")
    found, wrong = 0, 0
    for finding in layouts.check(args.check, args.check_images):
        found += 1
        wrong += bool(finding.problems)
        layout = finding.layout
        tell(out, f"{layout.dataset} {finding.subject}, {layout.name} ({layout.what}), {finding.place}")
        for text in finding.lines:
            tell(out, f"  {text}")
        for text in finding.problems:
            tell(out, f"  WRONG {text}")
    if not found:
        known = ", ".join(f"{layout.dataset} {layout.name}" for layout in layouts.LAYOUTS)
        raise DataError(f"no data set below {args.check}", allowed=known)
    if wrong:
        raise DataError(f"{wrong} of {found} have problems", do="see the lines that say WRONG")


def _prepare_things(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .data import layouts
    from .data.prepare import Recipe

    recipe = convert(read_toml(args.config), Recipe, f"config {args.config}") if args.config else None
    source = layouts.source(
        args.root, args.subject, dataset=args.dataset, layout=args.layout, images=args.images, recipe=recipe
    )
    _prepare(source, args.whitener or (recipe.whitener if recipe else "pooled"), args, out, err)


def _prepare_fmri(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .data import layouts, things_fmri

    config = f"config {args.config}"
    settings = convert(read_toml(args.config) if args.config else {}, things_fmri.FmriSettings, config)
    _, place = layouts.locate(args.root, "things_fmri", args.subject)
    _prepare(things_fmri.source(place, args.images or args.root, settings), "pooled", args, out, err)


def _prepare_recording(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .data.recording import RecordingSettings, RecordingSource

    settings = convert(read_toml(args.config), RecordingSettings, f"config {args.config}")
    parts: dict[PartName, tuple[float, float]] = {}
    if args.train or not args.test:
        parts["train"] = args.train or (0.0, 1.0)
    if args.test:
        parts["test"] = args.test
    tell(err, f"playing {args.recording}")
    beside = next(folder for folder in args.out.absolute().parents if folder.is_dir())  # where there must be room
    source = RecordingSource(args.recording, args.table, settings, parts, beside)
    _prepare(source, settings.recipe.whitener, args, out, err)


def _prepare(source: Source, whitening: Whitening, args: argparse.Namespace, out: Console, err: Console) -> None:
    from .data.prepare import prepare

    with progress(err) as report:
        meta = prepare(source, whitening, args.out, report, "float16" if args.half else "float32")
    _say_prepared(out, args.out, meta)


def _fetch(args: argparse.Namespace, out: Console, err: Console) -> None:
    from .data import fetch

    known = fetch.listing(args.listing or fetch.LISTING)
    if args.data_set is None:
        for name, data_set in known.items():
            tell(out, f"{name}: {data_set.what}")
        return
    if args.data_set not in known:
        raise ConfigError("data set", got=args.data_set, allowed=", ".join(known))
    data_set = known[args.data_set]
    files = data_set.of(args.subject)
    if args.out is None:
        for text in (data_set.what, f"terms: {data_set.terms}", f"page: {data_set.page}", f"from: {data_set.source}"):
            tell(out, text)
        for file in files:
            stated = f"sha256 {file.sha256}" if file.sha256 else f"md5 {file.md5}" if file.md5 else "no checksum listed"
            tell(out, f"  {file.path}  {file.url}  {stated}")
        return
    if not args.accept_terms:
        raise ConfigError(f"terms of {args.data_set}: {data_set.terms}", do=f"read {data_set.page}, add --accept-terms")
    for file in files:
        with progress(err) as report:
            checked = fetch.fetch(file, args.out, report)
        tell(out, f"{args.out / file.path}: {checked}")
    if data_set.after:
        tell(out, f"now {data_set.after}")


def _say_prepared(out: Console, path: Path, meta: Meta) -> None:
    from .data.store import Prepared

    prepared = Prepared(path)
    for name, items in meta.items.items():
        n = len(prepared.part(name).epochs)
        what = "stimuli" if meta.kind == "stimulus" else "classes"
        shape = f"{meta.shape[0]} channels x {meta.shape[1]} samples"
        tell(out, f"{path} {name}: {n} epochs of {len(items)} {what}, {shape}")
    if meta.offline_only:
        tell(out, f"offline only: {meta.offline_only}")


def _stretch(text: str) -> tuple[float, float]:
    start, _, stop = text.partition(":")
    try:
        return float(start), float(stop)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: FROM:TO, such as 0:0.5") from None
