"""Dispatcher and workers as they run: real processes, real sockets, and tiers that fail in every way."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from small_bundle import DIM
from small_generator import PICTURE, SENTENCES, Watched, own_processes, plan_for, watched, write_parts

from streamdec.decode.generate.dispatcher import Local
from streamdec.decode.generate.job import Answer, Drop
from streamdec.decode.generate.link import MAX_IMAGE, Notice
from streamdec.errors import BundleError, ConfigError

HELPERS = str(Path(__file__).parent / "helpers")
CAPTIONS = {"kinds": ("caption",), "workers": (Local("caption"),)}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Bundle and generator; the workers find the sick tiers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([HELPERS, *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="class")
def asked(parts: tuple[Path, Path]) -> Iterator[Watched]:
    with watched(plan_for(*parts)) as each:
        yield each


class TestWhatIsAsked:
    """One client for all: nothing here ends a worker."""

    def test_the_best_tier_answers(self, asked: Watched) -> None:
        caption = asked.answer(asked.ask("fast"))
        assert (caption.tier, caption.worker, caption.result.units) == ("llm", "caption-1", 4)
        assert caption.result.text.startswith("fast ")
        assert caption.started <= caption.finished
        picture = asked.answer(asked.ask("fast", "reconstruction"))
        assert (picture.tier, picture.worker, picture.result.media) == ("latent", "reconstruction-1", "image/png")

    def test_partial_answers_come_before_the_end(self, asked: Watched) -> None:
        id_ = asked.ask("sleep:0.1")
        end = asked.answer(id_)
        mine = [event for event in asked.events if isinstance(event, Answer) and event.id == id_]
        assert [event.result.units for event in mine[:-1]] == sorted({event.result.units for event in mine[:-1]})
        assert [event.partial for event in mine] == [True] * (len(mine) - 1) + [False]
        assert len(mine) > 2
        assert end.result.units == 4

    def test_no_time_at_all(self, asked: Watched) -> None:
        caption = asked.answer(asked.ask("fast", budget=0.001))
        assert (caption.tier, caption.worker) == ("bank", "")
        assert caption.result.text in SENTENCES
        picture = asked.answer(asked.ask("fast", "reconstruction", budget=0.001))
        assert (picture.tier, picture.result.image, picture.result.source) == ("nearest", PICTURE, "img03")

    def test_asked_for_long_after_its_deadline(self, asked: Watched) -> None:
        """As where markers come late, and the decision is made from what the ring buffer still holds."""
        for kind, tier in (("caption", "bank"), ("reconstruction", "nearest")):
            for _ in range(20):
                assert asked.answer(asked.ask("fast", kind, budget=-20.0)).tier == tier

    def test_a_sentence_ends_where_time_does(self, asked: Watched) -> None:
        for _ in range(5):  # nobody knows yet what sleeping costs
            caption = asked.answer(asked.ask("sleep:0.2", budget=0.5))
            assert caption.tier in ("llm", "bank")
            assert caption.result.units < 4

    def test_a_tier_that_refuses(self, asked: Watched) -> None:
        assert asked.answer(asked.ask("refuse")).tier == "bank"
        assert asked.answer(asked.ask("refuse", "reconstruction")).tier == "nearest"
        assert asked.answer(asked.ask("fast")).tier == "llm"

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_an_embedding_that_is_no_number(self, asked: Watched, bad: float) -> None:
        drop = asked.end(asked.ask("fast", embedding=np.full(DIM, bad, np.float32)))
        assert isinstance(drop, Drop)
        assert "NaN or infinity" in drop.reason

    def test_a_text_that_steers_a_terminal_is_made_plain(self, asked: Watched) -> None:
        assert asked.answer(asked.ask("dirty")).result.text == "a [31mred thing"

    def test_a_picture_beyond_the_limit_is_none(self, asked: Watched) -> None:
        huge = asked.answer(asked.ask("huge", "reconstruction"))
        assert (huge.tier, huge.result.image) == ("nearest", PICTURE)
        assert len(asked.answer(asked.ask("fast", "reconstruction")).result.image) < MAX_IMAGE

    def test_newer_evidence_takes_the_place_of_what_waits(self, asked: Watched) -> None:
        running, old, new = (asked.ask(key) for key in ("sleep:0.1", "fast/same", "fast/same"))
        assert asked.end(old) == Drop(old, "superseded")
        assert asked.answer(new).tier == "llm"
        assert asked.answer(running).tier == "llm"

    def test_more_than_anyone_can_do(self, asked: Watched) -> None:
        ids = [asked.ask(f"sleep:0.05/{i}", budget=0.6) for i in range(60)]
        asked.until(lambda: all(asked.ends(id_) for id_ in ids))
        ends = [asked.ends(id_) for id_ in ids]
        assert all(len(end) == 1 and isinstance(end[0], Answer) for end in ends)
        assert {end[0].tier for end in ends if isinstance(end[0], Answer)} == {"llm", "bank"}

    def test_many_open_requests_are_refused(self, asked: Watched) -> None:
        ids = [asked.ask("fast", embedding=np.ones(100, np.float32)) for _ in range(400)]
        asked.until(lambda: all(asked.ends(id_) for id_ in ids))
        assert any("are open" in str(asked.ends(id_)) or "keep up" in str(asked.ends(id_)) for id_ in ids)


def test_the_end_leaves_nothing_open_and_nobody_behind(parts: tuple[Path, Path]) -> None:
    with watched(plan_for(*parts)) as each:
        processes = own_processes()
        ids = [each.ask("sleep:1", kind) for kind in ("caption", "reconstruction") for _ in range(3)]
        done = each.ask("fast", "reconstruction", budget=0.01)
        events = each.client.finish()
        ends = [event for event in events if isinstance(event, Drop) or getattr(event, "partial", True) is False]
        assert sorted(end.id for end in ends if not isinstance(end, Notice)) == sorted([*ids, done])
        assert {str(end.reason) for end in ends if isinstance(end, Drop)} <= {"the session ended", "superseded"}
        assert each.client.finish() == []
        each.client.close()
        assert len(processes) == 3
        psutil.wait_procs(processes, timeout=5)
        assert not any(process.is_running() for process in processes)


def test_a_worker_that_can_never_serve_is_said_and_done_without(parts: tuple[Path, Path]) -> None:
    with watched(plan_for(*parts, **CAPTIONS, opens="sick_tiers:open_none")) as each:
        notice = each.client.workers["caption-1"]
        assert (notice.state, notice.reason) == ("failed", "model some/model is not on this machine; bring it")
        assert each.answer(each.ask("fast")).tier == "bank"


def test_a_worker_that_takes_its_time_is_not_waited_for(parts: tuple[Path, Path]) -> None:
    with watched(plan_for(*parts, **CAPTIONS, opens="sick_tiers:open_slowly"), wait=2.0) as each:
        assert each.answer(each.ask("fast")).tier == "bank"


def test_a_picture_of_the_bundle_that_cannot_be_read_any_more(tmp_path: Path) -> None:
    bundle, generator = write_parts(tmp_path)
    with watched(plan_for(bundle, generator, workers=())) as each:
        (picture,) = bundle.rglob("thumbnails/*")
        picture.write_bytes(b"another")
        drop = each.end(each.ask("fast", "reconstruction"))
        assert isinstance(drop, Drop)
        assert "thumbnail" in drop.reason
        assert each.answer(each.ask("fast")).tier == "bank"
        assert each.notices("dispatcher") == []


def test_a_temporary_folder_whose_path_no_socket_can_have(
    parts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(ConfigError, match=r"temporary folder.*set TMPDIR"), watched(plan_for(*parts)):
        pass
    assert not list(deep.iterdir())


def test_no_text_bank_and_no_time(tmp_path: Path) -> None:
    with watched(plan_for(*write_parts(tmp_path, bank=False), kinds=("caption",), workers=())) as each:
        drop = each.end(each.ask("fast"))
        assert isinstance(drop, Drop)
        assert drop.reason == "no worker is there"


@pytest.mark.parametrize("what", ["generator", "listen"])
def test_what_cannot_be_opened_is_said_before_the_session(parts: tuple[Path, Path], tmp_path: Path, what: str) -> None:
    changes: dict[str, Any] = {"generator": str(tmp_path)} if what == "generator" else {"listen": "tcp://1.2.3.4:5"}
    if what == "listen":
        changes["keys"] = str(tmp_path)
    plan = msgspec.structs.replace(plan_for(*parts), **changes)
    with pytest.raises(BundleError, match="no generator" if what == "generator" else "key file"), watched(plan):
        pass
    assert not own_processes()


def test_the_costs_that_were_learnt_are_kept(parts: tuple[Path, Path], tmp_path: Path) -> None:
    plan = plan_for(*parts, **CAPTIONS, costs=str(tmp_path / "costs"))
    for expected in (0, 1):
        assert len(list(tmp_path.glob("costs/*.json"))) == expected
        with watched(plan) as each:
            assert each.answer(each.ask("sleep:0.3")).tier == "llm"
            if expected:  # the worker's warm-up said that it costs nothing
                assert each.answer(each.ask("sleep:0.3", budget=0.8)).result.units < 4
