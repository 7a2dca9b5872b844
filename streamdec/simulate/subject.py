"""A simulated subject: responses and noise, added up to a continuous recording.

What ridge reaches on simulated subjects 0 and 1 of the default world (tools/calibrate_difficulty.py: THINGS-EEG2's
recipe, 4000 training images x 4), 200-way top-1 in per cent, chance 0.5. Simulated figures: they say nothing about
people.

==========  =============  ===========
aligned to  single epochs  means of 80
==========  =============  ===========
attributes      5.2, 5.9    41.0, 40.5
gabor           2.8, 3.3      9.0, 8.0
colour          1.3, 1.2      3.5, 5.0
pixels          1.3, 1.0      4.0, 1.0
==========  =============  ===========
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import ConfigError
from ..types import Float32
from .forward import IDIOSYNCRASY, Forward
from .leadfield import CH_NAMES
from .noise import Noise
from .schedule import TARGET, Schedule
from .world import Split, World


class Electrodes:
    """What is measured while images come on: responses, which may overlap, plus noise.

    Parameters
    ----------
    subject : Subject
    noise : Noise, optional
        Goes on from where it is; none is added when omitted.
    ahead : int
        How many samples ahead of the next one a response may begin.

    Attributes
    ----------
    position : int
        Samples read so far.
    """

    def __init__(self, subject: Subject, noise: Noise | None = None, *, ahead: int) -> None:
        self.position = 0
        self._noise = noise
        self._ahead = np.zeros((len(CH_NAMES), subject.n_times + ahead), np.float32)

    def respond(self, response: Float32, sample: int) -> None:
        """Add a response (63, n_times) that begins at ``sample``; what of it was read already is not changed."""
        start = sample - self.position
        if start < 0:
            response, start = response[:, -start:], 0
        self._ahead[:, start : start + response.shape[1]] += response

    def read(self, n: int) -> Float32:
        """Go on by ``n`` samples, at most ``ahead``: (63, n) float32, microvolt, referenced to Fz; a fresh array."""
        out = self._ahead[:, :n].copy()
        if self._noise is not None:
            out += self._noise.chunk(n)
        self._ahead[:, :-n] = self._ahead[:, n:].copy()
        self._ahead[:, -n:] = 0
        self.position += n
        return out


class Subject:
    """Somebody who looks at the images of a world.

    Parameters
    ----------
    world : World
        What can be shown.
    seed : int
        The subject: another seed has other sources, latencies, amplitudes and noise.
    sfreq : float
        Rate of the recordings, Hz.
    distinctness : float
        How much the responses to different images differ, as a multiple of what makes the subject as hard to decode as
        real ones are. Above 1 small data sets show what big ones would.
    shared : float
        How much of what its sources respond to is everybody's, see :class:`.forward.Forward`.
    idiosyncrasy : float
        How much of it no linear decoder carries over to new images, see :class:`.forward.Forward`.

    Attributes
    ----------
    n_times : int
        Samples of a response.
    """

    ch_names = CH_NAMES

    def __init__(
        self,
        world: World,
        seed: int = 0,
        *,
        sfreq: float = 1000.0,
        distinctness: float = 1.0,
        shared: float = 0.0,
        idiosyncrasy: float = IDIOSYNCRASY,
    ) -> None:
        self.world = world
        self.seed = seed
        self._distinctness = np.float32(distinctness)
        self.sfreq = sfreq
        self._forward = Forward(seed, sfreq, shared=shared, idiosyncrasy=idiosyncrasy)
        self.n_times = self._forward.n_times
        self._moments: dict[Split, Float32] = {}

    def evoked(self, split: Split, images: Sequence[int]) -> Float32:
        """Compute the noise-free responses to ``images`` (0-based).

        (n, 63, n_times) float32, microvolt, referenced to Fz, 0..0.8 s after the onset.
        """
        return self._forward.evoked(self._all_moments(split)[np.asarray(images, np.int64)])

    def noise(self, session: int = 0) -> Noise:
        """Start the noise of a session."""
        return Noise(self.seed, session, self.sfreq)

    def record(self, schedule: Schedule, noise: Noise | None = None, *, chunk: int = 1000) -> Iterator[Float32]:
        """Record a run: overlapping responses plus noise.

        Parameters
        ----------
        schedule : Schedule
            What is shown when; its rate is the subject's.
        noise : Noise, optional
            Goes on from where it is, so runs of one session can follow each other; none is added when omitted.
        chunk : int
            Samples at a time; the signal does not depend on it.

        Yields
        ------
        array of shape (63, chunk), float32
            Microvolt, referenced to Fz; the last may be shorter. A fresh array each time.
        """
        if schedule.sfreq != self.sfreq:
            raise ConfigError(
                "schedule's rate", got=f"{schedule.sfreq:g} Hz", allowed=f"{self.sfreq:g} Hz, the subject's"
            )
        electrodes = Electrodes(self, noise, ahead=chunk)
        shown = 0
        for first in range(0, schedule.n_times, chunk):
            n = min(chunk, schedule.n_times - first)
            while shown < len(schedule.samples) and schedule.samples[shown] < first + n:
                response = self.response(schedule.split, int(schedule.codes[shown]))
                electrodes.respond(response, int(schedule.samples[shown]))
                shown += 1
            yield electrodes.read(n)

    def response(self, split: Split, code: int) -> Float32:
        """Give the noise-free response to an image, by its 1-based code; to any other than the world's for TARGET.

        (63, n_times) float32, microvolt, from the onset on.
        """
        moments = self._all_moments(split)
        return self._forward.evoked(self._forward.mean_moments if code == TARGET else moments[code - 1])

    def _all_moments(self, split: Split) -> Float32:
        if split not in self._moments:
            moments = self._forward.moments(self.world, split)
            if self._distinctness != 1:
                mean = self._forward.mean_moments
                moments = mean + self._distinctness * (moments - mean)
            self._moments[split] = moments
        return self._moments[split]
