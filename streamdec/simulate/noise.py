"""Noise that looks like EEG, as an endless stream.

Background activity of 64 dipoles with a 1/f spectrum, an alpha rhythm that waxes and wanes over the back of the head,
blinks, line hum, slow electrode drift and amplifier noise. All but the last three go through the lead field, so
channels correlate as on a head.
"""

from __future__ import annotations

import numpy as np
import scipy.signal

from ..signal.rate import Rate
from ..types import Float32, Float64
from . import leadfield

BACKGROUND = 8.0
"""Standard deviation of the background, microvolt, mean over channels."""
SLOPE = 1.3
"""Exponent of the background's power spectrum: power ~ 1 / f ** SLOPE above ``CORNER``."""
CORNER = 0.3
"""Hz; the spectrum is flat below."""
ALPHA = 8.0
"""Standard deviation of the alpha rhythm, microvolt, mean over its six strongest channels."""
BLINK = 120.0
"""Peak of a blink at Fp1 and Fp2, microvolt."""
BLINKS = 10.0
"""Blinks per minute."""
LINE_FREQ = 50.0
LINE = 1.0
"""Amplitude of the line hum, microvolt, mean over channels."""
DRIFT, DRIFT_TIME = 15.0, 20.0
"""Standard deviation of the electrode drift, microvolt, and its time constant, s."""
SENSOR = 1.0
"""Standard deviation of the amplifier noise, microvolt."""

_BLOCK = 0.25  # s; noise is made in blocks of this length whatever is asked for, so it does not depend on the asking
_WARM_UP = 5.0  # s, until the filters have forgotten that they started from rest


class Noise:
    """The noise of one session of one subject.

    Parameters
    ----------
    seed : int
        The subject: fixes alpha frequency and the strength of alpha, line and blinks.
    session : int
        Another session of the same subject: same character, other noise.
    sfreq : float
        Rate, Hz.
    """

    def __init__(self, seed: int = 0, session: int = 0, sfreq: float = 1000.0) -> None:
        subject = np.random.default_rng([seed, 3])
        self._rng = np.random.default_rng([seed, 4, session])
        self.sfreq = sfreq
        self._n_block = Rate(sfreq).to_samples(_BLOCK)
        brain, alpha, eyes = (leadfield.gain(group) for group in ("brain", "alpha", "eyes"))
        brain = brain * (BACKGROUND / _rms(brain).mean())
        alpha = alpha * (ALPHA * subject.uniform(0.6, 1.4) / np.sort(_rms(alpha))[-6:].mean())
        blink = eyes.sum(axis=1, keepdims=True)
        blink = blink * (BLINK * subject.uniform(0.7, 1.3) / blink[:2].mean())  # Fp1 and Fp2 are the first two
        self._gain = np.concatenate([brain, alpha, blink], axis=1).astype(np.float32)
        self._background = _Coloured(_pink(sfreq), brain.shape[1], sfreq)
        self._alpha = _Coloured(_resonance(subject.uniform(9.0, 11.0), sfreq), alpha.shape[1], sfreq)
        hum = subject.uniform(0.3, 1.7, len(brain)) * LINE
        phase = subject.normal(0, 0.3, len(brain))
        self._hum = np.stack([hum * np.cos(phase), hum * np.sin(phase)], axis=1).astype(np.float32)
        self._blink = _blink(sfreq)
        self._eyes = np.zeros(self._n_block + len(self._blink), np.float32)
        self._next_blink = 0
        self._drift = DRIFT * self._rng.standard_normal(len(brain)).astype(np.float32)
        self._position = 0
        for _ in range(Rate(sfreq).to_samples(_WARM_UP) // self._n_block):
            self._make()
        self._block = self._make()
        self._used = 0

    def chunk(self, n_times: int) -> Float32:
        """Continue by ``n_times`` samples: (63, n_times) float32, microvolt, referenced to Fz."""
        out = np.empty((len(self._gain), n_times), np.float32)
        done = 0
        while done < n_times:
            if self._used == self._n_block:
                self._block, self._used = self._make(), 0
            n = min(n_times - done, self._n_block - self._used)
            out[:, done : done + n] = self._block[:, self._used : self._used + n]
            done += n
            self._used += n
        return out

    def _make(self) -> Float32:
        n = self._n_block
        sources = np.concatenate([self._background(self._rng, n), self._alpha(self._rng, n), self._blinks(n)[None]])
        block: Float32 = self._gain @ sources
        cycles = LINE_FREQ / self.sfreq * (self._position + np.arange(n))
        turn = 2 * np.pi * (cycles % 1)
        block += self._hum @ np.stack([np.sin(turn), np.cos(turn)]).astype(np.float32)
        keep = np.exp(-n / self.sfreq / DRIFT_TIME)
        fresh = self._rng.standard_normal(len(block), np.float32)
        drift = (keep * self._drift + np.sqrt(1 - keep**2) * DRIFT * fresh).astype(np.float32)
        ramp = np.arange(1, n + 1, dtype=np.float32) / n
        block += self._drift[:, None] + (drift - self._drift)[:, None] * ramp
        self._drift = drift
        sensor = self._rng.standard_normal((len(block) + 1, n), np.float32)
        block += SENSOR * (sensor[:-1] - sensor[-1])  # the last row is the reference electrode's own noise
        self._position += n
        return block

    def _blinks(self, n: int) -> Float32:
        while self._next_blink < self._position + n:
            if self._next_blink >= self._position:
                first = self._next_blink - self._position
                self._eyes[first : first + len(self._blink)] += self._blink
            wait = 0.6 + self._rng.exponential(60 / BLINKS - 0.6)  # s; nobody blinks twice within 0.6 s
            self._next_blink = max(self._next_blink, self._position) + Rate(self.sfreq).to_samples(wait)
        now = self._eyes[:n].copy()
        self._eyes[:-n] = self._eyes[n:].copy()
        self._eyes[-n:] = 0
        return now


class _Coloured:
    """Independent rows of filtered white noise with unit variance; the filter's state goes on from call to call."""

    def __init__(self, sos: Float64, n_rows: int, sfreq: float) -> None:
        freqs = np.geomspace(1e-3, sfreq / 2, 20_000)
        _, response = scipy.signal.sosfreqz(sos, freqs, fs=sfreq)
        power = np.trapezoid(np.abs(response) ** 2, freqs) / (sfreq / 2)
        self._sos = sos.copy()
        self._sos[0, :3] /= np.sqrt(power)
        self._state = np.zeros((len(sos), n_rows, 2))

    def __call__(self, rng: np.random.Generator, n_times: int) -> Float32:
        white = rng.standard_normal((self._state.shape[1], n_times), np.float32)
        coloured, self._state = scipy.signal.sosfilt(self._sos, white, axis=1, zi=self._state)
        return np.asarray(coloured, np.float32)


def _pink(sfreq: float) -> Float64:
    """Make power ~ 1 / f ** SLOPE: poles two octaves apart, zeros between them to take back the fall too many."""
    poles = CORNER * 4.0 ** np.arange(np.ceil(np.log(sfreq / 2 / CORNER) / np.log(4)))
    zeros = poles * 4 ** (SLOPE / 2)
    z, p = (np.exp(-2 * np.pi * f / sfreq) for f in (zeros, poles))
    return np.asarray(scipy.signal.zpk2sos(z, p, 1.0), np.float64)


def _resonance(freq: float, sfreq: float, width: float = 1.5) -> Float64:
    """Make a resonance ``width`` Hz wide: white noise through it waxes and wanes on the scale of 1 / width."""
    radius, angle = np.exp(-np.pi * width / sfreq), 2 * np.pi * freq / sfreq
    return np.array([[1.0, 0.0, -1.0, 1.0, -2 * radius * np.cos(angle), radius**2]])


def _blink(sfreq: float) -> Float32:
    """Lid trace with peak 1: closes in 0.1 s, opens in 0.25 s."""
    close, open_ = Rate(sfreq).to_samples(0.1), Rate(sfreq).to_samples(0.25)
    down = 0.5 - 0.5 * np.cos(np.pi * np.arange(close) / close)
    up = 0.5 + 0.5 * np.cos(np.pi * np.arange(open_) / open_)
    return np.concatenate([down, up]).astype(np.float32)


def _rms(gain: Float32) -> Float32:
    """Deviation on each channel when every source has unit variance."""
    out: Float32 = np.sqrt((gain**2).sum(axis=1))
    return out
