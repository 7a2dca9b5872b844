from __future__ import annotations

import numpy as np
import pytest

from streamdec.errors import ConfigError, StreamMismatch
from streamdec.signal.quality import Quality, QualitySettings, check_scale, robust_sd, unit_factor
from streamdec.types import Float32

NAMES = ("Fz", "Cz", "Pz", "Oz")


@pytest.fixture
def epoch() -> Float32:
    return np.random.default_rng(1).normal(0, 10, (4, 500)).astype(np.float32)


def test_a_good_epoch_passes_unchanged(epoch: Float32) -> None:
    before = epoch.copy()
    verdict = Quality(NAMES).check(epoch)
    assert (verdict.bad, dict(verdict.reasons), verdict.reject) == ((), {}, "")
    np.testing.assert_array_equal(epoch, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_makes_a_channel_bad(epoch: Float32, value: float) -> None:
    epoch[1, 77] = value
    verdict = Quality(NAMES, QualitySettings.off()).check(epoch)
    assert verdict.bad == ("Cz",)
    assert verdict.reasons == {"Cz": "nan"}
    assert verdict.reject == ""


def test_both_infinities_in_one_channel(epoch: Float32) -> None:
    epoch[2, [3, 4]] = np.inf, -np.inf
    assert Quality(NAMES).check(epoch).reasons == {"Pz": "nan"}


def test_flat_railed_and_noisy_channels_are_told_apart(epoch: Float32) -> None:
    epoch[0] = 4000.0
    epoch[1] = np.clip(epoch[1] * 20, -100, 100)
    epoch[3] *= 20
    verdict = Quality(NAMES, QualitySettings(noisy=400.0)).check(epoch)
    assert verdict.bad == ("Fz", "Cz", "Oz")
    assert verdict.reasons == {"Fz": "flat", "Cz": "railed", "Oz": "noisy"}
    assert Quality(NAMES).check(epoch).bad == ("Fz", "Cz")
    assert Quality(NAMES, QualitySettings.off()).check(epoch).bad == ()


def test_what_is_stuck_is_seen_before_the_filters(epoch: Float32) -> None:
    raw = epoch.copy()
    raw[0] = 4000.0
    raw[1] = np.clip(raw[1] * 20, -100, 100)
    raw[2, 100:140] = np.nan  # lost, and filled in behind the filters
    assert Quality(NAMES).check(epoch, raw).reasons == {"Fz": "flat", "Cz": "railed"}
    raw[3] = np.inf
    assert Quality(NAMES).check(epoch, raw).reasons["Oz"] == "railed"


def test_coarse_quantisation_is_not_railed() -> None:
    steps = np.random.default_rng(0).normal(0, 3, (4, 1000)).round().astype(np.float32)
    assert Quality(NAMES).check(steps).bad == ()


def test_epochs_that_cannot_be_saved(epoch: Float32) -> None:
    flat = np.zeros_like(epoch)
    assert Quality(NAMES).check(flat).reject == "every channel is bad"
    epoch[1] = 0
    assert "AUX (flat)" in Quality(("Fz", "AUX", "Pz", "Oz")).check(epoch).reject


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"quality\.railed"):
        Quality(NAMES, QualitySettings(railed=0.0))
    with pytest.raises(ConfigError, match=r"quality\.noisy"):
        Quality(NAMES, QualitySettings(flat=1.0, noisy=0.5))


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("V", 1e6),
        ("volts", 1e6),
        ("mV", 1e3),
        ("uV", 1.0),
        ("µV", 1.0),
        ("μV", 1.0),
        ("microvolts", 1.0),
        (" Microvolt ", 1.0),
        ("nV", 1e-3),
        ("", 1.0),
    ],
)
def test_units(unit: str, factor: float) -> None:
    assert unit_factor(unit) == factor


def test_what_is_not_a_voltage_is_refused() -> None:
    with pytest.raises(StreamMismatch, match="counts"):
        unit_factor("counts")


def test_robust_sd_ignores_blinks_and_gaps() -> None:
    data = np.random.default_rng(2).normal(5000, 12, (3, 20_000)).astype(np.float32)
    data[:, :1000] += 400
    data[1, 5000:6000] = np.nan
    data[2] = np.nan
    sd = robust_sd(data)
    np.testing.assert_allclose(sd[:2], 12, rtol=0.1)
    assert np.isnan(sd[2])


def test_robust_sd_of_a_channel_does_not_hang_on_the_others() -> None:
    data = np.random.default_rng(3).normal(0, 20, (4, 501)).astype(np.float32)
    with_gap = data.copy()
    with_gap[3, 7] = np.nan
    np.testing.assert_array_equal(robust_sd(data)[:3], robust_sd(with_gap)[:3])
    assert np.isnan(robust_sd(data[:, :0])).all()


def test_the_scale_of_a_stream() -> None:
    trained = np.array([10.0, 12.0, 8.0, np.nan])
    assert check_scale(np.array([9.0, 14.0, 7.0, 1e9]), trained) == ""
    assert "check gain" in check_scale(trained * 30, trained)
    assert "check gain" in check_scale(trained / 30, trained)
    for factor in (1e6, 1e-6, 1e3, 1e-3):
        with pytest.raises(StreamMismatch, match="scale"):
            check_scale(trained * factor, trained)
    assert check_scale(np.array([10.0, 12.0, 1e7, 5.0]), trained) == ""  # one broken channel
    assert "cannot be judged" in check_scale(np.zeros(4), trained)
