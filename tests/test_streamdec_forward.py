"""The forward model: where and when images act, and that they can be told apart."""

from __future__ import annotations

import numpy as np
import pytest

from streamdec.errors import ConfigError
from streamdec.simulate import forward, leadfield
from streamdec.simulate.forward import COMPONENTS, Forward
from streamdec.simulate.subject import Subject
from streamdec.simulate.world import World

WORLD = World(0, n_train=10, images_per_concept=2, n_test=60, size=32)


@pytest.fixture(scope="module")
def subject():
    return Subject(WORLD, seed=4)


def rows(*names):
    return [leadfield.CH_NAMES.index(name) for name in names]


def test_channels_are_the_63_without_the_reference():
    assert len(set(leadfield.CH_NAMES)) == 63
    assert leadfield.REFERENCE not in leadfield.CH_NAMES


@pytest.mark.parametrize(("group", "near"), [("occipital", "^O|^PO"), ("eyes", "^Fp"), ("temporal", "^T|^P|^CP")])
def test_sources_are_strongest_where_they_lie(group, near):
    import re

    gain = leadfield.gain(group)
    strongest = [leadfield.CH_NAMES[i] for i in np.abs(gain).argmax(axis=0)]
    assert all(re.match(near, name) for name in strongest), strongest


def test_shipped_arrays_cannot_be_changed():
    leadfield.gain("occipital")[:] = 0  # a copy
    assert np.abs(leadfield.gain("occipital")).max() > 0.1


def test_mean_response_peaks_over_the_occiput_first(subject):
    mean = subject._forward.evoked(subject._forward.mean_moments)
    back, front = (
        np.abs(mean[rows("O1", "Oz", "O2", "PO7", "PO8")]).mean(axis=0),
        np.abs(mean[rows("F3", "F4", "FCz")]).mean(axis=0),
    )
    assert back[60:250].max() > 3 * front[60:250].max()
    p1 = mean[rows("O1", "Oz", "O2", "PO7", "PO8")].mean(axis=0)
    assert 80 <= p1[70:130].argmax() + 70 <= 120
    assert 140 <= p1[130:200].argmin() + 130 <= 185
    assert np.abs(mean[:, :40]).max() < 0.1
    assert np.abs(mean[:, -20:]).max() < 0.05


def test_image_specific_part_is_early_over_the_occiput_and_late_over_the_temples(subject):
    spread = subject.evoked("test", range(60)).std(axis=0)
    occipital, temporal = (
        spread[rows("O1", "Oz", "O2", "POz")].mean(axis=0),
        spread[rows("TP7", "TP8", "P7", "P8")].mean(axis=0),
    )
    assert occipital[80:250].mean() > 2 * occipital[350:550].mean()
    assert temporal[350:550].mean() > 2 * occipital[350:550].mean()


def test_early_part_follows_the_picture_and_late_part_the_concept():
    """Images of one concept share the late response, not the early one."""
    spread = Subject(WORLD, 0).evoked("train", range(20)).reshape(10, 2, 63, -1)
    within = (spread[:, 0] - spread[:, 1]).std(axis=0)
    between = spread.mean(axis=1).std(axis=0)
    temporal = rows("TP7", "TP8", "P7", "P8")
    assert within[temporal][:, 400:550].max() < 0.2 * between[temporal][:, 400:550].max()
    assert within[rows("Oz")][:, 80:200].max() > 0.3 * between[rows("Oz")][:, 80:200].max()


def test_evoked_is_the_written_out_sum():
    model = Forward(2, 250.0)
    moments = model.moments(WORLD, "test")[:3]
    expected = np.zeros((3, 63, 200))
    for i in range(3):
        for source in range(moments.shape[1]):
            expected[i] += moments[i, source] * np.outer(model._gain[:, source], model._kernels[source])
    np.testing.assert_allclose(model.evoked(moments), expected, atol=1e-4)
    np.testing.assert_allclose(model.evoked(moments[1]), expected[1], atol=1e-4)
    assert moments.shape[1] == sum(leadfield.gain(c.group).shape[1] for c in COMPONENTS)


def test_drive_has_zero_mean_and_unit_variance_over_images():
    model = Forward(1)
    world = World(9, n_train=1, n_test=300, size=32)
    drive = (model.moments(world, "test") / model.mean_moments - 1) / forward.CONTRAST
    assert np.abs(drive.mean(axis=0)).mean() < 0.2
    np.testing.assert_allclose(drive.std(axis=0).mean(), 1.0, atol=0.1)


def test_same_seed_same_subject_other_seed_another():
    a, b, c = (Subject(WORLD, seed).evoked("test", [0, 1]) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.corrcoef(a.ravel(), c.ravel())[0, 1] < 0.9


def test_rate_changes_the_grid_only():
    fast, slow = Subject(WORLD, 1).evoked("test", [5]), Subject(WORLD, 1, sfreq=250.0).evoked("test", [5])
    np.testing.assert_allclose(fast[..., ::4], slow, atol=1e-5)


def test_shared_part_is_what_two_subjects_have_in_common():
    """Drives of two subjects correlate by the linear part's share of the variance, times what of it is shared."""
    world = World(9, n_train=1, n_test=300, size=32)

    def correlation(shared):
        a, b = (Forward(seed, shared=shared).moments(world, "test") for seed in (1, 2))
        columns = zip(a.T, b.T, strict=True)
        return np.mean([np.corrcoef(x, y)[0, 1] for x, y in columns])

    linear = 1 - forward.IDIOSYNCRASY**2
    for shared in (0.0, 0.5, 1.0):
        assert correlation(shared) == pytest.approx(linear * shared, abs=0.04)


def test_nothing_shared_is_the_default_and_more_than_all_is_refused():
    np.testing.assert_array_equal(
        Subject(WORLD, 1, shared=0.0).evoked("test", [3]), Subject(WORLD, 1).evoked("test", [3])
    )
    with pytest.raises(ConfigError, match=r"shared; got 1\.5; allowed: 0 to 1"):
        Subject(WORLD, 1, shared=1.5)


@pytest.mark.parametrize("idiosyncrasy", [0.0, 0.5, forward.IDIOSYNCRASY])
def test_idiosyncrasy_is_what_regression_on_the_concepts_leaves(idiosyncrasy):
    """Of the late sources' drives, least squares on the attributes explains 1 - idiosyncrasy**2."""
    world = World(9, n_train=1, n_test=2000, size=32)
    late = np.array([c.group == "temporal" for c in COMPONENTS for _ in range(leadfield.gain(c.group).shape[1])])
    model = Forward(1, idiosyncrasy=idiosyncrasy)
    shown = world.attributes("test")[:, : world.n_semantic]
    drive = (model.moments(world, "test") / model.mean_moments - 1)[:, late] / forward.CONTRAST
    drive = drive - drive.mean(axis=0)
    fitted = shown @ np.linalg.lstsq(shown, drive, rcond=None)[0]
    left = np.square(drive - fitted).sum() / np.square(drive).sum()
    assert left == pytest.approx(idiosyncrasy**2, abs=0.03)


def test_more_idiosyncrasy_than_all_is_refused():
    with pytest.raises(ConfigError, match=r"idiosyncrasy; got 1\.5; allowed: 0 to 1"):
        Subject(WORLD, 1, idiosyncrasy=1.5)
