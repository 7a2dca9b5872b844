"""``streamdec calibrate``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError

_TEXT = "make a bundle fit this person, cap and day, on a block of known images"


def add(command: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Add the command."""
    made = command("calibrate", _calibrate, _TEXT)
    made.add_argument("bundle", help="bundle to start from: a folder or a .zip; it may be calibrated already")
    made.add_argument("recording", nargs="?", type=Path, help="the recorded block; without it, streams of the network")
    made.add_argument("--out", type=Path, required=True, metavar="NEW_BUNDLE", help="new folder or .zip")
    made.add_argument("--config", type=Path, help="TOML config, as for serve")
    made.add_argument("--eeg", metavar="QUERY", help="EEG stream, as for serve")
    made.add_argument("--markers", metavar="QUERY", help="marker stream, likewise")
    made.add_argument("--seconds", type=float, metavar="N", help="live: record so long")
    made.add_argument("--onsets", type=int, metavar="N", help="live: stop after so many markers")
    made.add_argument(
        "--photodiode", default="", metavar="CHANNEL", help="light sensor, by name or number; default: looked for"
    )
    made.add_argument("--latency", type=float, metavar="S", help="marker latency in seconds, where it is known")


def _calibrate(options: argparse.Namespace) -> int:
    import msgspec

    from ..config import configured
    from ..record import record
    from ..sessions.log import Console, Log
    from ..stop import until_signal
    from .run import Settings, check, run

    config = configured(options)
    live = options.recording is None
    if live and not (options.seconds or options.onsets):
        raise ConfigError("a live block", got="no end", allowed="--seconds N or --onsets N", do="or name a recording")
    if not live and (options.seconds or options.onsets):
        raise ConfigError("--seconds and --onsets", got="with a recording", allowed="for a live block")
    if options.photodiode and options.latency is not None:
        raise ConfigError("--photodiode", got="with --latency", allowed="where the latency is to be measured")
    recording = options.recording
    if live:
        check(config, options.out)  # before somebody sits through a block for nothing
        beside = str(options.out.with_name(f"{options.out.stem}-block"))
        with until_signal() as stopped:
            recording = record(
                msgspec.structs.replace(config, record=beside),
                Log(Console(as_json=False)),
                seconds=options.seconds,
                markers=options.onsets,
                stopped=stopped,
            )
    chosen = Settings(
        photodiode=options.photodiode,
        latency=options.latency,
        eeg=config.inlet.eeg if not live and options.eeg else None,
        markers=config.inlet.markers if not live and options.markers else None,
    )
    run(config, recording, options.out, chosen, _say)
    _say(f"wrote {options.out}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
