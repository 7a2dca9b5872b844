"""`streamdec doctor`."""

from __future__ import annotations

import argparse
import datetime
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ConfigError


def add(command: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Add the command."""
    made = command("doctor", run, "examine the whole rig before a session, and say what to change")
    made.add_argument("bundle", nargs="?", help="bundle to examine it with")
    made.add_argument("--config", type=Path, help="TOML config, as for serve")
    made.add_argument("--eeg", metavar="QUERY", help="EEG stream, as for serve")
    made.add_argument("--markers", metavar="QUERY", help="marker stream, likewise")
    made.add_argument("--generator", type=Path, metavar="FOLDER", help="generator whose tiers to measure")
    made.add_argument("--record", type=Path, metavar="DIR", help="where sessions are to be recorded")
    made.add_argument("--photodiode", default="", metavar="CHANNEL", help="light sensor on the screen, by name")
    made.add_argument("--seconds", type=float, default=5.0, help="how long to listen (default: 5)")
    made.add_argument("--out", type=Path, metavar="FILE", help="write the findings to a page to print, .html or .txt")


def run(options: argparse.Namespace) -> int:
    """Examine, print what was found, and the verdict."""
    if options.out is not None and options.out.suffix not in (".html", ".txt"):
        raise ConfigError("--out", got=str(options.out), allowed="a file .html or .txt")
    from ..config import configured
    from ..page.document import to_html
    from .examine import examine
    from .finding import Finding, page, to_do, verdict

    config = configured(options)
    findings: list[Finding] = []
    for finding in examine(config, options.seconds, options.photodiode):
        findings.append(finding)
        print(finding.line(), flush=True)
    summary = [f"verdict: {verdict(findings)}", *(f"  {line}" for line in to_do(findings))]
    print("", *summary, sep="\n")
    if options.out is not None:
        now = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
        about = f"Examined on {socket.gethostname()}, {now}, with {Path(config.bundle).name or 'no bundle'}."
        if options.out.suffix == ".html":
            text = to_html(page(findings, about), f"streamdec {__version__}, streamdec doctor")
        else:
            text = "\n".join([about, "", *(finding.line() for finding in findings), "", *summary, ""])
        options.out.write_text(text, encoding="utf-8")
    return 1 if any(finding.fatal for finding in findings) else 0
