from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from feed_messages import caption, one_of_each, onset, reconstruction, retrieval, session, stats, stream_info
from rich.console import Console

from streamdec.feed import schema
from streamdec.feed.publisher import FeedSettings, Publisher
from streamdec.feed.subscriber import Subscriber
from streamdec.feed.wire import Received
from streamdec.watch import Lines, State, account, clean, fold, render, watch


def after(*messages: schema.AnyMessage, name: str = "s1") -> State:
    state = State()
    for message in messages:
        state = fold(state, Received(msgspec.structs.replace(message, session=name)))
    return state


def drawn(state: State, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(render(state))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_fold_keeps_the_newest() -> None:
    state = after(*one_of_each(), *(retrieval(f"k{i}") for i in range(30)), session("ended"))
    assert [decision.key for decision in state.decisions[:2]] == ["k29", "k28"]
    assert len(state.decisions) == 12
    assert state.eeg == "connected"
    assert state.counts.late == 1
    assert state.ended
    assert state.drops[0] == ("marker '\\x1b[31m[bold]?'", "garbage")
    assert state.drops[1] == ("a: rejected", "Fp1 railed")


def test_decided_epochs_and_onsets_are_no_drops() -> None:
    decided = schema.Epoch(key="a", onset_time=1.0, outcome="decided")
    assert after(decided, onset()) == State(session="s1")


def test_another_session_begins_from_nothing() -> None:
    first = after(*one_of_each(), session("ended"))
    second = fold(first, Received(msgspec.structs.replace(session("started"), session="s2")))
    assert second.session == "s2"
    assert not second.decisions
    assert not second.ended


def test_stream_states_follow() -> None:
    lost = session("lost", stream="eeg", reason="the source is gone")
    assert after(lost).eeg == "lost: the source is gone"
    found = session("found", stream="markers", markers=stream_info())
    assert after(found).markers == "found"
    assert after(session("unrecorded", reason="disk full")).drops == (("unrecorded", "disk full"),)


@pytest.mark.parametrize("state", [State(), after(*one_of_each()), after(retrieval("[red]x[/red]"))])
@pytest.mark.parametrize("width", [20, 80, 160])
def test_any_state_can_be_drawn(state: State, width: int) -> None:
    assert drawn(state, width)


def test_the_newest_caption_and_picture_of_each_stimulus_are_shown() -> None:
    made = (
        caption("a", text="a \x1b[31mred one"),
        caption("b", text="a blue", partial=True),
        reconstruction("a", tier="diffusion", payloads=()),
        caption("a", text="a green one", tier="bank"),
    )
    state = after(retrieval("a"), retrieval("b"), *made)
    text = drawn(state, 240)
    for part in ("a green one  (bank)", "a blue …  (llm)", "diffusion 2/4"):
        assert part in text
    assert "red" not in text
    assert "caption" not in drawn(after(retrieval("a")))
    state = after(retrieval("a"), *made, *(retrieval(f"k{i}") for i in range(12)))
    assert not state.captions
    assert not state.pictures


def test_generation_in_statistics_lines_and_drops() -> None:
    account = schema.Generation(requests=5, answered={"llm": 2, "bank": 1}, dropped=1, open=1, met=2)
    seen = msgspec.structs.replace(stats(), generation={"caption": account}, workers={"caption-1": "ready"})
    line = "5 asked  llm 2  bank 1  dropped 1  open 1  in time 2"
    assert line in drawn(after(seen))
    lines = Lines()
    said = [str(text) for message in (seen, caption(), caption(partial=True)) for text in lines(Received(message))]
    assert said[1:] == [f"caption:  {line}", "workers:  caption-1 ready", said[-1]]
    assert said[-1] == "a caption: a a on grey  llm 2/4  reps 3  400.0 ms"
    assert str(lines(Received(reconstruction(source="img3", wanted=1)))[0]).startswith("a picture of img3  latent  ")
    dropped = schema.Dropped(what="caption", text="", reason="superseded", key="a")
    assert str(lines(Received(dropped))[0]) == "caption of a dropped  superseded"
    assert after(dropped).drops == (("caption of a", "superseded"),)
    lost = session("lost", worker="caption-1", reason="ended by SIGKILL")
    assert after(lost).drops == (("caption-1 lost", "ended by SIGKILL"),)
    assert str(lines(Received(lost))[0]) == "caption-1 lost  ended by SIGKILL"


def test_drawing_shows_what_counts() -> None:
    text = drawn(msgspec.structs.replace(after(*one_of_each(), retrieval("late", met=False)), missed=3, silence=9.0))
    for part in (
        "SIMULATED",
        "demo (ridge)",
        "label a, label other",
        "500.0",
        "onsets 2",
        "late 1",
        "rejected",
        "999.900 Hz",
    ):
        assert part in text
    assert "3 messages did not reach" in text
    assert "no sign of the publisher for 9 s" in text
    assert "no publisher yet" in drawn(State())


def test_texts_from_outside_cannot_steer_the_terminal() -> None:
    evil = "\x1b]0;title\x07[blink]x\r\n"
    state = after(
        retrieval(evil),
        schema.Dropped(what="marker", text=evil, reason=evil),
        session("lost", stream="eeg", reason=evil),
        session("started", bundle=evil),
    )
    assert "\x1b" not in drawn(state)
    assert "\x07" not in drawn(state)
    assert "[blink]x" in drawn(state)
    assert clean("a\x1b[31mé\n") == "a·[31mé·"


def test_account_names_what_happened_only() -> None:
    assert account(schema.Counts(onsets=3, decided=2, late=1)) == "onsets 3  decided 2  open 0  late 1"


def test_lines() -> None:
    lines = Lines()
    assert lines(Received(retrieval("a", final=False))) == []
    assert lines(Received(onset())) == []
    (line,) = lines(Received(retrieval("a", met=False)))
    assert line.plain == "a: label a, label other  p 0.25  rank 1/200  reps 3  500.0 ms LATE"
    assert [len(lines(Received(stats()))) for _ in range(3)] == [1, 0, 0]
    (line,) = lines(Received(session("stalled", stream="eeg", reason="no samples")))
    assert line.plain == "eeg stalled  no samples"
    (line,) = lines(Received(schema.Epoch(key="a", onset_time=1.0, outcome="lost_data", reason="gap")))
    assert line.plain == "a: lost_data  gap"


class Driven(Subscriber):
    """Runs its publisher whenever it is asked; presses Ctrl-C when all was seen."""

    def __init__(self, publisher: Publisher, todo: list[schema.AnyMessage]) -> None:
        super().__init__(publisher.endpoint)
        self.publisher, self.todo = publisher, todo

    def receive(self, timeout: float | None = None) -> Received | None:
        self.publisher.serve()
        if self.session and self.todo:
            self.publisher.publish(self.todo.pop(0))
        received = super().receive(0.005)
        if received is not None and isinstance(received.message, schema.Gallery):
            raise KeyboardInterrupt
        return received


@pytest.mark.parametrize("terminal", [False, True])
def test_watch_until_ctrl_c(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=terminal, legacy_windows=False)
    with Publisher(FeedSettings(endpoint="tcp://127.0.0.1:0"), "s1") as publisher:
        publisher.publish(session("started", bundle="demo"))
        with Driven(publisher, list(one_of_each())) as feed:
            state = watch(feed, console)
    assert state.decisions
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "label other" in text
    assert ("top 5" in text) == terminal
    assert "\x1b[31m[bold]" not in text


def test_watch_for_some_seconds_without_a_publisher(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with Subscriber(f"ipc://{tmp_path}/nobody") as feed:
        assert watch(feed, console, seconds=0.1).session == ""
    assert isinstance(console.file, io.StringIO)
    assert "no publisher yet" in console.file.getvalue()
