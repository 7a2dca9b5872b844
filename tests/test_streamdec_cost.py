"""Costs of tiers: quantiles of what was measured, what fits into a time, what is kept between sessions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdec.decode.generate.cost import Cost, Costs
from streamdec.errors import ConfigError, EngineError

SECONDS = st.floats(0, 100)
SOME = st.lists(SECONDS, max_size=100)


@given(SOME, SOME, st.integers(1, 100), st.floats(0.01, 1))
def test_seconds_are_the_quantiles_of_the_newest(
    first: list[float], each: list[float], units: int, quantile: float
) -> None:
    cost = Cost(quantile, 64, first, each)

    def oracle(values: list[float]) -> float:
        newest = values[-64:]
        return float(np.quantile(newest, quantile, method="inverted_cdf")) if newest else 0.0

    assert cost.seconds(units) == pytest.approx(oracle(first) + (units - 1) * oracle(each))


@given(SOME, SOME, SECONDS, st.integers(1, 200))
def test_units_within_is_the_most_that_fit(first: list[float], each: list[float], seconds: float, most: int) -> None:
    cost = Cost(first=first, each=each)
    fitting = [units for units in range(1, most + 1) if cost.seconds(units) <= seconds]
    assert cost.units_within(seconds, most) == max(fitting, default=0)


def test_all_the_time_in_the_world_is_enough_for_all_units() -> None:
    assert Cost(first=[3.0], each=[1.0]).units_within(math.inf, 40) == 40


def test_a_job_is_split_into_the_first_unit_and_each_further_one() -> None:
    cost = Cost()
    assert cost.seconds(5) == 0  # nothing known: tried
    cost.add(0.50, 4, 0.10)
    assert (cost.first, cost.each) == (pytest.approx((0.20,)), (0.10,))
    assert cost.seconds(4) == pytest.approx(0.50)
    cost.add(0.80, 3)  # nobody told how long each took: twice what was expected, so each part twice
    assert (cost.first[-1], cost.each[-1]) == (pytest.approx(0.40), pytest.approx(0.20))
    cost.add(0.1, 3, 0.2)  # more than there was: clocks differ
    assert cost.first[-1] == 0
    fresh = Cost()
    fresh.add(0.60, 3)
    assert (fresh.first, fresh.each) == (pytest.approx((0.20,)), pytest.approx((0.20,)))


def test_a_busy_hour_before_counts_for_twice_the_warm_up_at_most() -> None:
    cost = Cost()
    cost.warmed([(0.5, 4, 0.1), (0.6, 4, 0.1)])
    assert (cost.first, cost.each) == (pytest.approx((0.2, 0.3)), (0.1, 0.1))  # nothing known: the first measurements
    later = Cost(first=[0.25, 0.3, 4.0, 5.0], each=[0.12, 0.9])
    later.warmed([(0.5, 4, 0.1), (0.6, 4, 0.1)])
    assert (later.first, later.each) == (pytest.approx((0.25, 0.3, 0.6, 0.6)), pytest.approx((0.12, 0.2)))
    assert later.seconds(4) == pytest.approx(0.6 + 3 * 0.2)
    for _ in range(4):
        later.add(5.0, 4, 0.9)
    assert later.seconds(4) > 2.5  # it is as dear again: learnt from four jobs
    later.warmed([])
    assert later.seconds(4) > 2.5


def test_what_is_not_measured_is_believed_less() -> None:
    cost = Cost(first=[1.0, 2.0], each=[1.0])
    for _ in range(139):
        cost.add(1.0)  # one unit: says nothing of the others
    assert cost.seconds(2) - cost.seconds(1) == pytest.approx(0.5, rel=0.01)
    assert len(cost.first) == 64
    for _ in range(139):
        cost.doubt()
    assert cost.seconds(1) == pytest.approx(0.5, rel=0.01)
    assert cost.seconds(2) == pytest.approx(0.75, rel=0.01)


@pytest.mark.parametrize(("quantile", "newest"), [(0.0, 64), (1.1, 64), (math.nan, 64), (0.95, 0)])
def test_bounds(quantile: float, newest: int) -> None:
    with pytest.raises(ConfigError):
        Cost(quantile, newest)


def test_costs_are_kept_by_generator_tier_device_and_host(tmp_path: Path) -> None:
    costs = Costs(tmp_path / "new", "a" * 64)
    cost = costs.of("diffusion", "cpu", "here")
    assert costs.of("diffusion", "cpu", "here") is cost
    cost.add(0.5, 4, 0.1)
    costs.of("diffusion", "cuda", "here").add(0.05)
    costs.of("llm", "cpu", "there").add(0.2)
    costs.save()
    again = Costs(tmp_path / "new", "a" * 64)
    assert again.of("diffusion", "cpu", "here").seconds(4) == cost.seconds(4)
    assert again.of("diffusion", "cuda", "here").first == (0.05,)
    assert again.of("llm", "cpu", "there").first == (0.2,)
    assert again.of("llm", "cpu", "here").first == ()
    assert Costs(tmp_path / "new", "b" * 64).of("llm", "cpu", "there").first == ()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["aaaaaaaaaaaaaaaa.json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "\x00" + text,
        lambda text: text.replace('"schema":1', '"schema":2'),
        lambda text: text.replace("a" * 64, "a" * 63 + "b"),
        lambda text: text.replace("0.25", "-0.25"),
        lambda text: text.replace("0.25", "1e999"),
        lambda text: text.replace("0.25", "NaN"),
        lambda text: text.replace("0.25", '"0.25"'),
        lambda text: text.replace("latent", "fast"),
    ],
)
def test_a_damaged_file_is_as_none(tmp_path: Path, change: object) -> None:
    costs = Costs(tmp_path, "a" * 64)
    costs.of("latent", "cpu", "here").add(0.25)
    costs.save()
    (path,) = tmp_path.iterdir()
    text = path.read_text(encoding="utf-8")
    path.write_text(change(text), encoding="utf-8")  # type: ignore[operator]
    assert path.read_text(encoding="utf-8") != text
    fresh = Costs(tmp_path, "a" * 64)
    assert fresh.of("latent", "cpu", "here").first == ()
    fresh.save()
    assert json.loads(path.read_text(encoding="utf-8"))["generator"] == "a" * 64


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    costs = Costs(None, "a" * 64)
    costs.of("latent", "cpu", "here").add(0.25)
    costs.save()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot be written"):
        Costs(tmp_path / "file", "a" * 64).save()
