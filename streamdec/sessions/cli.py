"""``streamdec sessions`` and ``streamdec report``: what to do with recorded sessions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(command: Any) -> None:
    """Add the commands."""
    sessions = command("sessions", None, "list, verify, repair and export recorded sessions")
    kinds = sessions.add_subparsers(required=True, metavar="WHAT")

    def kind(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = kinds.add_parser(name, help=text, description=text)
        made.add_argument("path", type=Path, metavar="DIR_OR_SESSION", help="the folder of a session, or of several")
        made.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        made.set_defaults(run=run)
        return made

    kind("list", _list, "one line for each session: start, length, streams, decided onsets, bundle, state")
    verify = kind("verify", _verify, "check the files, the account, the messages' numbers, the bundle's hash")
    verify.add_argument("--bundle", type=Path, help="what it ran with (default: the one its config names, if here)")
    kind("repair", _repair, "make a session whole that was cut off, and say what it lost")

    export = kind("export", _export, "write sessions as FIF, or into a BIDS data set (extras `recordings`, `bids`)")
    target = export.add_mutually_exclusive_group(required=True)
    target.add_argument("--fif", type=Path, metavar="FILE_raw.fif", help="new file, of one session")
    target.add_argument("--bids", type=Path, metavar="ROOT", help="the data set's folder, made where it is not there")
    export.add_argument("--subject", metavar="LABEL", help="with --bids: who it was, letters and digits")
    export.add_argument("--task", default="rsvp", metavar="LABEL", help="with --bids (default: rsvp)")

    report = command("report", _report, "a page about a recorded session (needs the extra `report`)")
    report.add_argument("session", type=Path, help="its folder")
    report.add_argument("--out", type=Path, metavar="FILE.html", help="default: report.html in the folder")


def _list(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from . import folder, listing

    rows = [listing.row(path) for path in folder.find(options.path)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("session", "start", "length", "streams", "decided", "bundle", "state"):
        table.add_column(name, no_wrap=name != "streams")
    colours = {"complete": "green", "recording": "cyan", "repaired": "yellow"}
    for row in rows:
        cells = (row.name, row.start, row.length, row.streams, row.decided, row.bundle)
        table.add_row(*map(Text, cells), Text(row.state, colours.get(row.state, "red")))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    for row in rows:
        if row.note:
            console.print(Text(f"{row.name}: {row.note}"), soft_wrap=True)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from . import folder, verify

    good = True
    for path in folder.find(options.path):
        print(path)
        for finding in verify.verify(path, options.bundle):
            print(finding.line(), flush=True)
            good = good and finding.good is not False
    return 0 if good else 1


def _repair(options: argparse.Namespace) -> int:
    from ..errors import StreamdecError
    from . import folder, repair

    found = folder.find(options.path)
    failed = False
    for path in found:
        try:
            said = repair.repair(path) or "whole, nothing to repair"
        except StreamdecError as error:
            if len(found) == 1:
                raise
            said, failed = str(error), True
        print(f"{path}: {said}", flush=True)
    return 1 if failed else 0


def _export(options: argparse.Namespace) -> int:
    from ..errors import ConfigError
    from . import folder
    from .export import to_bids, to_fif

    found = folder.find(options.path)
    if options.fif and len(found) > 1:
        raise ConfigError("--fif", got=f"{len(found)} sessions", allowed="one", do="name its folder")
    if options.bids and not options.subject:
        raise ConfigError("--bids needs the subject", do="add --subject LABEL")
    for path in found:
        said = to_fif(path, options.fif) if options.fif else to_bids(path, options.bids, options.subject, options.task)
        print(said, flush=True)
    return 0


def _report(options: argparse.Namespace) -> int:
    from .report import report

    out = options.out or options.session / "report.html"
    report(options.session, out)
    print(out)
    return 0
