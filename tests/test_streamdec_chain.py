from __future__ import annotations

import mne
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from streamdec.errors import ConfigError
from streamdec.signal.chain import Chain
from streamdec.signal.spec import (
    Baseline,
    Clamp,
    Drop,
    Pick,
    Reference,
    Resample,
    Scale,
    Signal,
    Standardise,
    Step,
    Whiten,
)
from streamdec.types import Float32, Float64

NAMES = tuple(f"E{i}" for i in range(63))
FIVE = NAMES[:5]
THINGS = Signal(NAMES, 1000.0, -0.2, 1.0, steps=(Baseline(-0.2, 0.0), Resample(250.0), Drop(50)))


def brownian(n_chans: int, n_times: int, n_epochs: int = 1) -> Float32:
    """Something like EEG: 1/f, and offsets of millivolts."""
    rng = np.random.default_rng(5)
    walk = np.cumsum(rng.standard_normal((n_epochs, n_chans, n_times)), axis=-1)
    return (walk + 3000 * rng.standard_normal((n_epochs, n_chans, 1))).astype(np.float32)


def by_mne(
    epochs: Float32, sfreq: float, tmin: float, baseline: tuple[float, float] | None, new: float
) -> mne.BaseEpochs:
    info = mne.create_info(epochs.shape[1], sfreq, "eeg", verbose="error")
    made = mne.EpochsArray(epochs.astype(float), info, tmin=tmin, baseline=baseline, verbose="error")
    return made.resample(new, verbose="error")


def test_the_things_eeg2_recipe_is_mnes() -> None:
    epochs = brownian(63, 1201, 3)
    made = by_mne(epochs, 1000.0, -0.2, (-0.2, 0.0), 250.0)
    expected = made.get_data(copy=False)[:, :, 50:]
    chain = Chain(THINGS, {})
    out = chain(epochs)
    assert (out.shape, chain.shape, chain.shape_in) == ((3, 63, 250), (63, 250), (63, 1201))
    assert (chain.sfreq, chain.ch_names) == (250.0, NAMES)
    assert chain.tmin == pytest.approx(made.times[50])
    assert np.abs(out - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("sfreq", "new", "tmin", "tmax"),
    [
        (1000.0, 200.0, -0.2, 0.8),
        (1000.0, 100.0, 0.0, 0.05),
        (256.0, 128.0, -0.1, 0.6),
        (512.0, 250.0, -0.2, 1.0),
        (250.0, 1000.0, 0.0, 0.8),
        (128.0, 250.0, -0.5, 0.5),
        (1024.0, 333.0, 0.0, 0.7),
        (250.0, 250.0, 0.0, 0.5),
        (2048.0, 256.0, -0.2, 1.0),
    ],
)
def test_resampling_is_mnes_at_any_rate(sfreq: float, new: float, tmin: float, tmax: float) -> None:
    signal = Signal(FIVE, sfreq, tmin, tmax, steps=(Resample(new),))
    epochs = brownian(5, signal.window[1])
    expected = by_mne(epochs, sfreq, tmin, None, new).get_data(copy=False)
    out = Chain(signal, {})(epochs)
    assert out.shape == expected.shape
    assert np.abs(out - expected).max() <= 1e-6 * np.abs(expected).max()


def naive(epoch: Float32, signal: Signal, arrays: dict[str, npt.NDArray[np.float64]]) -> Float64:
    """One step after the other, in float64, by the words of their docstrings."""
    x, names, sfreq = epoch.astype(float), list(signal.ch_names), signal.sfreq
    times = np.arange(x.shape[1]) / sfreq + signal.window[0] / sfreq
    for step in signal.steps:
        if isinstance(step, Pick):
            x, names = x[[names.index(name) for name in step.channels]], list(step.channels)
        elif isinstance(step, Reference):
            x = x - x[[names.index(name) for name in step.channels or names]].mean(axis=0)
        elif isinstance(step, Baseline):
            inside = (times > step.tmin - 0.4 / sfreq) & (times < step.tmax + 0.4 / sfreq)
            x = x - x[:, inside].mean(axis=1, keepdims=True)
        elif isinstance(step, Drop):
            x, times = x[:, step.n_times :], times[step.n_times :]
        elif isinstance(step, Whiten):
            x = arrays[step.array][: len(x), : len(x)] @ x
        elif isinstance(step, Scale):
            x = x * step.factor
        elif isinstance(step, Standardise):
            x = (x - arrays[step.mean][:, None]) / arrays[step.std][:, None]
        elif isinstance(step, Clamp):
            x = np.clip(x, -step.limit, step.limit)
        elif isinstance(step, Resample):  # the whole-number case, no padding of mne's: only used on constants below
            n = round(x.shape[1] * step.sfreq / sfreq)
            x, times, sfreq = (
                fft.irfft(fft.rfft(x), n) * n / x.shape[1],
                times[0] + np.arange(n) / step.sfreq,
                step.sfreq,
            )
    return x


RNG = np.random.default_rng(8)
ARRAYS = {
    "whitener": np.cov(RNG.standard_normal((5, 40))),
    "mean": RNG.standard_normal(5) * 20,
    "std": RNG.uniform(1, 30, 5),
}
steps_of_five = st.lists(
    st.sampled_from(
        [
            Reference(),
            Reference(("E1", "E3")),
            Baseline(0.0, 0.05),
            Baseline(0.06, 0.1),
            Drop(3),
            Whiten(),
            Scale(0.5),
            Standardise(),
            Clamp(25.0),
            Pick(("E3", "E0", "E1", "E4", "E2")),
        ]
    ),
    max_size=7,
)


@given(steps_of_five)
@settings(max_examples=150)
def test_folding_keeps_the_order_of_the_steps(steps: list[Step]) -> None:
    kept: list[Step] = []
    for step in steps:  # a baseline must lie within what has not been dropped
        if not (isinstance(step, Baseline) and step.tmin == 0.0 and any(isinstance(other, Drop) for other in kept)):
            kept.append(step)
    signal = Signal(FIVE, 200.0, 0.0, 0.2, steps=tuple(kept[:6]))
    epoch = (brownian(5, 41)[0] / 30).astype(np.float32)
    before = epoch.copy()
    out = Chain(signal, ARRAYS)(epoch)
    expected = naive(epoch, signal, ARRAYS)
    np.testing.assert_allclose(out, expected, atol=1e-4 * max(1.0, np.abs(epoch).max()), rtol=1e-3)
    np.testing.assert_array_equal(epoch, before)
    assert out.flags.c_contiguous
    assert out.dtype == np.float32


def test_offsets_pass_through_resampling(rng: np.random.Generator) -> None:
    steps = (Standardise(), Resample(250.0), Scale(3.0))
    signal = Signal(FIVE, 1000.0, 0.0, 0.399, steps=steps)
    level = np.repeat(rng.standard_normal((5, 1)).astype(np.float32) * 50, 400, axis=1)
    np.testing.assert_allclose(Chain(signal, ARRAYS)(level), naive(level, signal, ARRAYS), rtol=1e-4, atol=1e-4)


def test_fewer_channels_come_out_of_a_pick() -> None:
    signal = Signal(NAMES, 1000.0, -0.2, 1.0, steps=(Reference(), *THINGS.steps, Pick(("E7", "E2"))))
    epochs = brownian(63, 1201)
    out = Chain(signal, {})(epochs)
    referenced = Signal(NAMES, 1000.0, -0.2, 1.0, steps=(Reference(), *THINGS.steps))
    np.testing.assert_allclose(out, Chain(referenced, {})(epochs)[:, [7, 2]], atol=1e-3)


@pytest.mark.parametrize(
    "steps", [THINGS.steps, (), (Drop(10),), (*THINGS.steps, Reference(), Clamp(20.0), Scale(2.0))]
)
def test_an_epoch_is_the_same_alone_and_among_others(steps: tuple[Step, ...]) -> None:
    chain = Chain(Signal(NAMES, 1000.0, -0.2, 1.0, steps=steps), {})
    epochs = brownian(63, 1201, 6)
    many = chain(epochs.reshape(2, 3, 63, 1201))
    assert many.shape == (2, 3, *chain.shape)
    for index, epoch in enumerate(epochs):
        one = chain(epoch)
        np.testing.assert_array_equal(one, many.reshape(6, *chain.shape)[index])
        np.testing.assert_array_equal(chain(np.asfortranarray(epoch)), one)
        assert not np.shares_memory(one, epoch)
    assert chain(epochs[:0]).shape == (0, *chain.shape)


def test_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(63, 1200\)"):
        Chain(THINGS, {})(np.zeros((63, 1200), np.float32))


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (Pick(()), "pick"),
        (Pick(("E9",)), "E9"),
        (Pick(("E1", "E1")), "each once"),
        (Reference(("A1",)), "A1"),
        (Baseline(-0.1, 0.0), "baseline"),
        (Baseline(0.0, 0.3), "baseline"),
        (Baseline(0.1, 0.05), "baseline"),
        (Drop(41), "drop"),
        (Drop(-1), "drop"),
        (Resample(0.0), "resample"),
        (Whiten("absent"), "absent"),
        (Whiten("mean"), "shape"),
        (Standardise("mean", "zero"), "zero"),
        (Standardise("broken", "std"), "finite"),
        (Scale(0.0), "scale"),
        (Scale(float("nan")), "scale"),
        (Clamp(0.0), "clamp"),
    ],
)
def test_steps_that_do_not_fit_are_refused(step: Step, match: str) -> None:
    arrays = {**ARRAYS, "zero": np.zeros(5), "broken": np.full(5, np.nan)}
    with pytest.raises(ConfigError, match=match):
        Chain(Signal(FIVE, 200.0, 0.0, 0.2, steps=(step,)), arrays)
