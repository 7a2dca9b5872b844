"""Marker texts and trigger codes -> onsets."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdec.acquire.markers import MarkerReader, MarkerSettings, Refused, TriggerReader, TriggerSettings
from streamdec.errors import ConfigError
from streamdec.types import ClockOffset, Marker, Onset


def read(text, stamp=1.0, **settings):
    return MarkerReader(MarkerSettings(**settings))(Marker(text, stamp, stamp + 0.01))


def key(text, **settings):
    onset = read(text, **settings)
    return onset.key if isinstance(onset, Onset) else onset.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("img_7", "img_7"),
        ("  img_7\n", "img_7"),
        ("17", "17"),
        ("17.0", "17"),
        ("-3.00", "-3"),
        ("17.5", "17.5"),
        ('{"id": "img_7", "seq": 1}', "img_7"),
        ('{"id": 17}', "17"),
        ('{"id": 17.0}', "17"),
        ('{"ev": "block_start"}', "ignored"),
        ('{"id": ""}', "ignored"),
        ('{"id": true}', "garbage"),
        ('{"id": ["a"]}', "garbage"),
        ('{"id": "a"', "garbage"),
        ("{" * 100_000, "garbage"),
        ("", "garbage"),
    ],
)
def test_what_a_marker_names(text, expected):
    assert key(text) == expected


def test_pattern_keys_and_ignore():
    assert key("stim/cat_01/left", pattern=r"stim/(?P<key>[^/]+)/.*") == "cat_01"
    assert key("response/2", pattern=r"stim/(?P<key>[^/]+)/.*") == "garbage"
    assert key("17", keys={"17": "cat.jpg"}) == "cat.jpg"
    assert key("18", keys={"17": "cat.jpg"}) == "garbage"
    assert key("S 17", pattern=r"S\s*(?P<key>\d+)", keys={"17": "cat.jpg"}) == "cat.jpg"
    assert key("99999", ignore="99999|block.*") == "ignored"
    assert key('{"id": "99999"}', ignore="99999") == "ignored"
    assert key('{"id": "a", "target": true}', ignore='.*"target": ?true.*') == "ignored"
    assert key('{"stim": "a"}', field="stim") == "a"
    assert key("ab", ignore="a") == "ab"


@pytest.mark.parametrize("settings", [{"pattern": "("}, {"pattern": "(.+)"}, {"ignore": "["}])
def test_wrong_settings_are_named(settings):
    with pytest.raises(ConfigError, match=r"markers\.\w+"):
        MarkerReader(MarkerSettings(**settings))


def test_onset_is_on_our_clock():
    reader = MarkerReader()
    reader.offset(ClockOffset("markers", 2.0, 1e-4, 0.0))
    assert reader(Marker("a", 10.0, 12.1)) == Onset("a", 12.0, "a", 12.1)
    reader.offset(ClockOffset("markers", 2.5, 1e-4, 0.0))
    assert reader(Marker("a", 11.0, 13.6)).time == pytest.approx(13.4999)
    reader.restart()
    reader.offset(ClockOffset("markers", -5.0, 1e-4, 0.0))
    assert reader(Marker("a", 12.0, 7.1)).time == 7.0


def test_doubled_markers_count_once():
    reader = MarkerReader()
    texts = [("a", 1.0), ("a", 1.0005), ("b", 1.0), ("a", 1.002), ("b", 1.0009)]
    results = [reader(Marker(text, stamp, stamp)) for text, stamp in texts]
    assert [isinstance(result, Onset) for result in results] == [True, False, True, True, False]
    assert results[1] == Refused("a", "duplicate")


def test_memory_of_duplicates_is_bounded():
    reader = MarkerReader()
    for i in range(10_000):
        assert isinstance(reader(Marker("a", float(i), float(i))), Onset)
    assert len(reader._seen) < 100


@pytest.mark.parametrize("stamp", [math.nan, math.inf])
def test_stamps_that_are_no_time(stamp):
    assert read("a", stamp) == Refused("a", "garbage")


@pytest.mark.parametrize(
    ("numbers", "lost"),
    [
        ([1, 2, 3], 0),
        ([5, 6, 9], 2),
        ([1, 3, 2, 4], 0),
        ([1, 4, 3, 2, 5], 0),
        ([800, 801, 1, 2], 0),
        ([1, 1, 2], 0),
    ],
)
def test_holes_in_the_numbering_are_lost_markers(numbers, lost):
    reader = MarkerReader()
    for i, seq in enumerate(numbers):
        reader(Marker(json.dumps({"id": "a", "seq": seq}), float(i), float(i)))
    assert reader.lost == lost


@given(st.text(max_size=60), st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_is_an_onset_or_refused(text, stamp):
    result = MarkerReader()(Marker(text, stamp, 0.0))
    assert isinstance(result, Refused) or result.key


def edges_by_hand(values, mask):
    """Sample by sample: (index, code) of every edge, None for the index of garbage, as the docstring states it."""
    values = [int(v) & mask for v in values]
    found, i = [], 1
    while i + 1 < len(values):
        before, now, after = values[i - 1 : i + 2]
        if now & ~before:
            found.append((i, after or now))
            i += 1
        elif now and before != now == after:
            found.append((None, now))
        i += 1
    return found


def play(values, sizes, mask=0xFFFF, start=50, **settings):
    reader = TriggerReader(TriggerSettings("TRIG", mask), MarkerSettings(**settings))
    samples = np.asarray(values, np.float32)
    samples.setflags(write=False)
    times = 7.0 + np.arange(len(samples)) / 100
    out, i = [], 0
    for size in sizes:
        out += reader(samples[i : i + size], start + i, times[i : i + size], 9.0)
        i += size
    return out


@given(
    st.lists(st.sampled_from([0, 0, 0, 1, 4, 5, 5, 255, 256, 300]), min_size=1, max_size=60),
    st.lists(st.integers(0, 7), max_size=60),
    st.sampled_from([0xFFFF, 0xFF, 0x04]),
)
def test_edges_in_any_packing(values, sizes, mask):
    expected = edges_by_hand(values, mask)
    for packing in ([1] * len(values), [*sizes, len(values)], [len(values)]):
        onsets = play(values, packing, mask)
        found = [(one.position - 50 if isinstance(one, Onset) else None, one.text) for one in onsets]
        assert found == [(i, str(code)) for i, code in expected]
        right = [one for one in onsets if isinstance(one, Onset)]
        assert all(onset.time == 7.0 + (onset.position - 50) / 100 for onset in right)
        assert all(onset.key == onset.text for onset in right)


def test_lines_that_do_not_switch_together():
    (onset,) = play([0, 0, 4, 5, 5, 0, 0], [7])
    assert (onset.position, onset.key, onset.text) == (52, "5", "5")


@pytest.mark.parametrize("sizes", [[13], [1] * 13, [4, 9]])
def test_codes_held_until_the_next(sizes):
    """Where only bits fall nobody can tell a new code from another line that is let go: it is refused, and named."""
    out = play([0, 7, 7, 3, 3, 4, 4, 0, 0, 6, 6, 2, 2], sizes, ignore="2")
    named = [one.key if isinstance(one, Onset) else one for one in out]
    assert named == ["7", Refused("3", "garbage"), "4", "6", Refused("2", "ignored")]


def test_lines_let_go_one_after_the_other():
    for sizes in ([8], [1] * 8):
        assert [onset.key for onset in play([0, 7, 7, 7, 3, 1, 0, 0], sizes)] == ["7"]


def test_one_sample_pulse():
    (onset,) = play([0, 5, 0, 0], [2, 2])
    assert (onset.position, onset.key) == (51, "5")


def test_state_at_the_start_is_no_edge():
    assert play([7, 7, 7, 0, 0], [5]) == []
    reader = TriggerReader(TriggerSettings("TRIG"))
    times = np.arange(3) / 100
    assert reader(np.array([0, 0, 0], np.float32), 0, times, 0.0) == []
    reader.reset()
    assert reader(np.array([9, 9, 9], np.float32), 3, times, 0.0) == []


def test_missing_samples_leave_the_state_alone():
    values = [0, 0, math.nan, 0, 3, math.nan, 3, math.nan, math.inf, 0, 1e30, 0]
    for sizes in ([12], [1] * 12):
        assert [onset.key for onset in play(values, sizes)] == ["3"]


def test_codes_are_named_like_markers():
    out = play([0, 17, 17, 0, 99, 99, 0, 18, 18], [9], keys={"17": "cat.jpg"}, ignore="99")
    assert [(o.key if isinstance(o, Onset) else o.reason) for o in out] == ["cat.jpg", "ignored", "garbage"]


def test_bits_outside_the_mask_do_not_count():
    assert [onset.key for onset in play([65_280, 65_281, 65_281, 65_280], [4], mask=0xFF)] == ["1"]


@pytest.mark.parametrize("mask", [0, -1, 2**31])
def test_masks_that_are_none(mask):
    with pytest.raises(ConfigError, match="mask"):
        TriggerReader(TriggerSettings("TRIG", mask))


def test_no_samples_no_onsets():
    assert TriggerReader(TriggerSettings("TRIG"))(np.empty(0, np.float32), 0, np.empty(0), 0.0) == []
