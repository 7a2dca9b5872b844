"""Messages to publish, and a publisher and a subscriber that are run in turns by one thread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import msgspec

from streamdec.feed import schema
from streamdec.feed.publisher import Publisher
from streamdec.feed.subscriber import Subscriber
from streamdec.feed.wire import Received
from streamdec.types import Candidate, StreamInfo

TIMING = schema.Timing(10.0, 10.001, 10.002, 10.003, 10.004, 10.005, 0.005, 0.05, deadline_met=True)


def onset(key: str = "a") -> schema.Onset:
    return schema.Onset(key=key, text=f"img_{key}", onset_time=1.5)


def retrieval(key: str = "a", dims: int = 0, *, final: bool = True, met: bool = True) -> schema.Retrieval:
    """A decision whose best candidate is ``key``, with an embedding of ``dims`` numbers."""
    return schema.Retrieval(
        key=key,
        onset_time=1.5,
        residual=1e-4,
        horizon=0.8,
        final=final,
        repetitions=3,
        candidates=(Candidate(key, f"label {key}", 0.5, 0.25), Candidate("other", "label other", 0.25, 0.125)),
        gallery_size=200,
        rank=1,
        stop=False,
        payloads=(schema.Payload(0, "embedding", dtype="<f4", shape=(dims,)),) if dims else (),
        timing=TIMING if met else schema.Timing(10.0, 10.1, 10.2, 10.3, 10.4, 10.5, 0.5, 0.05, deadline_met=False),
    )


def session(state: schema.SessionState, **more: object) -> schema.Session:
    return schema.Session(state=state, time=2.0, **more)  # type: ignore[arg-type]


def gallery(*pictures: bytes) -> schema.Gallery:
    return schema.Gallery(
        kind="stimulus",
        entries=tuple(schema.GalleryEntry(f"id{i}", f"label {i}", i) for i in range(len(pictures))),
        payloads=tuple(schema.Payload(i, "image", media="image/png", id=f"id{i}") for i in range(len(pictures))),
    )


def stats() -> schema.Stats:
    return schema.Stats(
        time=3.0,
        counts=schema.Counts(markers=2, onsets=2, decided=1, late=1),
        latency={"total": schema.Quantiles(1, 0.001, 0.002, 0.003, 0.004)},
        sfreq_effective=999.9,
    )


def signal() -> schema.Signal:
    """Three samples of two channels, to go with an array of shape (2, 3)."""
    entry = schema.Payload(0, "signal", dtype="<f4", shape=(2, 3))
    return schema.Signal(time=3.0, sfreq=100.0, ch_names=("Oz", "Pz"), bad={"Pz": "flat"}, payloads=(entry,))


def caption(key: str = "a", **changes: object) -> schema.Caption:
    return schema.Caption(**(_generated(key) | {"tier": "llm", "text": f"a {key} on grey"} | changes))  # type: ignore[arg-type]


def reconstruction(key: str = "a", picture: bytes = b"\x89PNG", **changes: object) -> schema.Reconstruction:
    described = {"tier": "latent", "source": "", "payloads": (schema.image(0, picture, key),)}
    return schema.Reconstruction(**(_generated(key) | described | changes))  # type: ignore[arg-type]


def _generated(key: str) -> dict[str, object]:
    timing = schema.GenerationTiming(10.0, 10.1, 10.2, 10.3, 10.4, 0.4, 0.5, deadline_met=True)
    fields = {"onset_time": 1.5, "repetitions": 3, "units": 2, "wanted": 4, "partial": False, "worker": "caption-1"}
    return {"key": key, "probability": 0.25, "timing": timing, **fields}


def stream_info() -> StreamInfo:
    return StreamInfo("amp", "EEG", 2, 1000.0, "float32", ch_names=("Oz", "Pz"), units=("microvolts",) * 2)


def one_of_each() -> tuple[schema.AnyMessage, ...]:
    return (
        session("started", bundle="demo", method="ridge", simulated=True, budgets={"retrieval": 0.05}),
        session("connected", stream="eeg", eeg=stream_info()),
        onset(),
        retrieval(),
        caption(),
        schema.Epoch(key="a", onset_time=1.5, outcome="rejected", reason="Fp1 railed"),
        schema.Dropped(what="marker", text="\x1b[31m[bold]?", reason="garbage"),
        stats(),
        gallery(),
        reconstruction(payloads=()),
    )


def messages() -> st.SearchStrategy[schema.AnyMessage]:
    """Any message that can be sent: finite numbers, integers of 53 bits."""
    return st.one_of(*(st.builds(kind) for kind in schema.AnyMessage.__args__)).map(
        lambda message: msgspec.convert(_sendable(msgspec.to_builtins(message)), schema.AnyMessage)
    )


def _sendable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sendable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sendable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-(2**53), min(2**53, value))
    return value


def collect(
    publisher: Publisher, feed: Subscriber, enough: Callable[[list[Received]], bool], limit: float = 20.0
) -> list[Received]:
    """Serve and receive in turns until ``enough`` holds of what came, and a little longer for what is too much."""
    got: list[Received] = []
    until = time.monotonic() + limit
    while not enough(got):
        assert time.monotonic() < until, f"not enough: {got}"
        publisher.serve()
        if (received := feed.receive(0.005)) is not None:
            got.append(received)
    for _ in range(5):
        publisher.serve()
        if (received := feed.receive(0.005)) is not None:
            got.append(received)
    return got
