"""Puts a session together from its config and runs it: live, and from a recording."""

from __future__ import annotations

import gc
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from . import child
from .acquire.inlet import Inlet
from .acquire.lsl.inlet import LslInlet
from .acquire.lsl.library import local_clock
from .config import Config
from .decode import bundle as bundles
from .decode.adapt import AdaptedEngine
from .decode.bundle import Bundle
from .decode.compiled import CompiledEngine, cache_folder, slot
from .decode.engine import Engine, OnnxEngine
from .decode.evidence import Evidence
from .decode.generate.client import Client, plan, tell
from .decode.manifest import Head
from .errors import ConfigError, EngineError, StreamdecError
from .feed.publisher import Publisher
from .feed.schema import Counts
from .generation import BUDGETS, Generation
from .intake import Intake, IntakeSettings
from .priority import go_first, stay
from .session import MemoryOutlet, Outlet, Session, Tape, run
from .sessions.log import Log
from .sessions.minutes import Kept, Minutes
from .stop import until_signal as until_signal
from .types import StreamInfo


def open_bundle(config: Config) -> Bundle:
    """Read and verify the bundle the config names."""
    if not config.bundle:
        raise ConfigError("no bundle", do="name one: streamdec serve BUNDLE, or `bundle` in the config")
    return bundles.read(Path(config.bundle))


def intake_settings(bundle: Bundle, config: Config) -> IntakeSettings:
    """Settings of the intake: the config's, and where it leaves them open what the bundle was calibrated to."""
    settings, calibrated = config.intake, bundle.manifest.calibrated
    if calibrated is None:
        return settings
    replace, markers = msgspec.structs.replace, settings.markers
    if markers.latency is None and calibrated.latency is not None:
        markers = replace(markers, latency=calibrated.latency.seconds)
    return replace(settings, markers=markers, unit=settings.unit or calibrated.unit)


def resolved(bundle: Bundle, config: Config) -> Config:
    """Give the config that a session keeps: with the unit that the bundle was calibrated to, which is the stream's.

    Who reads the recording with another bundle, or without one, is to have it too; the latency stays the bundle's.
    """
    intake = msgspec.structs.replace(config.intake, unit=intake_settings(bundle, config).unit)
    return msgspec.structs.replace(config, intake=intake)


def misfits(bundle: Bundle, intake: Intake) -> Iterator[str]:
    """Say what the bundle's calibration does not fit: a cap without other channels, a latency that does not last."""
    calibrated = bundle.manifest.calibrated
    if calibrated is None:
        return
    if set(calibrated.missing) != set(intake.map.missing):
        now, then = (", ".join(names) or "none" for names in (intake.map.missing, calibrated.missing))
        yield f"channels missing: {now}; the bundle was calibrated with {then} missing: calibrate it anew"
    latency = calibrated.latency
    if latency is not None and latency.drift is not None and latency.drifts:
        yield (
            f"markers and EEG drift apart by {6e4 * latency.drift:+.1f} ms/min, as the block showed: after "
            f"{0.01 / abs(latency.drift) / 60:.1f} min epochs are 10 ms off; let the amplifier's LSL outlet stamp by "
            "the clock, or calibrate anew before then"
        )


def engines(bundle: Bundle, config: Config, fell_back: Callable[[str], None] | None = None) -> dict[float, Engine]:
    """One warm encoder per horizon.

    Parameters
    ----------
    bundle : Bundle
    config : Config
    fell_back : callable, optional
        Told why ONNX runs where a compiled engine was asked for. Without it that is an error.

    Raises
    ------
    EngineError
        An encoder cannot be loaded.
    """
    made: dict[float, Engine] = {}
    for head in bundle.manifest.heads:
        try:
            engine: Engine = _engine(bundle, head, config)
        except EngineError as error:
            if fell_back is None or config.engine.kind == "onnx":
                raise
            fell_back(str(error))
            engine = OnnxEngine(bundle.encoder(head), head, config.engine.threads)
        adaptation = bundle.adaptation(head)
        if adaptation is not None:
            engine = AdaptedEngine(engine, adaptation)
        engine.warm_up()
        made[head.horizon] = engine
    return made


def _engine(bundle: Bundle, head: Head, config: Config) -> Engine:
    asked = config.engine
    if asked.kind == "onnx":
        return OnnxEngine(bundle.encoder(head), head, asked.threads, asked.device)
    digest = bundle.manifest.files[head.encoder]
    folder = slot(cache_folder(asked.cache), digest, asked.kind, asked.device)
    try:
        return CompiledEngine(
            folder, digest, head, asked.kind, asked.threads, asked.device, cuda_graph=asked.cuda_graph
        )
    except EngineError as error:
        where = "" if asked.kind != "aoti" else f" --device {asked.device}"
        raise EngineError(
            f"no {asked.kind} engine for {head.encoder}, ONNX on the CPU instead: {error}",
            do=f"build it: streamdec-train compile {bundle.path.name} --engine {asked.kind}{where}",
        ) from error


def session(
    bundle: Bundle,
    eeg: StreamInfo,
    outlet: Outlet,
    config: Config,
    encoders: dict[float, Engine],
    clock: Callable[[], float] = local_clock,
    tape: Tape | None = None,
    generation: Generation | None = None,
) -> Session:
    """A session on an EEG stream."""
    manifest = bundle.manifest
    horizons = tuple(head.horizon for head in manifest.heads)
    intake = Intake(manifest.signal, eeg, intake_settings(bundle, config), horizons, manifest.channel_sd)
    evidence = Evidence(manifest.evidence, manifest.heads, config.evidence)
    return Session(bundle, intake, encoders, evidence, outlet, clock, tape, config.session, generation)


def costs_folder(config: Config) -> Path:
    """Where it is kept what each tier was measured to cost."""
    return Path(config.generate.costs) if config.generate.costs else cache_folder().parent / "costs"


def generate(
    bundle: Bundle,
    config: Config,
    stack: ExitStack,
    say: Callable[[str], None],
    clock: Callable[[], float] = local_clock,
) -> tuple[Generation, list[str]] | None:
    """Start and warm up what generates captions and reconstructions; it ends with the stack.

    Returns
    -------
    Generation and list of str, or None
        With what is not as it was asked for; None where the config names no generator.

    Raises
    ------
    BundleError
        The generator cannot be used, or not with this bundle.
    """
    settings = config.generate
    if not settings.generator:
        return None
    asked = plan(settings, bundle.path)
    asked = msgspec.structs.replace(asked, costs=str(costs_folder(config).resolve()))
    client = Client(asked, clock)
    stack.callback(client.close)
    say(f"waiting for the workers of generator {Path(settings.generator).name} to load and warm up")
    client.open(settings.wait, say)
    if client.listening:
        say(f"workers may join at {client.listening}")
    budgets = {
        kind: settings.of(kind).budget or bundle.manifest.budgets.get(kind, budget) for kind, budget in BUDGETS.items()
    }
    missing = [tell(notice) for notice in client.workers.values() if notice.state != "ready"]
    return Generation(client, budgets, clock), missing


def serve(config: Config, log: Log, *, dashboard: bool = False, lsl: bool = False) -> Counts:
    """Serve until SIGINT or SIGTERM; return the account.

    Parameters
    ----------
    config : Config
    log : Log
        Told what was found, when the session is ready, and what changes while it runs.
    dashboard : bool
        Start one beside it.
    lsl : bool
        Start a relay beside it, to an LSL stream of the results.
    """
    bundle = open_bundle(config)
    if bundle.manifest.calibrated is not None:
        log.say(f"bundle {bundle.path.name} is {bundle.manifest.calibrated.line()}")
    warnings: list[str] = []
    encoders = engines(bundle, config, warnings.append)
    log.session = session_id = uuid.uuid4().hex
    with ExitStack() as stack:
        stopped = stack.enter_context(until_signal())
        publisher = Publisher(config.feed, session_id)
        stack.callback(publisher.close)
        if dashboard:
            log.say(child.start(stack, "dashboard", publisher.endpoint, config.feed.keys))
        if lsl:
            log.say(child.start(stack, "relay", publisher.endpoint, config.feed.keys, ("--lsl",)))
        outlet = Minutes(publisher, log)
        generating = generate(bundle, config, stack, log.say)
        if generating is not None:
            warnings += generating[1]
        inlet = LslInlet(
            config.inlet.eeg, None if config.intake.trigger else config.inlet.markers, stall=config.inlet.stall
        )
        stack.callback(inlet.close)
        inlet.open(config.inlet.wait or float("inf"))
        kept: Kept | None = None
        if config.record:
            as_json = msgspec.json.encode(resolved(bundle, config))
            kept = Kept(Path(config.record), session_id, bundle, inlet.eeg, inlet.markers, as_json, log, local_clock)
            outlet.keep(kept)
            stack.callback(kept.close)
        live = session(
            bundle,
            inlet.eeg,
            outlet,
            config,
            encoders,
            tape=None if kept is None else kept.recorder,
            generation=generating and generating[0],
        )
        live.warm_up()
        # What lives now lives until the end: keep the collector from walking through it in the loop.
        gc.collect()
        gc.freeze()
        try:
            if kept is not None:
                kept.wait()
            # Where it may not, it is as fast while nothing else wants the processors; doctor tells.
            if not go_first() and generating is not None:
                stay()
            live.start(inlet.eeg, inlet.markers)
            for warning in (*warnings, *misfits(bundle, live.intake)):
                live.warn(warning)
            log.say(f"feed at {publisher.endpoint}")
            if kept is not None:
                log.say(f"recording to {kept.path}")
            reason = run(inlet, live, stopped)
        except (StreamdecError, KeyboardInterrupt) as error:
            live.close(str(error) or "stopped")
            raise
        return live.close(reason)


def replay(config: Config, inlet: Inlet, bundle: Bundle, encoders: dict[float, Engine]) -> tuple[MemoryOutlet, Counts]:
    """Run a recording through the loop in this process; return what it published and the account."""
    outlet = MemoryOutlet()
    with inlet:
        inlet.open(0.0)
        played = session(bundle, inlet.eeg, outlet, config, encoders)
        played.start(inlet.eeg, inlet.markers)
        reason = run(inlet, played, lambda: False)
        return outlet, played.close(reason)
