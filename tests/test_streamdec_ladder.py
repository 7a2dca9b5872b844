"""The ladder as a state machine: any order of events, every request one end; and a simulated stream of requests."""

from __future__ import annotations

import copy
import math
from collections import Counter
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamdec.decode.generate.cost import Cost
from streamdec.decode.generate.job import KINDS, LADDER, Answer, Drop, Kind, Request, Result, Tier
from streamdec.decode.generate.ladder import (
    Action,
    AnswerHere,
    Cancel,
    Kill,
    Ladder,
    LadderSettings,
    Offer,
    Send,
    Start,
)
from streamdec.errors import ConfigError

NOTHING = np.zeros(0, dtype=np.float32)
SETTINGS = LadderSettings(queue=4, guard=0.02, margin=0.01, grace=1.0)


def request(id: int, deadline: float, kind: Kind = "reconstruction", key: str = "") -> Request:
    return Request(id, kind, key or f"key{id}", 1, 0.0, deadline, (), NOTHING)


def cost(first: float, each: float = 0.0) -> Cost:
    return Cost(first=[first], each=[each])


def answer(start: Start, units: int | None = None, partial: bool = False, text: str = "so far") -> Answer:
    units = start.units if units is None else units
    return Answer(start.request.id, start.tier, Result(text, units=units), 0.0, 0.0, start.worker, partial)


def pictures() -> dict[Tier, Offer]:
    """A latent of 50 ms, and a diffusion of 100 ms and 100 ms more for each further step."""
    return {"latent": Offer((1, 1), cost(0.05)), "diffusion": Offer((1, 4), cost(0.1, 0.1))}


def ladder_with(*workers: str, **options: Any) -> Ladder:
    ladder = Ladder(settings=SETTINGS, **options)
    for worker in workers:
        assert ladder.ready(worker, "reconstruction", pictures(), 0.0) == []
    return ladder


def only(actions: list[Action], kind: type[Any]) -> Any:
    (action,) = actions
    assert isinstance(action, kind)
    return action


# --- one rule at a time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "tier", "units"),
    [
        (9.0, "diffusion", 4),
        (0.431, "diffusion", 4),
        (0.429, "diffusion", 3),
        (0.131, "diffusion", 1),
        (0.129, "latent", 1),
        (0.081, "latent", 1),
    ],
)
def test_the_best_tier_that_fits_with_the_most_units(seconds: float, tier: Tier, units: int) -> None:
    start = only(ladder_with("a").submit(request(1, 5 + seconds), 5.0), Start)
    assert (start.worker, start.tier, start.units) == ("a", tier, units)
    assert start.until == pytest.approx(5 + seconds - 0.03)


@pytest.mark.parametrize("seconds", [0.079, 0.001, 0.0, -1.0])
def test_what_fits_no_tier_is_answered_here_at_once(seconds: float) -> None:
    ladder = ladder_with("a")
    assert only(ladder.submit(request(1, 5 + seconds), 5.0), AnswerHere).request.id == 1
    assert ladder.open == 0
    assert ladder.next_wake() == math.inf


def test_without_a_worker_all_is_answered_here() -> None:
    ladder = Ladder(settings=SETTINGS)
    assert only(ladder.submit(request(1, 9.0), 0.0), AnswerHere).reason == "no worker is there"
    ladder.ready("a", "caption", {"llm": Offer((1, 9), cost(0.1))}, 0.0)
    assert only(ladder.submit(request(2, 9.0), 0.0), AnswerHere).request.kind == "reconstruction"


def test_where_the_first_tier_is_missing_its_requests_are_dropped() -> None:
    ladder = Ladder(["reconstruction"], SETTINGS)
    assert only(ladder.submit(request(1, 9.0, "caption"), 0.0), Send).message == Drop(1, "no worker is there")
    assert ladder.tally == Counter(submitted=1, dropped=1)


def test_a_job_leaves_time_for_those_that_wait() -> None:
    ladder = ladder_with("a")
    first = only(ladder.submit(request(1, 9.0), 0.0), Start)
    ladder.submit(request(2, 0.70), 0.1)
    ladder.submit(request(3, 0.73), 0.1)
    end = [*ladder.finished("a", answer(first), 0.4)]
    assert end[0] == Send(answer(first))
    second = only(end[1:], Start)
    # 3 must be able to begin its latent at 0.73 - 0.03 - 0.05: 0.25 s are left, two steps and not three.
    assert (second.request.id, second.tier, second.units) == (2, "diffusion", 2)
    assert second.until == pytest.approx(0.65)


def test_where_not_all_fit_the_first_is_answered_here() -> None:
    ladder = ladder_with("a")
    first = only(ladder.submit(request(1, 9.0), 0.0), Start)
    for id in (2, 3, 4):
        assert ladder.submit(request(id, 0.5), 0.1) == []
    _, here, start = ladder.finished("a", answer(first), 0.35)  # room for two latents, of three
    assert isinstance(here, AnswerHere)
    assert isinstance(start, Start)
    assert (here.request.id, start.request.id, start.tier) == (2, 3, "latent")


def test_two_workers_share_those_that_wait() -> None:
    ladder = ladder_with("a", "b")
    starts = [only(ladder.submit(request(id, 9.0), 0.0), Start) for id in (1, 2)]
    assert {start.worker for start in starts} == {"a", "b"}
    for id in (3, 4, 5):
        ladder.submit(request(id, 0.5), 0.1)
    start = only(ladder.finished(starts[0].worker, answer(starts[0]), 0.2)[1:], Start)
    assert (start.request.id, start.tier, start.units) == (3, "diffusion", 2)  # one latent behind it, not two


def test_the_better_worker_is_taken() -> None:
    ladder = ladder_with("slow")
    fast = {"diffusion": Offer((1, 4), cost(0.01, 0.01))}
    ladder.ready("fast", "reconstruction", fast, 0.0)  # type: ignore[arg-type]
    assert only(ladder.submit(request(1, 0.3), 0.0), Start).worker == "fast"
    slow = only(ladder.submit(request(2, 0.3), 0.0), Start)
    assert (slow.worker, slow.units) == ("slow", 2)
    # What does not fit the worker that is free can hope for the one that is not, until its last call.
    ladder.finished("slow", answer(slow), 0.2)
    assert ladder.submit(request(3, 0.26), 0.2) == []
    assert ladder.next_wake() == pytest.approx(0.22)
    assert ladder.tick(0.2199) == []
    assert only(ladder.tick(0.2201), AnswerHere).request.id == 3


def test_the_newest_of_a_key_supersedes_those_that_wait_not_what_runs() -> None:
    ladder = ladder_with("a")
    start = only(ladder.submit(request(1, 9.0, key="cat"), 0.0), Start)
    assert ladder.submit(request(2, 9.1, key="cat"), 0.1) == []
    assert ladder.submit(request(3, 9.1, key="dog"), 0.1) == []
    assert ladder.submit(request(4, 9.0, "caption", key="cat"), 0.1)  # another kind
    assert ladder.submit(request(5, 9.2, key="cat"), 0.2) == [Send(Drop(2, "superseded"))]
    sent, next_one = ladder.finished("a", answer(start), 0.4)
    assert sent == Send(answer(start))
    assert isinstance(next_one, Start)
    assert next_one.request.id == 3


def test_a_full_queue_answers_the_last_here() -> None:
    ladder = ladder_with("a")
    only(ladder.submit(request(1, 9.0), 0.0), Start)
    for id in (2, 3, 4, 5):
        assert ladder.submit(request(id, 10.0 + id), 0.0) == []
    here = only(ladder.submit(request(6, 10.0), 0.0), AnswerHere)
    assert (here.request.id, here.reason) == (5, "the queue is full")


def test_at_the_guard_the_first_tier_stands_in_and_the_job_is_cancelled() -> None:
    ladder = ladder_with("a")
    start = only(ladder.submit(request(1, 1.0), 0.0), Start)
    assert ladder.next_wake() == pytest.approx(0.98)
    here, cancel = ladder.tick(0.98)
    assert isinstance(here, AnswerHere)
    assert cancel == Cancel("a", 1)
    assert ladder.submit(request(2, 3.0), 1.0) == []  # the worker is not free yet
    again = only(ladder.finished("a", answer(start, 2), 1.1), Start)  # its late answer goes nowhere
    assert again.request.id == 2


def test_what_was_shown_stands_for_the_whole() -> None:
    ladder = Ladder(settings=SETTINGS)
    ladder.ready("a", "caption", {"llm": Offer((3, 9), cost(0.1, 0.05))}, 0.0)
    start = only(ladder.submit(request(1, 1.0, "caption"), 0.0), Start)
    assert ladder.progress("a", answer(start, 1, True, text=""), 0.1) == []
    few, enough = answer(start, 2, True, "a"), answer(start, 3, True, "a dog")
    assert ladder.progress("a", few, 0.2) == [Send(few)]
    assert ladder.progress("a", enough, 0.3) == [Send(enough)]
    assert ladder.tick(0.99) == [Send(answer(start, 3, text="a dog")), Cancel("a", 1)]
    assert ladder.progress("a", answer(start, 4, True), 1.0) == []
    assert ladder.tally == Counter(submitted=1, worker=1)


def test_a_sentence_shorter_than_the_fewest_units_does_not_stand_for_the_whole() -> None:
    ladder = Ladder(settings=SETTINGS)
    ladder.ready("a", "caption", {"llm": Offer((3, 9), cost(0.1, 0.05))}, 0.0)
    start = only(ladder.submit(request(1, 1.0, "caption"), 0.0), Start)
    ladder.progress("a", answer(start, 2, True, "a"), 0.2)
    assert [type(action) for action in ladder.tick(0.99)] == [AnswerHere, Cancel]


def test_a_worker_that_does_not_stop_is_killed() -> None:
    ladder = ladder_with("a")
    start = only(ladder.submit(request(1, 1.0), 0.0), Start)
    ladder.tick(0.98)
    assert ladder.next_wake() == pytest.approx(1.98)
    ladder.submit(request(2, 9.0), 1.5)
    kill, here = ladder.tick(1.98)
    assert kill == Kill("a", "it has not stopped in 1 s")
    assert isinstance(here, AnswerHere)  # nobody is left for what waits
    assert ladder.gone("a", 2.0, "killed") == ladder.finished("a", answer(start), 2.1) == []


def test_a_worker_that_dies_has_its_request_answered_here() -> None:
    ladder = ladder_with("a")
    only(ladder.submit(request(1, 9.0), 0.0), Start)
    ladder.submit(request(2, 9.0), 0.0)
    first, second = ladder.gone("a", 0.1, "killed by signal 9")
    assert isinstance(first, AnswerHere)
    assert (first.request.id, first.reason) == (1, "worker a: killed by signal 9")
    assert isinstance(second, AnswerHere)
    assert second.request.id == 2


def test_a_worker_that_comes_anew_loses_what_it_had() -> None:
    ladder = ladder_with("a")
    only(ladder.submit(request(1, 9.0), 0.0), Start)
    assert only(ladder.ready("a", "reconstruction", pictures(), 0.1), AnswerHere).request.id == 1
    with pytest.raises(ConfigError, match="no tier"):
        ladder.ready("b", "caption", {}, 0.2)


def test_a_job_that_fails_or_makes_nothing_is_answered_here() -> None:
    ladder = ladder_with("a")
    start = only(ladder.submit(request(1, 9.0), 0.0), Start)
    assert only(ladder.failed("a", 1, "NaN in the embedding", 0.1), AnswerHere).reason == "NaN in the embedding"
    start = only(ladder.submit(request(2, 9.0), 0.2), Start)
    assert only(ladder.finished("a", answer(start, 0, text=""), 0.3), AnswerHere).request.id == 2


def test_what_is_not_known_is_passed_over() -> None:
    ladder = ladder_with("a")
    start = only(ladder.submit(request(1, 9.0), 0.0), Start)
    other = answer(Start("a", request(7, 9.0), "latent", 1, 9.0))
    for actions in (
        ladder.finished("a", other, 0.1),
        ladder.progress("a", other, 0.1),
        ladder.failed("a", 7, "", 0.1),
        ladder.finished("b", answer(start), 0.1),
        ladder.gone("b", 0.1, ""),
    ):
        assert actions == []
    assert ladder.open == 1


def test_costs_are_learnt_from_jobs() -> None:
    ladder, offers = Ladder(settings=SETTINGS), pictures()
    ladder.ready("a", "reconstruction", offers, 0.0)
    start = only(ladder.submit(request(1, 9.0), 1.0), Start)
    for units, now in ((1, 1.3), (2, 1.5), (4, 1.9)):
        ladder.progress("a", answer(start, units, True, text=""), now)
    ladder.finished("a", answer(start), 2.0)
    learnt = offers["diffusion"].cost
    assert (learnt.first[-1], learnt.each[-1]) == (pytest.approx(0.4), pytest.approx(0.2))
    assert offers["latent"].cost.first == (0.05,)


def test_an_estimate_that_keeps_a_tier_out_is_doubted_until_it_is_tried() -> None:
    ladder = Ladder(settings=SETTINGS)
    ladder.ready("a", "reconstruction", {"latent": Offer((1, 1), cost(2.0))}, 0.0)  # a warm-up in a bad minute
    for id in count(1):
        action = ladder.submit(request(id, id + 0.8), float(id))[0]
        if isinstance(action, Start):
            break
    assert 150 < id < 250


@pytest.mark.parametrize(
    "wrong", [{"queue": 0}, {"guard": -1.0}, {"margin": math.nan}, {"grace": 0.0}, {"grace": math.inf}]
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"ladder.{next(iter(wrong))}"):
        LadderSettings(**wrong)


# --- any order of events ---------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d")


class AnyOrder(RuleBasedStateMachine):
    """Does to a ladder whatever can be done, and holds every action it gives against a simple account of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.ids = count(1)
        self.asked: dict[int, Request] = {}
        self.ends: Counter[int] = Counter()
        self.offers: dict[str, dict[Tier, Offer]] = {}
        self.kinds: dict[str, Kind] = {}
        self.jobs: dict[str, Start] = {}
        self.cancelled: dict[str, float] = {}
        self.set_up(here=list(KINDS))

    def set_up(self, here: list[Kind]) -> None:
        self.ladder = Ladder(here, SETTINGS)

    # what may happen

    @rule(kind=st.sampled_from(KINDS), key=st.sampled_from("uvwxyz"), seconds=st.floats(-0.1, 2.0))
    def submit(self, kind: Kind, key: str, seconds: float) -> None:
        new = request(next(self.ids), self.now + seconds, kind, key)
        older = [r for r in self.waiting(kind) if r.key == key]
        self.asked[new.id] = new
        actions = self.ladder.submit(new, self.now)
        superseded = [a.message.id for a in actions if isinstance(a, Send) and isinstance(a.message, Drop)]
        assert set(superseded) >= {r.id for r in older}
        self.take(actions)
        if seconds <= 0.03:
            assert self.ends[new.id]  # at once

    @rule(
        name=st.sampled_from(NAMES),
        kind=st.sampled_from(KINDS),
        first=st.floats(0, 0.6),
        each=st.floats(0, 0.3),
        fewest=st.integers(1, 3),
        both=st.booleans(),
    )
    def ready(self, name: str, kind: Kind, first: float, each: float, fewest: int, both: bool) -> None:
        tiers = LADDER[kind][1:] if both else LADDER[kind][-1:]
        offers = {tier: Offer((fewest, 5), cost(first * (i + 1), each)) for i, tier in enumerate(tiers)}
        self.forget(name)
        self.offers[name], self.kinds[name] = offers, kind
        self.take(self.ladder.ready(name, kind, offers, self.now))

    @rule(name=st.sampled_from(NAMES))
    def gone(self, name: str) -> None:
        job = self.forget(name)
        self.take(self.ladder.gone(name, self.now, "killed"))
        if job is not None:
            assert self.ends[job.request.id] == 1

    @rule(name=st.sampled_from(NAMES), units=st.integers(0, 5), text=st.sampled_from(["", "a dog"]))
    def progress(self, name: str, units: int, text: str) -> None:
        if name in self.jobs:
            self.take(self.ladder.progress(name, answer(self.jobs[name], units, True, text), self.now))

    @rule(name=st.sampled_from(NAMES), units=st.integers(0, 5), text=st.sampled_from(["", "a dog"]))
    def finished(self, name: str, units: int, text: str) -> None:
        if name in self.jobs:
            job = self.jobs.pop(name)
            self.cancelled.pop(name, None)
            self.take(self.ladder.finished(name, answer(job, units, text=text), self.now))
            assert self.ends[job.request.id] == 1

    @rule(name=st.sampled_from(NAMES))
    def failed(self, name: str) -> None:
        if name in self.jobs:
            job = self.jobs.pop(name)
            self.cancelled.pop(name, None)
            self.take(self.ladder.failed(name, job.request.id, "no", self.now))
            assert self.ends[job.request.id] == 1

    @rule(seconds=st.floats(0, 1))
    def time_passes(self, seconds: float) -> None:
        """As a dispatcher sees it that wakes when it should: every request ends by its deadline minus the guard."""
        end = self.now + seconds
        while (wake := self.ladder.next_wake()) <= end:
            self.now = max(wake, self.now)
            limits = {r.id: r.deadline - SETTINGS.guard for r in self.running()}
            self.take(self.ladder.tick(self.now))
            for id, limit in limits.items():
                assert not self.ends[id] or self.now <= max(limit, wake)
        self.now = end

    @rule(seconds=st.floats(0, 2))
    def stall(self, seconds: float) -> None:
        """As a dispatcher sees it that was not run for a while."""
        self.now += seconds

    # what must hold of every action

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self.begin(action)
            elif isinstance(action, Cancel):
                assert self.jobs[action.worker].request.id == action.id
                assert action.worker not in self.cancelled
                assert self.now >= self.asked[action.id].deadline - SETTINGS.guard
                self.cancelled[action.worker] = self.now
            elif isinstance(action, Kill):
                assert self.now >= self.cancelled[action.worker] + SETTINGS.grace
                self.forget(action.worker)
            elif isinstance(action, AnswerHere):
                assert action.reason
                assert action.request.kind in self.ladder.here
                self.ends[action.request.id] += 1
            elif isinstance(action.message, Drop):
                dropped = self.asked[action.message.id]
                self.ends[dropped.id] += 1
                if dropped.kind in self.ladder.here:
                    newest = max(r.id for r in self.asked.values() if (r.kind, r.key) == (dropped.kind, dropped.key))
                    assert action.message.reason == "superseded"
                    assert dropped.id < newest
            else:
                assert action.message.result.text
                self.ends[action.message.id] += not action.message.partial
                assert self.ends[action.message.id] == (not action.message.partial)
        assert all(n == 1 for n in self.ends.values() if n), "more than one end"

    def begin(self, start: Start) -> None:
        asked, offer = start.request, self.offers[start.worker][start.tier]
        assert not self.ends[asked.id]
        assert start.worker not in self.jobs
        assert asked.kind == self.kinds[start.worker]
        assert offer.units[0] <= start.units <= offer.units[1]
        # In time by its quantile cost, and those behind it on the cheapest tier.
        peers = [name for name, kind in self.kinds.items() if kind == asked.kind]
        done = self.now + offer.cost.seconds(start.units)
        assert done <= start.until + 1e-9
        cheapest = min(o.cost.seconds(o.units[0]) for o in self.offers[start.worker].values())
        order = sorted(self.waiting(asked.kind), key=lambda r: (r.deadline, r.id))
        behind = order[order.index(asked) :]
        for k, later in enumerate(behind):
            limit = later.deadline - SETTINGS.guard - SETTINGS.margin
            assert start.until + cheapest * math.ceil(k / len(peers)) <= limit + 1e-9
        if len(peers) == 1:
            assert asked is order[0]  # earliest deadline first
        self.jobs[start.worker] = start

    @invariant()
    def the_account_adds_up(self) -> None:
        ended = sum(self.ends.values())
        assert self.ladder.open == len(self.asked) - ended
        tally = self.ladder.tally
        assert tally["submitted"] == len(self.asked)
        assert tally["worker"] + tally["here"] + tally["superseded"] + tally["dropped"] == ended
        for kind in KINDS:
            assert len(self.waiting(kind)) <= SETTINGS.queue

    @invariant()
    def the_next_wake_is_when_time_alone_does_something(self) -> None:
        wake = self.ladder.next_wake()
        if wake <= self.now:  # a stall: it is overdue
            self.take(self.ladder.tick(self.now))
            wake = self.ladder.next_wake()
        assert wake > self.now
        assert self.ladder.tick(self.now) == []
        twin = copy.deepcopy(self.ladder)
        assert twin.tick(math.nextafter(wake, -math.inf) if wake < math.inf else 1e9) == []
        if wake < math.inf:
            assert twin.tick(wake)

    # the account

    def running(self) -> list[Request]:
        return [job.request for job in self.jobs.values() if not self.ends[job.request.id]]

    def waiting(self, kind: Kind) -> list[Request]:
        running = {job.request.id for job in self.jobs.values()}
        return [r for id, r in self.asked.items() if r.kind == kind and not self.ends[id] and id not in running]

    def forget(self, name: str) -> Start | None:
        self.offers.pop(name, None)
        self.kinds.pop(name, None)
        self.cancelled.pop(name, None)
        return self.jobs.pop(name, None)

    def teardown(self) -> None:
        self.time_passes(10.0)
        assert self.ladder.open == 0
        assert set(self.asked) == {id for id, n in self.ends.items() if n == 1}


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


class WithoutBank(AnyOrder):
    """The same where captions have no first tier."""

    def set_up(self, here: list[Kind]) -> None:
        super().set_up(["reconstruction"])


WithoutBank.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestWithoutBank = WithoutBank.TestCase
