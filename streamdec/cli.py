"""The command line: parse, build, run. The only file of the live side that prints or exits.

Exit codes: 0 done, 1 failed while running, 2 wrong call or config.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from . import __version__
from .calibrate import cli as calibrate_cli
from .dashboard import cli as dashboard_cli
from .doctor import cli as doctor_cli
from .errors import ConfigError, StreamdecError
from .present import cli as present_cli
from .relay import cli as relay_cli
from .sessions import cli as sessions_cli

_DECIDES = ("intake", "engine", "evidence", "session")  # parts of the config on which results depend
_QUERY = "key=value[,key=value]: name, type, source_id or predicate of the stream; a bare word is the name"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = parser().parse_args(argv)
    # One epoch is too small for two threads to help, and on a busy machine waiting for the second one takes 36 ms
    # instead of 0.5. Read when numpy is first imported, which the commands below do; it also fixes the order of sums.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    try:
        return int(options.run(options))
    except ConfigError as error:
        return _failed(error, 2, options.debug)
    except StreamdecError as error:
        return _failed(error, 1, options.debug)
    except KeyboardInterrupt:
        return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="streamdec",
        description="Shows, live, what a person with an EEG cap is looking at.",
        epilog="First time? `streamdec demo` plays a simulated subject. With an amplifier: `streamdec doctor BUNDLE`, "
        "then `streamdec serve BUNDLE`, and `streamdec watch` in a second terminal.",
    )
    top.add_argument("--version", action="version", version=f"streamdec {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument("--debug", action="store_true", help="show tracebacks")
        made.set_defaults(run=run)
        return made

    serve = command("serve", _serve, "decode an EEG stream live and publish the results")
    serve.add_argument("bundle", nargs="?", help="bundle: a folder or a .zip (or `bundle` in the config)")
    serve.add_argument("--config", type=Path, help="TOML config; see configs/README.md")
    serve.add_argument("--eeg", metavar="QUERY", help=f"EEG stream: {_QUERY}")
    serve.add_argument("--markers", metavar="QUERY", help="marker stream, likewise")
    serve.add_argument(
        "--record", type=Path, metavar="DIR", help="record what comes in and goes out, in a new folder inside DIR"
    )
    serve.add_argument("--log-json", action="store_true", help="say everything as JSON, one object a line")
    serve.add_argument(
        "--generator", type=Path, metavar="FOLDER", help="make captions and pictures with this generator"
    )
    serve.add_argument("--dashboard", action="store_true", help="show it on a web page of this machine")
    serve.add_argument(
        "--lsl", action="store_true", help="send the results as an LSL stream too (name streamdec, type Events)"
    )
    _feed_options(serve)

    record = command("record", _record, "record an EEG stream and its markers; needs no bundle")
    record.add_argument(
        "record",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="record in a new folder inside DIR (or `record` in the config)",
    )
    record.add_argument("--config", type=Path, help="TOML config, as for serve: inlet and intake count")
    record.add_argument("--eeg", metavar="QUERY", help=f"EEG stream: {_QUERY}")
    record.add_argument("--markers", metavar="QUERY", help="marker stream, likewise")
    record.add_argument("--seconds", type=float, help="how long (default: until you press Ctrl-C)")

    replay = command(
        "replay",
        _replay,
        "play a recording: as LSL streams in real time, or with --bundle through the loop, as fast as it goes, "
        "compared with the results in it; a session runs with the config it was recorded with, unless one is named",
    )
    replay.add_argument(
        "recording", type=Path, help="the folder of a session; XDF, FIF, BrainVision, EDF/BDF, EEGLAB, THINGS raw .npy"
    )
    replay.add_argument("--bundle", help="decode the recording with this bundle instead of playing LSL streams")
    replay.add_argument("--config", type=Path, help="TOML config, as for serve")
    replay.add_argument("--eeg", metavar="QUERY", help=f"with --bundle: EEG stream of the recording: {_QUERY}")
    replay.add_argument("--markers", metavar="QUERY", help="marker stream of the recording, likewise")
    replay.add_argument(
        "--speed", type=float, help="1 is real time; default: 1 as LSL streams, as fast as it goes with --bundle"
    )
    replay.add_argument("--from", dest="start", type=float, metavar="S", help="start S seconds into the recording")
    replay.add_argument("--to", dest="stop", type=float, metavar="S", help="stop S seconds into the recording")
    replay.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="S",
        help="as LSL streams: wait up to S seconds for someone to listen",
    )
    replay.add_argument(
        "--output", type=Path, metavar="FILE.jsonl", help="with --bundle: write every message, one JSON a line"
    )
    replay.add_argument(
        "--verify",
        action="store_true",
        help="with --bundle: fail unless the results are, byte for byte, those in the recording",
    )

    sessions_cli.add(command)

    worker = command("worker", _worker, "generate captions and pictures for a session on another machine")
    worker.add_argument("generator", type=Path, help="the session's generator: a copy of its folder")
    worker.add_argument("--connect", required=True, metavar="tcp://HOST:PORT", help="the session's generate.listen")
    worker.add_argument("--keys", type=Path, help="this machine's folder, made by streamdec keys")
    worker.add_argument(
        "--kind", choices=("caption", "reconstruction"), help="only this (default: all that the generator has)"
    )
    worker.add_argument("--device", default="cpu", help="as torch names it, such as cuda:0 (default: cpu)")
    worker.add_argument("--threads", type=int, default=1, help="on the CPU (default: 1)")

    watch = command("watch", _watch, "show the feed as a live table")
    watch.add_argument("--seconds", type=float, help="stop after so many seconds")
    watch.add_argument("--keys", type=Path, help="this client's folder, made by streamdec keys")
    _feed_options(watch)

    demo = command("demo", _demo, "play a simulated subject, decode it live, and show the feed")
    demo.add_argument(
        "--full", action="store_true", help="with captions and pictures, by small models (needs the extra `generate`)"
    )
    demo.add_argument("--dashboard", action="store_true", help="on a web page too")
    demo.add_argument("--headless", action="store_true", help="print a summary instead of the table")
    demo.add_argument(
        "--seconds", type=float, help="stop after so many seconds (default: when you press Ctrl-C; 30 with --headless)"
    )

    doctor_cli.add(command)

    bench = command(
        "bench", _bench, "measure the latency of this machine: simulated amplifier, real streams, real feed"
    )
    bench.add_argument("bundle", nargs="?", help="bundle (default: the demo's)")
    bench.add_argument("--events", type=int, default=200, help="stimuli (default: 200)")
    bench.add_argument("--soa", type=float, default=0.2, help="seconds from one stimulus to the next (default: 0.2)")
    bench.add_argument("--chunk", type=int, default=10, help="samples per packet of the amplifier (default: 10)")

    present_cli.add(command)
    relay_cli.add(command)
    calibrate_cli.add(command)
    dashboard_cli.add(command)

    keys = command("keys", _keys, "make the CURVE keys of a feed that is read, or workers that run, on other machines")
    keys.add_argument("folder", type=Path, help="new folder: the server's keys, and a folder to hand over per client")
    keys.add_argument(
        "clients", nargs="+", metavar="CLIENT", help="name of somebody who may read the feed, or of a worker"
    )
    return top


def _feed_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("--endpoint", help="feed, default tcp://127.0.0.1:5650 (and the two ports above it)")


def _serve(options: argparse.Namespace) -> int:
    from .config import configured
    from .serve import serve
    from .sessions.log import Console, Log

    log = Log(Console(as_json=options.log_json))
    log.say(account(serve(configured(options), log, dashboard=options.dashboard, lsl=options.lsl)))
    return 0


def _record(options: argparse.Namespace) -> int:
    from .config import configured
    from .record import record
    from .sessions.log import Console, Log
    from .stop import until_signal

    with until_signal() as stopped:
        record(configured(options), Log(Console(as_json=False)), seconds=options.seconds, stopped=stopped)
    return 0


def _worker(options: argparse.Namespace) -> int:
    from .decode.generate.join import join
    from .stop import until_signal

    if options.threads < 1:
        raise ConfigError("--threads", got=options.threads, allowed="1 or more")
    kinds = (options.kind,) if options.kind else ()
    with until_signal() as stopped:
        join(options.generator, options.connect, options.keys, kinds, options.device, options.threads, stopped, _say)
    return 0


def _replay(options: argparse.Namespace) -> int:
    from .config import configured

    config = configured(options)
    if options.bundle or config.bundle:
        if options.wait:
            raise ConfigError("--wait", got="with a bundle", allowed="where it is played as LSL streams")
        return _replay_through_loop(options, config)
    for needs in ("config", "eeg", "markers", "output", "verify"):
        if getattr(options, needs):
            raise ConfigError(f"--{needs} needs a bundle", do="add --bundle BUNDLE")
    from .acquire.recording import read
    from .acquire.replay import play
    from .stop import until_signal

    recording = read(options.recording).between(options.start, options.stop)
    for problem in recording.problems:
        _say(problem)
    with until_signal() as stopped:
        play(recording, speed=options.speed or 1.0, wait=options.wait, stop=stopped)
    return 0


def _replay_through_loop(options: argparse.Namespace, config: Any) -> int:
    from .acquire.recording import read
    from .acquire.replay import ReplayInlet
    from .feed import schema
    from .serve import engines, open_bundle, replay
    from .sessions.compare import Difference, Results
    from .sessions.folder import recorded_config

    whole = read(options.recording)
    recorded = recorded_config(whole) if options.config is None else None
    if recorded is not None:
        config = msgspec.structs.replace(config, **{part: getattr(recorded, part) for part in _DECIDES})
    bundle = open_bundle(config)
    recording = whole.between(options.start, options.stop)
    for problem in recording.problems:
        _say(problem)
    eeg = config.inlet.eeg if options.eeg or options.config else None
    markers = config.inlet.markers if options.markers or options.config else None
    inlet = ReplayInlet(recording, eeg, markers, speed=options.speed, trigger=config.intake.trigger is not None)
    outlet, counts = replay(config, inlet, bundle, engines(bundle, config, _say))
    if options.output:
        encode = msgspec.json.encode
        options.output.write_bytes(b"".join(encode(message) + b"\n" for message in outlet.messages))
    _say(account(counts))
    _say(f"results sha256 {hashlib.sha256(outlet.essence()).hexdigest()}")
    before = schema.recorded(recording.feed)
    if options.verify and (not before or recording is not whole):
        got = "a part of it" if before else f"no results in {options.recording}"
        raise ConfigError("--verify", got=got, allowed="a whole session, as streamdec serve --record makes them")
    if not before or recording is not whole:
        return 0
    difference = Difference(Results.of(before), Results.of(outlet.messages))
    if not difference.same:
        _say(_ran_with(before, bundle))
    for line in difference.lines():
        _say(line)
    return 1 if options.verify and not difference.same else 0


def _ran_with(recorded: Any, bundle: Any) -> str:
    """Say which bundles are compared, and whether the EEG is of a person."""
    from .feed.schema import Session

    started = next((m for m in recorded if isinstance(m, Session) and m.state == "started"), None)
    was = "another" if started is None else f"{started.method}, {started.bundle[:12]}"
    simulated = "; simulated EEG" if started is not None and started.simulated else ""
    return f"recorded by bundle {was}; replayed with {bundle.manifest.method}, {bundle.hash[:12]}{simulated}"


def _watch(options: argparse.Namespace) -> int:
    from rich.console import Console

    from .config import configured
    from .feed.subscriber import Subscriber
    from .watch import watch

    feed = configured(options).feed
    with Subscriber(feed.endpoint, keys=options.keys) as subscriber:
        watch(subscriber, Console(), seconds=options.seconds)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .demo import demo

    seconds = options.seconds if options.seconds or not options.headless else 30.0
    return demo(seconds, headless=options.headless, say=_say, full=options.full, dashboard=options.dashboard)


def _bench(options: argparse.Namespace) -> int:
    from .bench import bench

    for line in bench(options.bundle, options.events, options.soa, options.chunk):
        _say(line)
    return 0


def _keys(options: argparse.Namespace) -> int:
    from .access import make_keys

    for path in make_keys(options.folder, options.clients):
        _say(str(path))
    return 0


def account(counts: Any) -> str:
    """The account of a session in one line."""
    ends = ", ".join(
        f"{getattr(counts, end)} {end}" for end in ("decided", "rejected", "lost_data", "late", "cancelled")
    )
    refused = ", ".join(f"{getattr(counts, why)} {why}" for why in ("ignored", "duplicate", "garbage"))
    markers = f"{counts.markers} markers: {counts.onsets} onsets ({ends}), {refused}"
    return f"{markers}; {counts.samples} samples, {counts.gaps} gaps"


def _say(line: str) -> None:
    print(line, flush=True)


def _failed(error: StreamdecError, code: int, debug: bool) -> int:
    if debug:
        raise error
    print(f"streamdec: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
