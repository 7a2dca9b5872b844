"""The demo's summary: its figures on feeds whose figures are known."""

from __future__ import annotations

import msgspec
import pytest

from streamdec.errors import StreamError
from streamdec.feed import schema
from streamdec.simulate.captions import ATTRIBUTES, Attributes, attributes, describe
from streamdec.simulate.world import World
from streamdec.tally import Tally
from streamdec.types import Candidate

WORLD = World(0)
SHOWN = [0, 50, 100, 150]


def retrieval(key: str, label: str, onset: float, rank: int, latency: float = 0.01) -> schema.Retrieval:
    return schema.Retrieval(
        key=key,
        onset_time=onset,
        residual=0.0,
        horizon=1.0,
        final=True,
        repetitions=2,
        candidates=(Candidate(key, label, 0.5, 0.5),),
        gallery_size=200,
        rank=rank,
        stop=False,
        timing=schema.Timing(0, 0, 0, 0, 0, 0, latency, 0.05, deadline_met=latency <= 0.05),
    )


def caption(key: str, text: str, onset: float, tier: str = "llm", latency: float = 0.2) -> schema.Caption:
    timing = schema.GenerationTiming(0, 0, 0, 0, 0, latency, 0.3, deadline_met=latency <= 0.3)
    return schema.Caption(
        key=key,
        onset_time=onset,
        repetitions=2,
        tier=tier,
        units=5,
        wanted=9,
        partial=False,
        worker="",
        probability=None,
        timing=timing,
        text=text,
    )


def truth(image: int) -> Attributes:
    return attributes(WORLD.concept("test", image), WORLD.look("test", image))


def gallery() -> schema.Gallery:
    entries = tuple(schema.GalleryEntry(id_, "") for id_ in WORLD.ids("test"))
    return schema.Gallery(kind="stimulus", entries=entries)


def tally(texts: dict[int, str], labels: dict[int, str]) -> Tally:
    """One decision and one caption for each image that was shown."""
    made = Tally()
    made.add(gallery())
    for onset, image in enumerate(texts):
        key = WORLD.ids("test")[image]
        made.add(retrieval(key, labels[image], float(onset), rank=1))
        made.add(caption(key, texts[image], float(onset)))
    return made


def row(lines: list[str], name: str) -> list[int]:
    (line,) = [line for line in lines if line.split()[:1] == [name]]
    return [int(word) for word in line.split()[1:]]


def test_true_captions_are_right_and_others_as_often_as_images_agree() -> None:
    made = tally({i: describe(truth(i)) for i in SHOWN}, {i: WORLD.concept("test", i).name for i in SHOWN})
    lines, good = made.captions(WORLD)
    assert good
    for name in ATTRIBUTES:
        agree = [getattr(truth(a), name) == getattr(truth(b), name) for a in SHOWN for b in SHOWN if a != b]
        right, label, shuffled = row(lines, name)
        assert right == 100
        assert label == (100 if name in ("shape", "colour", "texture", "layout") else 0)
        assert shuffled == round(100 * sum(agree) / len(agree))


def test_captions_of_other_images_are_not_the_eegs() -> None:
    other = dict(zip(SHOWN, [*SHOWN[1:], SHOWN[0]], strict=True))
    made = tally({i: describe(truth(other[i])) for i in SHOWN}, dict.fromkeys(SHOWN, "nothing"))
    lines, good = made.captions(WORLD)
    assert not good
    assert row(lines, "mean")[0] < row(lines, "mean")[2]


def test_what_was_made_by_which_tier_and_when() -> None:
    made = Tally()
    for n, (tier, latency) in enumerate([("llm", 0.1), ("llm", 0.2), ("bank", 0.3), ("bank", 0.5)]):
        made.add(caption("a", "a disc", float(n), tier, latency))
    made.add(msgspec.structs.replace(caption("a", "a", 9.0), partial=True))
    for reason in ("superseded", "superseded", "no worker is there"):
        made.add(schema.Dropped(what="caption", text="", reason=reason, key="a"))
    lines = made.generated("caption")
    assert lines[0] == "caption: 4 made, 2 superseded by a newer repetition, 1 dropped otherwise"
    assert lines[1] == "  by tier: llm 50 %, bank 50 %"
    assert lines[2].startswith("  by their deadline of 300 ms: 60.0 %; latency median 250 ms")
    assert made.generated("reconstruction") == ["reconstruction: none was made"]


@pytest.mark.parametrize(("rank", "good"), [(1, True), (100, False)])
def test_retrieval_far_above_chance_or_not(rank: int, good: bool) -> None:
    made = Tally()
    made.add(gallery())
    for n in range(20):
        made.add(retrieval("a", "a", float(n), rank, latency=0.01 if n else 0.1))
    lines, found = made.retrieval()
    assert found == good
    assert f"shown image first of 200: {100 if good else 0} % (chance 0.5 %)" in lines
    assert "19 of 20 within the budget of 50 ms" in lines


def test_a_refused_stream_ends_the_demo() -> None:
    with pytest.raises(StreamError, match="no such rate"):
        Tally().add(schema.Session(state="refused", time=0.0, stream="eeg", reason="no such rate"))
