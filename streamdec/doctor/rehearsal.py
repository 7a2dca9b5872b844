"""The budgets, measured on this machine: the whole loop on noise, at the stream's size, and what tiers cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import msgspec
import numpy as np

from ..acquire.markers import MarkerSettings
from ..config import Config
from ..decode.bundle import Bundle
from ..decode.generate.cost import Costs
from ..decode.generate.generator import open_generator
from ..decode.generate.job import LADDER, Kind
from ..errors import StreamdecError
from ..feed.schema import Epoch, Retrieval
from ..generation import BUDGETS
from ..serve import costs_folder, engines, generate, session
from ..session import MemoryOutlet
from ..signal.rate import Rate
from ..types import Chunk, ClockOffset, Event, Marker, StreamInfo
from .finding import Finding, judged

_EVENTS = 50
_SOA = 0.2  # s
_LEAD = 3.0  # s of signal before the first onset
_PACKET = 0.01  # s
_NOISE = 10.0  # microvolt, where the bundle does not say how much there usually is
_BUSY = 0.5  # of a core


def retrieval(bundle: Bundle, config: Config, eeg: StreamInfo | None) -> Iterator[Finding]:
    """Run the loop on noise, without waiting, and time each of its steps.

    Parameters
    ----------
    bundle : Bundle
    config : Config
    eeg : StreamInfo or None
        The stream, whose size counts; None for one that is just what the bundle needs.
    """
    manifest = bundle.manifest
    warnings: list[str] = []
    encoders = engines(bundle, config, warnings.append)
    yield from (Finding("budgets", "warning", warning) for warning in warnings)
    names = manifest.signal.ch_names
    eeg = eeg or StreamInfo("rehearsal", "EEG", len(names), manifest.signal.sfreq, "float32", ch_names=names)
    eeg = msgspec.structs.replace(eeg, units=("microvolts",) * eeg.n_chans)
    plain = msgspec.structs.replace(config.intake, unit="", trigger=None, counter=None, markers=MarkerSettings())
    outlet = MemoryOutlet()
    try:
        live = session(
            bundle,
            eeg,
            outlet,
            msgspec.structs.replace(config, intake=plain),
            encoders,
            time.perf_counter,
        )
    except StreamdecError as error:  # it does not fit, which has been said, or is said now
        yield Finding("budgets", "warning", f"nothing could be rehearsed: {error}")
        return
    live.start(eeg, None)
    decisions: list[float] = []
    packets: list[float] = []
    for event in _noise(bundle, eeg):
        before = len(outlet.messages)
        begun = time.perf_counter()
        live.step(event)
        took = time.perf_counter() - begun
        if any(isinstance(message, Retrieval) for message in outlet.messages[before:]):
            decisions.append(took)
        elif isinstance(event, Chunk):
            packets.append(took)
    live.close("rehearsed")
    if not decisions:
        reasons = {message.reason for message in outlet.messages if isinstance(message, Epoch)}
        yield Finding("budgets", "warning", f"noise led to no decision: {'; '.join(sorted(reasons))}")
        return
    budget = config.session.budget or manifest.budgets.get("retrieval", 0.05)
    p50, p95 = (1e3 * float(np.percentile(decisions, q)) for q in (50, 95))
    worst = max(decisions)
    stages = {name: 1e3 * live.telemetry.stages[name].quantile(0.5) for name in ("encode", "retrieve")}
    text = (
        f"decision among {len(bundle.gallery)}, {eeg.n_chans} channels at {eeg.sfreq:g} Hz: median {p50:.1f} ms, 95 % "
        f"{p95:.1f}, worst {1e3 * worst:.1f} of {len(decisions)} (encoder {stages['encode']:.1f}, gallery "
        f"{stages['retrieve']:.1f}); budget {1e3 * budget:.0f} ms"
    )
    do = "raise session.budget, end what keeps this machine busy, or compile the encoder: streamdec-train compile"
    yield judged("budgets", worst < budget, text, do)
    share = float(np.median(packets)) * eeg.sfreq / Rate(eeg.sfreq).to_samples(_PACKET)
    text = f"packets of {1e3 * _PACKET:.0f} ms take {100 * share:.1f} % of a core"
    yield judged("budgets", share < _BUSY, text, "lower the amplifier's rate, or leave channels out")


def _noise(bundle: Bundle, eeg: StreamInfo) -> Iterator[Event]:
    """Noise of the usual size, with the gallery's stimuli as markers."""
    rate = Rate(eeg.sfreq)
    n = rate.to_samples(_PACKET)
    sd = bundle.manifest.channel_sd
    scale = float(np.median(list(sd.values()))) if sd else _NOISE
    noise = np.random.default_rng(0).normal(0, scale, (eeg.n_chans, 64 * n)).astype(np.float32)
    yield ClockOffset("eeg", 0.0, 0.0, 0.0)
    yield ClockOffset("markers", 0.0, 0.0, 0.0)
    ids, marked, sent = bundle.gallery.ids, 0, 0
    while sent < rate.to_samples(_LEAD + _EVENTS * _SOA + bundle.manifest.signal.tmax + 1.0):
        at = sent % noise.shape[1]
        sent += n
        arrival = sent / eeg.sfreq
        yield Chunk(noise[:, at : at + n], np.arange(sent - n, sent) / eeg.sfreq, arrival)
        if marked < _EVENTS and (onset := _LEAD + marked * _SOA) <= arrival:
            yield Marker(ids[marked % len(ids)], onset, arrival)
            marked += 1


def generation(bundle: Bundle, config: Config) -> Iterator[Finding]:
    """Let the workers load and warm up, and say what their tiers cost: a quantile of the newest jobs."""
    settings = config.generate
    if not settings.generator:
        return
    try:
        with ExitStack() as stack:
            made = generate(bundle, config, stack, lambda line: None)
            assert made is not None
            budgets = made[0].budgets
            yield from (Finding("budgets", "warning", text) for text in made[1])
        costs = Costs(costs_folder(config), open_generator(settings.generator, bundle.manifest).hash)
    except StreamdecError as error:
        yield Finding("budgets", "fatal", str(error))
        return
    yield from tiers(costs, budgets)


def tiers(costs: Costs, budgets: Mapping[Kind, float]) -> Iterator[Finding]:
    """Say what is known of each tier's cost, beside the budget of its kind."""
    for kind, ladder in LADDER.items():
        budget = budgets.get(kind, BUDGETS[kind])
        for (tier, device, host), cost in costs.items():
            if tier in ladder and cost.first:
                first, further = (1e3 * seconds for seconds in (cost.seconds(1), cost.seconds(2) - cost.seconds(1)))
                each = f", {further:.0f} for each further step" if cost.each else ""
                share = f"{100 * cost.quantile:.0f} % of {len(cost.first)} jobs within {first:.0f} ms{each}"
                text = f"{kind} by {tier} on {device} of {host}: {share}; budget {1e3 * budget:.0f} ms"
                do = f"raise generate.{kind}.budget, or use a GPU: generate.{kind}.device"
                yield judged("budgets", cost.seconds(1) < budget, text, do)
