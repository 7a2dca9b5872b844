from __future__ import annotations

import importlib.util
from pathlib import Path

import mne
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdec.errors import StreamMismatch
from streamdec.intake import Intake, IntakeSettings
from streamdec.signal import montage
from streamdec.signal.montage import canonical, has_position, interpolate_bad, map_channels, positions, spherical_spline
from streamdec.signal.spec import Signal
from streamdec.types import StreamInfo

TEN_TWENTY = (
    "Fp1",
    "Fp2",
    "F7",
    "F3",
    "Fz",
    "F4",
    "F8",
    "T7",
    "C3",
    "Cz",
    "C4",
    "T8",
    "P7",
    "P3",
    "Pz",
    "P4",
    "P8",
    "O1",
    "O2",
)
TEN_TEN = (*TEN_TWENTY, "AFz", "FC1", "FC2", "CP5", "CP6", "POz", "PO7", "PO8", "Oz", "TP9", "TP10")


@pytest.mark.parametrize(
    ("name", "electrode"),
    [
        ("Fp1", "Fp1"),
        ("FP1", "Fp1"),
        (" fpz ", "Fpz"),
        ("OZ", "Oz"),
        ("T3", "T7"),
        ("t4", "T8"),
        ("T5", "P7"),
        ("T6", "P8"),
        ("EEG Fp1-REF", "Fp1"),
        ("EEG T5-LE", "P7"),
        ("EEG:Cz", "Cz"),
        ("Fc5.", "FC5"),
        ("Af7..", "AF7"),
        ("C3-A2", "C3"),
        ("Cz_ref", "Cz"),
        ("AFF5h", "AFF5h"),
        ("Fp1-F7", "FP1-F7"),  # bipolar: no electrode
        ("EOG left", "EOG LEFT"),
        ("EEG 001", "EEG 001"),
        ("", ""),
    ],
)
def test_one_spelling_per_electrode(name: str, electrode: str) -> None:
    assert canonical(name) == electrode
    assert canonical(electrode) == electrode


@given(st.text(max_size=20))
def test_any_text_has_a_stable_spelling(name: str) -> None:
    assert canonical(canonical(name)) == canonical(name)


def test_positions_are_on_the_unit_sphere_and_where_they_should_be() -> None:
    xyz = positions(TEN_TEN)
    np.testing.assert_allclose(np.linalg.norm(xyz, axis=1), 1.0, atol=1e-5)
    by_name = dict(zip(TEN_TEN, xyz, strict=True))
    assert by_name["Fp1"][1] > 0.9
    assert by_name["Oz"][1] < -0.9
    assert by_name["T8"][0] > 0.9
    assert by_name["Cz"][2] > 0.9
    np.testing.assert_array_equal(positions(["T3"]), positions(["T7"]))
    assert positions([]).shape == (0, 3)
    assert not has_position("EOG")
    with pytest.raises(StreamMismatch, match="EOG, X1"):
        positions(["Cz", "EOG", "X1"])


def test_the_shipped_positions_are_what_the_tool_makes() -> None:
    path = Path(__file__).parents[1] / "tools" / "make_positions.py"
    spec = importlib.util.spec_from_file_location("make_positions", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    made = [line.split("\t") for line in tool.table().splitlines()]
    shipped = [line.split("\t") for line in tool.TARGET.read_text(encoding="utf-8").splitlines()]
    assert [row[0] for row in made] == [row[0] for row in shipped]
    np.testing.assert_allclose(
        np.array([row[1:] for row in made[1:]], float), np.array([row[1:] for row in shipped[1:]], float), atol=2e-5
    )


@pytest.mark.parametrize("n_bad", [1, 3, 8])
def test_spline_is_mnes(n_bad: int) -> None:
    from mne.channels.interpolation import _make_interpolation_matrix

    xyz = positions(TEN_TEN) * np.linspace(0.08, 0.1, len(TEN_TEN))[:, None]
    ours = spherical_spline(xyz[n_bad:], xyz[:n_bad])
    np.testing.assert_allclose(ours, _make_interpolation_matrix(xyz[n_bad:], xyz[:n_bad]), atol=1e-10)


def test_interpolation_of_a_recording_is_mnes() -> None:
    names = list(TEN_TEN)
    info = mne.create_info(names, 100.0, "eeg", verbose="error")
    xyz = positions(names) * 0.095
    info.set_montage(mne.channels.make_dig_montage(dict(zip(names, xyz, strict=True)), coord_frame="head"))
    data = np.random.default_rng(0).standard_normal((len(names), 50)) * 1e-5
    raw = mne.io.RawArray(data, info, verbose="error")
    raw.info["bads"] = ["Pz", "T8"]
    expected = raw.copy().interpolate_bads(origin=(0.0, 0.0, 0.0), verbose="error").get_data()
    good = [row for row, name in enumerate(names) if name not in raw.info["bads"]]
    np.testing.assert_allclose(interpolate_bad(names, ["T8", "Pz"]) @ data[good], expected, atol=1e-11)


@given(st.sets(st.sampled_from(TEN_TEN), max_size=len(TEN_TEN) - 1))
def test_good_channels_pass_and_constants_stay_constant(bad: set[str]) -> None:
    matrix = interpolate_bad(TEN_TEN, bad)
    good = [name for name in TEN_TEN if name not in bad]
    assert matrix.shape == (len(TEN_TEN), len(good))
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix[[TEN_TEN.index(name) for name in good]], np.eye(len(good)))
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-4)


def test_a_smooth_field_is_filled_in() -> None:
    x, y, z = positions(TEN_TEN).T
    field = 10 * y - 5 * z + 3 * x * y
    bad = ("Cz", "PO7")
    good = [row for row, name in enumerate(TEN_TEN) if name not in bad]
    np.testing.assert_allclose(interpolate_bad(TEN_TEN, bad) @ field[good], field, atol=0.6)


def test_matrices_are_made_once_and_cannot_be_changed() -> None:
    first = interpolate_bad(TEN_TEN, ("Cz", "Oz"))
    assert interpolate_bad(list(TEN_TEN), {"Oz", "Cz"}) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 2.0


def test_channels_without_a_position_are_passed_but_not_interpolated_from() -> None:
    names = ("Fz", "AUX", "Pz", "Cz")
    matrix = interpolate_bad(names, ("Cz",))
    assert matrix[1, 1] == 1.0
    assert matrix[3, 1] == 0.0
    with pytest.raises(StreamMismatch, match="AUX"):
        interpolate_bad(names, ("AUX",))
    with pytest.raises(StreamMismatch, match="no good channel"):
        interpolate_bad(("Fz", "AUX"), ("Fz",))


@given(st.sets(st.sampled_from([*TEN_TEN, "AUX"]), min_size=1, max_size=8))
def test_what_all_sets_of_bad_channels_share_changes_no_number(bad: set[str]) -> None:
    names = (*TEN_TEN[:30], "AUX", *TEN_TEN[30:])
    good, lost = ([name for name in names if (name in bad) is which and name != "AUX"] for which in (False, True))
    if "AUX" in bad:
        with pytest.raises(StreamMismatch, match="AUX"):
            interpolate_bad(names, bad)
        return
    matrix = interpolate_bad(names, bad)[[names.index(name) for name in lost]]
    columns = [column for column, name in enumerate(n for n in names if n not in bad) if name != "AUX"]
    np.testing.assert_allclose(matrix[:, columns], spherical_spline(positions(good), positions(lost)), atol=1e-7)
    assert not np.delete(matrix, columns, axis=1).any()


def test_the_loop_solves_and_sums_no_series(monkeypatch: pytest.MonkeyPatch) -> None:
    names = TEN_TEN[3:40]
    info = StreamInfo("cap", "EEG", len(names), 250.0, "float32", ch_names=names, units=("microvolts",) * len(names))
    Intake(Signal(names, 250.0, 0.0, 0.5), info, IntakeSettings(positional=True))
    monkeypatch.setattr(montage, "legval", None)
    assert interpolate_bad(names, (names[2], names[7])).shape == (len(names), len(names) - 2)


def test_channels_are_found_by_name_in_any_order_and_spelling() -> None:
    stream = ["trigger", "EEG Oz-REF", "CZ", "T3", "fp1"]
    found = map_channels(stream, ["Fp1", "T7", "Cz", "Oz"], 0)
    assert found.picks.tolist() == [4, 3, 2, 1]
    assert found.missing == ()
    old = map_channels(["P7", "T8"], ["T4", "T5"], 0)
    assert old.picks.tolist() == [1, 0]


def test_missing_channels_up_to_a_number() -> None:
    found = map_channels(["Oz", "Cz", "Pz"], ["Cz", "Fz", "Oz"], 1)
    assert found.picks.tolist() == [1, 0]
    assert found.missing == ("Fz",)
    with pytest.raises(StreamMismatch, match=r"2 of 4 channels.*Fz, C3.*at most 1"):
        map_channels(["Oz", "Cz"], ["Cz", "Fz", "Oz", "C3"], 1)
    with pytest.raises(StreamMismatch, match=r"none for 3 channels.*positional"):
        map_channels(["", "", ""], ["Cz"], 0)
    with pytest.raises(StreamMismatch, match="EOG"):
        map_channels(["Oz", "Cz"], ["Cz", "EOG"], 1)


def test_doubled_channels_are_refused_only_where_they_matter() -> None:
    with pytest.raises(StreamMismatch, match="T3, T7"):
        map_channels(["T3", "Cz", "T7"], ["Cz", "T7"], 0)
    assert map_channels(["aux", "Cz", "aux"], ["Cz"], 0).picks.tolist() == [1]
    with pytest.raises(StreamMismatch, match="wanted channels"):
        map_channels(["Cz"], ["Cz", "CZ"], 0)


def test_by_position_only_when_told() -> None:
    assert map_channels(["1", "2", "3"], ["Cz", "Oz"], 0, positional=True).picks.tolist() == [0, 1]
    with pytest.raises(StreamMismatch, match="1 channels"):
        map_channels(["1"], ["Cz", "Oz"], 0, positional=True)
