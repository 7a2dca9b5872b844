"""The newest statistics of a session as Prometheus metrics.

They are read when somebody asks, from the last `stats` message: counters are the session's own and begin anew with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from ..feed.schema import Generation, Quantiles, Stats
from .hub import Hub

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FRESH = 5.0  # s without a sign of the feed after which the session counts as down
_ENDS = ("decided", "rejected", "lost_data", "late", "cancelled")
_REFUSED = ("ignored", "duplicate", "garbage")

Samples: TypeAlias = float | Iterable[tuple[dict[str, str], float]]
"""One value, or values by their labels."""


class Metrics(Collector):
    """Collects from a hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """Give all metrics in the text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield one family after the other."""
        hub = self._hub
        up = hub.stats is not None and hub.silence < _FRESH
        yield _family("gauge", "up", "1 while the session gives signs of life", up)
        yield _family("gauge", "dashboard_browsers", "Pages that look at the dashboard", len(hub.browsers))
        lost = hub.lost + sum(browser.lost for browser in hub.browsers)
        yield _family("counter", "dashboard_lost_messages", "Messages that pages were too slow for", lost)
        yield _family("counter", "dashboard_missed_messages", "Messages of the feed that never came", hub.missed)
        if hub.started is not None:
            about = {name: getattr(hub.started, name) for name in ("session", "bundle", "method")}
            yield _family("gauge", "session_info", "What runs; always 1", [(about, 1)])
        if hub.stats is not None:
            yield from _stats(hub.stats)


def _stats(stats: Stats) -> Iterator[Metric]:
    counts = stats.counts
    yield _family("counter", "markers", "Markers received", counts.markers)
    refused = [({"reason": why}, getattr(counts, why)) for why in _REFUSED]
    yield _family("counter", "markers_refused", "Markers that began no epoch", refused)
    yield _family("gauge", "lost_markers", "Markers that never came, by their numbering", counts.lost_markers)
    yield _family("counter", "onsets", "Markers that began an epoch", counts.onsets)
    ends = [({"outcome": end}, getattr(counts, end)) for end in _ENDS]
    yield _family("counter", "epochs", "Onsets that have ended, by outcome", ends)
    yield _family("gauge", "epochs_open", "Onsets that wait for their samples", counts.open)
    yield _family("counter", "samples", "EEG samples received, per channel", counts.samples)
    yield _family("counter", "missing_samples", "EEG samples lost in gaps, per channel", counts.missing_samples)
    yield _family("counter", "gaps", "Gaps in the EEG", counts.gaps)
    yield _family("counter", "unrecorded", "Records that the recorder could not take", counts.unrecorded)
    yield _latency(stats.latency)
    missed = [({"kind": "retrieval"}, stats.missed)]
    missed += [({"kind": kind}, sum(made.answered.values()) - made.met) for kind, made in stats.generation.items()]
    yield _family("counter", "deadline_missed", "Results later than their budget", missed)
    yield from _generation(stats.generation)
    workers = [({"worker": name, "state": state}, 1) for name, state in stats.workers.items()]
    yield _family("gauge", "worker_state", "1 for the state each worker is in", workers)
    yield _family("gauge", "resident_memory_bytes", "Resident memory of the session's process", stats.memory)
    yield _family("gauge", "eeg_rate_hertz", "Rate of the EEG by regression", stats.sfreq_effective)
    yield _family("gauge", "clock_offset_seconds", "LSL clock minus the clock of the EEG's sender", stats.clock_offset)
    yield _family("gauge", "clock_jitter_seconds", "Spread of the EEG's stamps around their line", stats.clock_jitter)
    yield _family("gauge", "clock_drift_ppm", "Drift of the sender's clock, parts per million", stats.drift_ppm)


def _generation(kinds: dict[str, Generation]) -> Iterator[Metric]:
    requests = [({"kind": kind}, made.requests) for kind, made in kinds.items()]
    yield _family("counter", "generation_requests", "Captions and reconstructions asked for", requests)
    tiers = [({"kind": kind, "tier": tier}, n) for kind, made in kinds.items() for tier, n in made.answered.items()]
    yield _family("counter", "generated", "Captions and reconstructions made, by tier", tiers)
    dropped = [({"kind": kind}, made.dropped) for kind, made in kinds.items()]
    yield _family("counter", "generation_dropped", "Requests that ended without a result", dropped)
    superseded = [({"kind": kind}, made.superseded) for kind, made in kinds.items()]
    yield _family("counter", "generation_superseded", "Of these, replaced by newer evidence", superseded)
    waiting = [({"kind": kind}, made.open) for kind, made in kinds.items()]
    yield _family("gauge", "generation_open", "Requests without an end yet", waiting)


def _latency(stages: dict[str, Quantiles]) -> Metric:
    name = "streamdec_latency_seconds"
    family = Metric(name, "Latency by stage; total: from the epoch's end to the published decision", "summary")
    for stage, q in stages.items():
        for quantile, value in (("0.5", q.p50), ("0.95", q.p95), ("0.99", q.p99), ("1", q.max)):
            family.add_sample(name, {"stage": stage, "quantile": quantile}, value)
        family.add_sample(f"{name}_count", {"stage": stage}, q.n)
    return family


def _family(kind: Literal["counter", "gauge"], name: str, text: str, samples: Samples) -> Metric:
    family = Metric(f"streamdec_{name}", text, kind)
    for labels, value in [({}, samples)] if isinstance(samples, (int, float)) else samples:
        family.add_sample(f"streamdec_{name}{'_total' if kind == 'counter' else ''}", labels, value)
    return family
