"""A session that generates: what it asks, what it says of what comes back, and its account."""

from __future__ import annotations

import itertools
import os
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundle import ScriptedInlet, events, presentation
from small_generator import LADDER, SENTENCES, plan_for, write_parts

from streamdec.acquire.lsl.library import local_clock
from streamdec.config import Config
from streamdec.decode import bundle as bundles
from streamdec.decode.bundle import Bundle
from streamdec.decode.generate.client import Client, Event, GenerateSettings, KindSettings
from streamdec.decode.generate.dispatcher import Local
from streamdec.decode.generate.job import KINDS, Answer, Drop, Kind, Request, Result
from streamdec.decode.generate.link import Notice
from streamdec.errors import BundleError, ConfigError
from streamdec.feed import schema
from streamdec.generation import BUDGETS, Generation, Maker
from streamdec.serve import engines, generate, session
from streamdec.session import MemoryOutlet, Session, run
from streamdec.types import Candidate

CLOCK = itertools.count(2000.0, 0.001)
PICTURE = b"\x89PNG\r\n\x1a\n"


class ScriptedMaker:
    """Answers as a script says: per request a list of events to come after it, for its id."""

    kinds: tuple[Kind, ...] = KINDS

    def __init__(self, script: dict[Kind, list[Any]] | None = None) -> None:
        self.asked: list[Request] = []
        self.workers: dict[str, Notice] = {}
        self.ready: deque[Event] = deque()
        self.most: list[int] = []
        self.finished = False
        self._script = script or {}

    def ask(self, request: Request) -> None:
        """Keep it, its arrays copied."""
        assert request.epoch is not None
        copied = {"embedding": request.embedding.copy(), "epoch": request.epoch.copy()}
        self.asked.append(msgspec.structs.replace(request, **copied))
        script = self._script.get(request.kind, [Drop(0, "no")])
        self.ready += [msgspec.structs.replace(event, id=request.id) for event in script]

    def poll(self, most: int) -> list[Event]:
        """What is ready."""
        self.most.append(most)
        return [self.ready.popleft() for _ in range(min(most, len(self.ready)))]

    def finish(self) -> list[Event]:
        """All that is left."""
        self.finished = True
        return self.poll(10**9)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def bundle(parts: tuple[Path, Path]) -> Bundle:
    return bundles.read(parts[0])


def played(bundle: Bundle, maker: Maker, n: int = 6, start: float = 1000.0) -> tuple[MemoryOutlet, Session]:
    data, onsets, keys = presentation(n)
    inlet = ScriptedInlet(events(data, onsets, keys, itertools.repeat(10), start))
    outlet, config = MemoryOutlet(), Config()
    generation = Generation(maker, BUDGETS, lambda: next(CLOCK))
    live = session(bundle, inlet.eeg, outlet, config, engines(bundle, config), generation=generation)
    live.start(inlet.eeg, inlet.markers)
    live.close(run(inlet, live, lambda: False))
    return outlet, live


def of(outlet: MemoryOutlet, kind: type) -> list[Any]:
    return [message for message in outlet.messages if isinstance(message, kind)]


def test_each_decision_asks_for_both_kinds(bundle: Bundle) -> None:
    maker = ScriptedMaker()
    outlet, _ = played(bundle, maker)
    decisions = of(outlet, schema.Retrieval)
    assert [(asked.id, asked.kind) for asked in maker.asked] == [
        (i + 1, KINDS[i % 2]) for i in range(2 * len(decisions))
    ]
    head = bundle.manifest.heads[-1]
    for asked, decision in zip(maker.asked, (d for d in decisions for _ in KINDS), strict=True):
        told = (asked.key, asked.repetitions, asked.due, asked.candidates)
        assert told == (decision.key, decision.repetitions, decision.timing.due, decision.candidates)
        assert asked.deadline == pytest.approx(asked.due + BUDGETS[asked.kind])
        encoded = engines(bundle, Config())[head.horizon](asked.epoch)
        np.testing.assert_allclose(asked.embedding, encoded, rtol=1e-4, atol=1e-4)
    started = of(outlet, schema.Session)[0]
    assert started.budgets == {"retrieval": 0.05, **BUDGETS}
    assert maker.finished
    assert set(maker.most[:-1]) == {4}


def test_what_comes_back_is_said_in_order(bundle: Bundle) -> None:
    text = Answer(0, "llm", Result(text="so far", units=1, wanted=9), 1.0, 2.0, "caption-1", partial=True)
    whole = msgspec.structs.replace(text, result=Result("a red ring", units=3, wanted=9), partial=False)
    picture = Answer(0, "nearest", Result(image=PICTURE, probability=0.5, source="img03"), 1.0, 2.0)
    outlet, _ = played(bundle, ScriptedMaker({"caption": [text, whole], "reconstruction": [picture]}))
    captions, pictures = of(outlet, schema.Caption), of(outlet, schema.Reconstruction)
    decisions = of(outlet, schema.Retrieval)
    assert [c.key for c in captions] == [d.key for d in decisions for _ in range(2)]
    first, second = captions[:2]
    assert (first.text, first.partial, first.units, first.wanted, first.worker) == ("so far", True, 1, 9, "caption-1")
    assert (second.text, second.partial, second.tier, second.onset_time) == (
        "a red ring", False, "llm", decisions[0].onset_time,
    )  # fmt: skip
    assert second.timing.published > second.timing.requested
    assert second.timing.latency == pytest.approx(second.timing.published - second.timing.due)
    assert second.timing.deadline_met == (second.timing.latency <= 0.3)
    assert (pictures[0].tier, pictures[0].source, pictures[0].probability) == ("nearest", "img03", 0.5)
    assert pictures[0].payloads == (schema.Payload(0, "image", media="image/png", id=decisions[0].key),)
    last = of(outlet, schema.Stats)[-1].generation
    assert last["caption"].requests == last["caption"].answered["llm"] == len(decisions)
    assert last["reconstruction"].answered == {"nearest": len(decisions)}
    assert isinstance(outlet.messages[-1], schema.Session)
    assert all(schema.essence(message) == b"" for message in (*captions, *pictures))


class Patient(ScriptedInlet):
    """Notes how long it may wait for the next event, and whether anything was open then."""

    def __init__(self, script: list[Any], maker: ScriptedMaker) -> None:
        super().__init__(script)
        self.waits: list[tuple[bool, float]] = []
        self._maker = maker

    def pull(self, timeout: float) -> Any:
        """The next event."""
        self.waits.append((bool(self._maker.ready), timeout))
        return super().pull(timeout)


def test_the_loop_looks_often_while_something_is_open(bundle: Bundle) -> None:
    """What comes between two packets is published then: a tier may answer 20 ms before its deadline."""
    maker = ScriptedMaker({kind: [Answer(0, "bank", Result(text="?"), 1.0, 2.0, partial=True)] * 6 for kind in KINDS})
    for script in maker._script.values():
        script.append(Drop(0, "no"))
    data, onsets, keys = presentation(3)
    inlet = Patient(events(data, onsets, keys, itertools.repeat(10)), maker)
    generation = Generation(maker, BUDGETS, lambda: next(CLOCK))
    live = session(bundle, inlet.eeg, MemoryOutlet(), Config(), engines(bundle, Config()), generation=generation)
    run(inlet, live, lambda: False)
    assert {(True, 0.005), (False, 0.05)} == set(inlet.waits)
    assert live.telemetry.stages["turn"].n == len(inlet.waits)


end = st.one_of(
    st.builds(Drop, st.just(0), st.sampled_from(["superseded", "no time left"])),
    st.builds(
        Answer, st.just(0), st.sampled_from(["bank", "llm"]), st.just(Result("text")), st.just(1.0), st.just(2.0)
    ),
)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_the_account_adds_up(parts: tuple[Path, Path], data: st.DataObject) -> None:
    maker = ScriptedMaker()
    maker.kinds = ("caption",)
    ends: list[Any] = []

    def ask(request: Request) -> None:
        ends.append(msgspec.structs.replace(data.draw(end), id=request.id))

    maker.ask = ask  # type: ignore[method-assign]
    generation = Generation(maker, BUDGETS, lambda: next(CLOCK))
    said: list[Any] = []
    for i in range(data.draw(st.integers(0, 8))):
        generation.ask(*decision(str(i)))
        place = data.draw(st.integers(0, len(ends)))
        maker.ready += ends[:place]
        del ends[:place]
        said += generation.take()
        one = generation.account()["caption"]
        assert one.requests == i + 1 == sum(one.answered.values()) + one.dropped + one.open
    maker.ready += ends
    said += generation.finish()
    one = generation.account()["caption"]
    assert one.open == 0
    assert len(said) == one.requests == sum(one.answered.values()) + one.dropped
    assert one.superseded <= one.dropped
    assert one.met == sum(message.timing.deadline_met for message, _ in said if isinstance(message, schema.Caption))


def decision(key: str) -> Any:
    from streamdec.decode.evidence import Query
    from streamdec.types import Epoch, Onset

    array = np.ones((2, 3), np.float32)
    epoch = Epoch(Onset(key, 1.0, key, 1.0), array, 0, 0, 0.0, 0.5, final=True, due=next(CLOCK))
    return epoch, Query(array[0], 0.5, 1, 1.0, array[0], array), (Candidate("a", "an a", 0.5, 0.5),)


def test_what_happens_to_workers_is_said(bundle: Bundle) -> None:
    maker = ScriptedMaker()
    maker.workers["w"] = Notice("w", "lost")
    states = [("w", "starting"), ("w", "ready"), ("w", "lost"), ("w", "starting"), ("w", "ready"), ("v", "failed")]
    maker.ready += [Notice(name, state, "why") for name, state in states]  # type: ignore[arg-type]
    maker.ready.append(Notice("", "failed", "turned away"))
    outlet, _ = played(bundle, maker, 1)
    said = [(m.worker, m.state, m.reason) for m in of(outlet, schema.Session) if m.reason in ("why", "turned away")]
    assert said == [
        ("w", "connected", "why"),
        ("w", "lost", "why"),
        ("w", "found", "why"),
        ("v", "warning", "why"),
        ("", "warning", "turned away"),
    ]
    assert of(outlet, schema.Stats)[-1].workers == {"w": "lost"}


# --- with the processes -----------------------------------------------------------------------------------------------


def test_a_session_with_its_processes_says_all(
    parts: tuple[Path, Path], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers = str(Path(__file__).parent / "helpers")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([helpers, *filter(None, [os.environ.get("PYTHONPATH")])]))
    client = Client(plan_for(*parts, workers=(Local("caption"),)), local_clock)
    try:
        client.open(60.0)
        outlet, _ = played(bundle, client, start=local_clock())
    finally:
        client.close()
    decisions = of(outlet, schema.Retrieval)
    whole = [m for m in of(outlet, schema.Caption) if not m.partial]
    made, dropped = of(outlet, schema.Reconstruction), of(outlet, schema.Dropped)
    assert len(whole) + len(made) + len(dropped) == 2 * len(decisions)
    assert {m.tier for m in made} == {"nearest"}  # it has no worker
    assert {m.tier for m in whole} <= {"bank", "llm"}
    assert all(m.text in SENTENCES for m in whole if m.tier == "bank")
    account = of(outlet, schema.Stats)[-1].generation
    assert account["caption"].open == account["reconstruction"].open == 0


@pytest.mark.parametrize("listen", ["", "tcp://127.0.0.1:0"])
def test_serve_starts_what_the_config_asks_for(parts: tuple[Path, Path], tmp_path: Path, listen: str) -> None:
    from contextlib import ExitStack

    none = KindSettings(workers=0, budget=0.25)
    asked = GenerateSettings(
        str(parts[1]), caption=none, reconstruction=KindSettings(on=False), listen=listen, costs=str(tmp_path)
    )
    config, said = Config(str(parts[0]), generate=asked), list[str]()
    with ExitStack() as stack:
        made = generate(bundles.read(parts[0]), config, stack, said.append)
        assert made is not None
        generation, missing = made
        assert generation.budgets == {"caption": 0.25}
        assert missing == []
    assert said[0].startswith("waiting for the workers of generator generator")
    assert any(line.startswith("workers may join at tcp://127.0.0.1:") for line in said) == bool(listen)


def test_serve_without_a_generator_starts_nothing(bundle: Bundle) -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        assert generate(bundle, Config(), stack, print) is None


def test_serve_refuses_a_generator_for_another_bundle(parts: tuple[Path, Path], tmp_path: Path) -> None:
    from contextlib import ExitStack

    from small_bundle import write_bundle

    other = bundles.read(write_bundle(tmp_path / "other", space="another space"))
    config = Config(generate=GenerateSettings(str(parts[1])))
    with ExitStack() as stack, pytest.raises(BundleError, match="another bundle"):
        generate(other, config, stack, lambda line: None)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"listen": "tcp://0.0.0.0:5"}, "there are no keys"),
        ({"caption": {"budget": 0}}, "generate budget; got 0"),
        ({"caption": {"workers": -1}}, "generate workers; got -1"),
        ({"caption": {"threads": 0}}, "generate threads; got 0"),
        ({"picture": {}}, "unknown key generate.picture"),
        ({"ladder": {"guard": -1}}, "ladder.guard"),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], problem: str) -> None:
    from streamdec.config import convert

    with pytest.raises(ConfigError, match=problem):
        convert({"generate": fields}, Config, "config")
    assert LADDER.grace == 0.5
