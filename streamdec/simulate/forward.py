"""From an image to the response it evokes on the scalp: a linear-nonlinear model of simulated sources.

Occipital sources answer early (P1, N1, P2: 60 to 300 ms) to the low-level features of their half of the image; temporal
sources answer later (200 to 700 ms) to what the image shows. A source's moment in one component is

    moment = mean * (1 + CONTRAST * drive),    drive = sqrt(1 - IDIOSYNCRASY**2) * linear + IDIOSYNCRASY * nonlinear

where both parts have unit variance over images. The nonlinear part is as reproducible as the linear one, but a linear
decoder cannot carry it over to new images: it is what keeps the accuracy on well averaged data away from 100 %.

CONTRAST and IDIOSYNCRASY are set by tools/calibrate_difficulty.py, see :mod:`.subject` for what a decoder reaches.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from ..errors import ConfigError
from ..signal.rate import Rate
from ..types import Float32
from . import features, leadfield
from .world import Split, World

CONTRAST = 1.5
IDIOSYNCRASY = 0.815
DURATION = 0.8
"""Seconds after the onset at which every response is over."""

_RECEPTIVE_FIELD = 0.5  # standard deviation, in units of half the image
_BEND = 3.0  # how fast the nonlinear drive turns with its input; at 3 its linear correlation is below 0.05


class Component(NamedTuple):
    """A deflection of one group: ``latency`` and ``width`` (standard deviation) in s, mean ``moment`` in nAm."""

    group: leadfield.Group
    latency: float
    width: float
    moment: float


COMPONENTS = (
    Component("occipital", 0.100, 0.018, 4.0),
    Component("occipital", 0.160, 0.024, -5.0),
    Component("occipital", 0.225, 0.030, 4.0),
    Component("temporal", 0.280, 0.040, -2.5),
    Component("temporal", 0.380, 0.055, 2.5),
    Component("temporal", 0.500, 0.065, 2.0),
)


class Forward:
    """One subject's responses to the images of any world.

    Parameters
    ----------
    seed : int
        Draws what each source prefers, and the subject's latencies and amplitudes.
    sfreq : float
        Rate of the responses, Hz.
    shared : float
        Share of the variance of each source's linear drive that all subjects have in common, 0 to 1: what a decoder
        of other people can use. The nonlinear part is everybody's own.
    idiosyncrasy : float
        Amplitude of the nonlinear part of each drive, 0 to 1: its square is the part's share of the variance.
    """

    def __init__(
        self, seed: int = 0, sfreq: float = 1000.0, *, shared: float = 0.0, idiosyncrasy: float = IDIOSYNCRASY
    ) -> None:
        for name, share in (("shared", shared), ("idiosyncrasy", idiosyncrasy)):
            if not 0 <= share <= 1:
                raise ConfigError(name, got=share, allowed="0 to 1")
        rng = np.random.default_rng([seed, 2])
        self.sfreq = sfreq
        self.n_times = Rate(sfreq).to_samples(DURATION)
        times = np.arange(self.n_times) / sfreq
        slower, stronger = rng.uniform(-0.010, 0.010), rng.uniform(0.85, 1.15)
        gains, kernels, moments = [], [], []
        groups: list[leadfield.Group] = []
        for component in COMPONENTS:
            gain = leadfield.gain(component.group)
            n = gain.shape[1]
            latency = component.latency + slower + rng.normal(0, 0.006, (n, 1))
            width = component.width * rng.uniform(0.85, 1.15, (n, 1))
            gains.append(gain)
            kernels.append(np.exp(-(((times - latency) / width) ** 2) / 2))
            moments.append(np.full(n, stronger * component.moment))
            groups += [component.group] * n
        self._gain = np.concatenate(gains, axis=1)
        self._kernels = np.concatenate(kernels).astype(np.float32)
        self._mean = np.concatenate(moments).astype(np.float32)
        self._early = np.array(groups) == "occipital"
        n_early, n_late = int(self._early.sum()), int((~self._early).sum())
        own = _semantic(rng, n_late), _retinotopic(rng, n_early)
        everybody = np.random.default_rng(6)
        common = _semantic(everybody, n_late), _retinotopic(everybody, n_early)
        late, early = zip(own, common, strict=True)
        self._low_level = _Drive(early, shared, idiosyncrasy, rng, *_reference("low_level"))
        self._semantic = _Drive(late, shared, idiosyncrasy, rng, *_reference("semantic"))

    def moments(self, world: World, split: Split) -> Float32:
        """Moment of every source and component for every image of a split: (n_images, n_sources) float32, nAm."""
        drive = np.empty((world.n_images(split), len(self._mean)), np.float32)
        drive[:, self._early] = self._low_level(world.low_level(split))
        drive[:, ~self._early] = self._semantic(world.attributes(split)[:, : world.n_semantic])
        return np.asarray(self._mean * (1 + CONTRAST * drive), np.float32)

    @property
    def mean_moments(self) -> Float32:
        """Moments of the average response, (n_sources,) float32, nAm: what an image outside the world evokes."""
        return self._mean

    def evoked(self, moments: Float32) -> Float32:
        """Responses on the scalp.

        Parameters
        ----------
        moments : array of shape (n_sources,) or (n, n_sources), float32
            Rows of :meth:`moments`, nAm.

        Returns
        -------
        array of shape (63, n_times) or (n, 63, n_times), float32
            Microvolt, from the onset on, referenced to Fz.
        """
        return np.asarray((self._gain * moments[..., None, :]) @ self._kernels, np.float32)


class _Drive:
    """Standardised features -> unit-variance drive of each source, by the subject's own weights and common ones."""

    def __init__(
        self,
        weights: tuple[Float32, Float32],
        shared: float,
        idiosyncrasy: float,
        rng: np.random.Generator,
        mean: Float32,
        std: Float32,
        reference: Float32,
    ) -> None:
        self._mean, self._std = mean, std
        self._shares = np.sqrt(1 - idiosyncrasy**2), idiosyncrasy
        z = (reference - mean) / std
        own, common = (one / (z @ one).std(axis=0) for one in weights)
        if shared:
            both = np.float32(np.sqrt(1 - shared)) * own + np.float32(np.sqrt(shared)) * common
            own = both / (z @ both).std(axis=0)
        self._linear = own
        bent = rng.standard_normal(own.shape).astype(np.float32)
        self._bent = _BEND * bent / (z @ bent).std(axis=0)
        self._phase = rng.uniform(0, 2 * np.pi, own.shape[1])

    def __call__(self, x: Float32) -> Float32:
        z = (x - self._mean) / self._std
        nonlinear = np.sqrt(2) * np.cos(z @ self._bent + self._phase)
        carried, own = self._shares
        drive = carried * (z @ self._linear) + own * nonlinear
        return np.asarray(drive, np.float32)


@cache
def _reference(kind: str) -> tuple[Float32, Float32, Float32]:
    """Features of 200 images that set the scale for every world and subject: mean, deviation, values."""
    world = World(0, n_train=1, images_per_concept=1, n_test=200)
    x = world.low_level("test") if kind == "low_level" else world.attributes("test")[:, : world.n_semantic]
    return x.mean(axis=0), x.std(axis=0) + 1e-6, x


def _semantic(rng: np.random.Generator, n: int) -> Float32:
    """Draw weights (n_semantic, n) of what an image shows."""
    return rng.standard_normal((_reference("semantic")[0].size, n)).astype(np.float32)


def _retinotopic(rng: np.random.Generator, n: int) -> Float32:
    """Draw weights (240, n) of the low-level features, strong near a place in the other hemifield."""
    side = leadfield.positions("occipital")[:, 0]
    side = np.tile(side, n // len(side))
    centre_x = np.where(np.abs(side) < 0.01, rng.uniform(-0.3, 0.3, n), -np.sign(side) * rng.uniform(0.1, 0.7, n))
    centre_y = rng.uniform(-0.6, 0.6, n)
    weights = []
    for shape in (features.GABOR_SHAPE, features.COLOUR_SHAPE):
        grid = shape[-1]
        place = (np.arange(grid) + 0.5) * 2 / grid - 1
        distance = (place[:, None, None] - centre_y) ** 2 + (place[:, None] - centre_x) ** 2
        field = np.exp(-distance / (2 * _RECEPTIVE_FIELD**2))  # (row, column, source)
        weights.append((rng.standard_normal((*shape, n)) * field).reshape(-1, n))
    return np.concatenate(weights).astype(np.float32)
