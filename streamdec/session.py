"""The hot loop: the only file that knows both ends.

A session is a function of its events. Every event goes to the recorder, through the intake, and what comes out is
decoded and published before the next event is looked at: one thread, no hand-off. Only latencies depend on the time
of day.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec
import numpy as np

from .acquire.inlet import Inlet
from .acquire.markers import Refused
from .decode.bundle import Bundle
from .decode.engine import Engine
from .decode.evidence import Evidence
from .decode.gallery import Gallery, rank, top
from .errors import ConfigError, EngineError
from .feed import schema
from .feed.publisher import Buffer
from .generation import Generation, Outgoing
from .intake import Intake, Notice
from .telemetry import Telemetry, resident_bytes
from .types import Candidate, Chunk, Ended, Epoch, Event, Float32, Marker, Onset, Outcome, StreamInfo

_STATS_EVERY = 1.0  # seconds
_REHEARSALS = 5
_EXPECTING = 0.005  # seconds between two looks for what was asked for: a tier may answer 20 ms before its deadline
STAGES = ("wait", "ready", "encode", "retrieve", "publish", "total", "turn")


class Outlet(Protocol):
    """Where messages go. The feed's publisher is one, :class:`MemoryOutlet` another."""

    def publish(self, message: schema.AnyMessage, payloads: Sequence[Buffer] = ()) -> bytes:
        """Send, never wait; return the header as it went out."""

    def wanted(self, topic: str) -> bool:
        """Tell whether somebody wants ``topic``, one that is made on demand."""

    def serve(self) -> None:
        """Answer who asks for a snapshot, within a bounded time."""


class Tape(Protocol):
    """Who keeps what came in and went out. :class:`streamdec.acquire.record.Recorder` is one."""

    dropped: int

    @property
    def broken(self) -> str:
        """Why nothing more is kept, "" while all is well."""

    def event(self, event: Event) -> None:
        """Keep what came in. Never waits."""

    def message(self, header: bytes) -> None:
        """Keep what went out. Never waits."""


class MemoryOutlet:
    """Keeps every message in a list: tests, replay and offline comparison."""

    def __init__(self) -> None:
        self.messages: list[schema.AnyMessage] = []

    def publish(self, message: schema.AnyMessage, payloads: Sequence[Buffer] = ()) -> bytes:
        """Keep the message."""
        self.messages.append(message)
        return b""

    def wanted(self, topic: str) -> bool:
        """Nobody does."""
        return False

    def serve(self) -> None:
        """Nobody asks."""

    def essence(self) -> bytes:
        """What must be the same, byte for byte, whenever the same events are played: see :func:`schema.essence`."""
        return schema.joined_essence(self.messages)


class SessionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each decision says.

    ``top_k`` candidates per decision; ``embedding`` send the query embedding along; ``budget`` seconds from the
    moment the epoch's last sample was due to the published retrieval, None for the bundle's own.
    """

    top_k: int = 5
    embedding: bool = True
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError("session.top_k", got=self.top_k, allowed="1 or more")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise ConfigError("session.budget", got=self.budget, allowed="more than 0, seconds, or none")


class Session:
    """From events to published decisions.

    Parameters
    ----------
    bundle : Bundle
    intake : Intake
        Made for the same bundle.
    engines : dict of float to Engine
        One per horizon of the bundle.
    evidence : Evidence
    outlet : Outlet
    clock : callable
        LSL clock, seconds; used for latencies alone.
    tape : Tape, optional
    settings : SessionSettings
    generation : Generation, optional
        Captions and reconstructions of each final decision.
    """

    def __init__(
        self,
        bundle: Bundle,
        intake: Intake,
        engines: dict[float, Engine],
        evidence: Evidence,
        outlet: Outlet,
        clock: Callable[[], float],
        tape: Tape | None = None,
        settings: SessionSettings = SessionSettings(),  # noqa: B008 - frozen
        generation: Generation | None = None,
    ) -> None:
        self._generation = generation
        self.bundle, self.intake, self.evidence = bundle, intake, evidence
        self.gallery: Gallery = bundle.gallery
        self._engines, self._outlet, self._clock, self._tape, self._settings = engines, outlet, clock, tape, settings
        self._chains = {head.horizon: bundle.chain(head) for head in bundle.manifest.heads}
        own = bundle.manifest.budgets.get("retrieval", 0.05)
        self._budget = own if settings.budget is None else settings.budget
        self.telemetry = Telemetry(STAGES)
        self._ends: dict[Outcome, int] = dict.fromkeys(("decided", "rejected", "lost_data", "late", "cancelled"), 0)
        self._refused = {"ignored": 0, "duplicate": 0, "garbage": 0}
        self._markers = self._onsets = self._samples = 0
        self._missed = 0  # decisions later than their budget
        self._now = -np.inf
        self._stats_due = -np.inf
        self._tape_broken = False

    def warm_up(self) -> None:
        """Lead made-up epochs through chain, encoder and gallery, and forget them: the first takes tens of ms more."""
        rng, signal = np.random.default_rng(0), self.bundle.manifest.signal
        for horizon, chain in self._chains.items():
            shape = (len(signal.ch_names), signal.until(horizon).window[1])
            with suppress(EngineError):  # a decision will say so
                for _ in range(_REHEARSALS):
                    features = chain(rng.normal(size=shape).astype(np.float32))
                    query = self.evidence.query("", horizon, features, self._engines[horizon])
                    scores = self.gallery.scores(query.embedding)
                    top(scores, self._settings.top_k)
                    self.evidence.probabilities(query, scores)
        self.evidence.reset()

    def start(self, eeg: StreamInfo, markers: StreamInfo | None) -> None:
        """Say what this session is: its bundle, its streams, its gallery."""
        manifest = self.bundle.manifest
        budgets = {"retrieval": self._budget}
        if self._generation is not None:
            budgets |= {str(kind): budget for kind, budget in self._generation.budgets.items()}
        self._publish(
            schema.Session(
                state="started",
                time=self._clock(),
                bundle=self.bundle.hash,
                method=manifest.method,
                eeg=eeg,
                markers=markers,
                simulated=manifest.simulated,
                budgets=budgets,
            )
        )
        self._publish_gallery()

    def warn(self, reason: str) -> None:
        """Say what is not as it was asked for."""
        self._publish(schema.Session(state="warning", time=self._clock(), reason=reason))

    def turn(self, event: Event | None) -> None:
        """One turn of the loop, None where nothing came in, and how long it was away from the streams."""
        began = self._clock()
        if event is None:
            self.idle()
        else:
            self.step(event)
        self.telemetry.add("turn", self._clock() - began)

    def step(self, event: Event) -> None:
        """Take one event through to the feed."""
        if self._tape is not None:
            self._tape.event(event)
        self._now = event.arrival
        if isinstance(event, Chunk):
            self._samples += len(event.stamps)
        elif isinstance(event, Marker):
            self._markers += 1
        for output in self.intake(event):
            if isinstance(output, Epoch):
                self._decide(output, event.arrival)
            elif isinstance(output, Onset):
                self._onsets += 1
                self._publish(schema.Onset(key=output.key, text=output.text, onset_time=output.time))
            elif isinstance(output, Ended):
                self._end(output.onset, output.outcome, output.reason)
            elif isinstance(output, Refused):
                self._refused[output.reason] += 1
                self._publish(schema.Dropped(what="marker", text=output.text, reason=output.reason))
            else:
                self._notice(output)
        if self._outlet.wanted("signal"):
            self._show()
        if event.arrival >= self._stats_due:
            self._stats_due = event.arrival + _STATS_EVERY
            self._second()
        self.idle()

    @property
    def expecting(self) -> bool:
        """Whether captions or pictures were asked for that are still to come."""
        return self._generation is not None and self._generation.open > 0

    def idle(self) -> None:
        """Nothing came in: say what was generated meanwhile, answer who asks."""
        if self._generation is not None:
            self._say(self._generation.take())
        self._outlet.serve()

    def close(self, reason: str) -> schema.Counts:
        """Cancel what is open, say bye with the final account, and return it.

        The account adds up: every marker is ignored, a duplicate, garbage or an onset, and every onset has exactly
        one end.
        """
        for ended in self.intake.close(self._now):
            self._end(ended.onset, ended.outcome, ended.reason)
        if self._generation is not None:
            self._say(self._generation.finish())
            self._stats()
        counts = self.counts()
        assert counts.onsets == sum(self._ends.values()), counts
        self._publish(schema.Session(state="ended", time=self._clock(), reason=reason, counts=counts))
        self._outlet.serve()
        return counts

    def counts(self) -> schema.Counts:
        """The account so far."""
        clock = self.intake.clock
        triggered = self._onsets + sum(self._refused.values()) if self.intake.trigger is not None else self._markers
        return schema.Counts(
            markers=triggered,
            onsets=self._onsets,
            open=self.intake.epochs.open,
            samples=self._samples,
            missing_samples=clock.missing,
            gaps=clock.gaps,
            segments=clock.segments,
            unrecorded=0 if self._tape is None else self._tape.dropped,
            lost_markers=self.intake.markers.lost,
            **self._refused,
            **self._ends,
        )

    def _decide(self, epoch: Epoch, arrival: float) -> None:
        ready = self._clock()
        key, gallery = epoch.onset.key, self.gallery
        features = self._chains[epoch.horizon](epoch.data)
        try:
            query = self.evidence.query(key, epoch.horizon, features, self._engines[epoch.horizon])
        except EngineError as error:
            if epoch.final:
                self._end(epoch.onset, "rejected", str(error))
            return
        encoded = self._clock()
        scores = gallery.scores(query.embedding)
        best = top(scores, self._settings.top_k)
        probabilities = self.evidence.probabilities(query, scores)
        own = gallery.index_of(key)
        candidates = tuple(
            Candidate(gallery.ids[i], gallery.labels[i], float(scores[i]), float(probabilities[i])) for i in best
        )
        retrieved = self._clock()
        payloads: tuple[schema.Payload, ...] = ()
        frames: tuple[Float32, ...] = ()
        if self._settings.embedding:
            payloads = (schema.embedding(0, query.embedding, key),)
            frames = (query.embedding,)
        published = self._clock()
        latency = published - epoch.due
        self._publish(
            schema.Retrieval(
                key=key,
                onset_time=epoch.onset.time,
                residual=epoch.residual,
                horizon=epoch.horizon,
                final=epoch.final,
                repetitions=query.repetitions,
                candidates=candidates,
                gallery_size=len(gallery),
                rank=None if own is None else rank(scores, own) + 1,
                stop=self.evidence.enough(query, float(probabilities[best[0]])),
                interpolated_channels=epoch.interpolated_channels,
                interpolated_samples=epoch.n_interpolated,
                flags=epoch.flags,
                payloads=payloads,
                timing=schema.Timing(
                    due=epoch.due,
                    arrival=arrival,
                    ready=ready,
                    encoded=encoded,
                    retrieved=retrieved,
                    published=published,
                    latency=latency,
                    budget=self._budget,
                    deadline_met=latency <= self._budget,
                ),
            ),
            frames,
        )
        done = self._clock()
        if self._generation is not None and epoch.final:
            self._generation.ask(epoch, query, candidates)
        self._missed += latency > self._budget
        add = self.telemetry.add
        add("wait", arrival - epoch.due)
        add("ready", ready - arrival)
        add("encode", encoded - ready)
        add("retrieve", retrieved - encoded)
        add("publish", done - retrieved)
        add("total", done - epoch.due)
        if epoch.final:
            self._end(epoch.onset, "decided", "")

    def _end(self, onset: Onset, outcome: Outcome, reason: str) -> None:
        self._ends[outcome] += 1
        self._publish(schema.Epoch(key=onset.key, onset_time=onset.time, outcome=outcome, reason=reason))

    def _notice(self, notice: Notice) -> None:
        self._publish(schema.Session(state=notice.state, time=notice.time, stream=notice.stream, reason=notice.reason))

    def _say(self, messages: Sequence[Outgoing]) -> None:
        for message, payloads in messages:
            self._publish(message, payloads)

    def _show(self) -> None:
        """Publish the newest of the signal, past the recorder: it has what came in."""
        scope = self.intake.scope
        missing = dict.fromkeys(self.intake.map.missing, "missing")
        for excerpt in scope():
            message = schema.Signal(
                time=excerpt.time,
                sfreq=scope.sfreq,
                ch_names=scope.ch_names,
                bad={**excerpt.bad, **missing},
                payloads=(schema.Payload(0, "signal", dtype="<f4", shape=excerpt.data.shape),),
            )
            self._outlet.publish(message, (excerpt.data,))

    def _second(self) -> None:
        self._stats()
        if self._tape is not None and self._tape.broken and not self._tape_broken:
            self._tape_broken = True
            self._publish(schema.Session(state="unrecorded", time=self._now, reason=self._tape.broken))

    def _stats(self) -> None:
        clock, generation = self.intake.clock, self._generation
        self._publish(
            schema.Stats(
                time=self._now,
                counts=self.counts(),
                latency={
                    name: schema.Quantiles(h.n, h.quantile(0.5), h.quantile(0.95), h.quantile(0.99), h.max)
                    for name, h in self.telemetry.stages.items()
                    if h.n
                },
                sfreq_effective=clock.sfreq_effective,
                clock_offset=clock.offset_value,
                clock_jitter=clock.jitter,
                drift_ppm=clock.drift_ppm,
                memory=resident_bytes(),
                generation={} if generation is None else generation.account(),
                workers={} if generation is None else generation.workers(),
                missed=self._missed,
            )
        )

    def _publish_gallery(self) -> None:
        entries: list[schema.GalleryEntry] = []
        frames: list[bytes] = []
        payloads: list[schema.Payload] = []
        for id_, label in zip(self.gallery.ids, self.gallery.labels, strict=True):
            picture = self.bundle.thumbnail(id_)
            if picture is not None:
                payloads.append(schema.image(len(frames), picture, id_))
                frames.append(picture)
            entries.append(schema.GalleryEntry(id_, label, None if picture is None else len(frames) - 1))
        self._publish(schema.Gallery(kind=self.gallery.kind, entries=tuple(entries), payloads=tuple(payloads)), frames)

    def _publish(self, message: schema.AnyMessage, payloads: Sequence[Buffer] = ()) -> None:
        header = self._outlet.publish(message, payloads)
        if self._tape is not None:
            self._tape.message(header)


def run(inlet: Inlet, session: Session, stopped: Callable[[], bool], poll: float = 0.05) -> str:
    """Pull events through the session until the inlet ends or somebody stops it.

    Returns
    -------
    str
        Why it ended: "stopped" or "end of recording".
    """
    while not stopped():
        event = inlet.pull(_EXPECTING if session.expecting else poll)
        session.turn(event)
        if not isinstance(event, (Chunk, Marker)) and getattr(event, "state", "") == "ended":
            return "end of recording"
    return "stopped"
