"""A head of a bundle, opened where calibration changes it: front chain, alignment, encoder, adaptation, gallery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..decode.adapt import Adaptation
from ..decode.bundle import Bundle
from ..decode.engine import OnnxEngine
from ..decode.gallery import unit
from ..decode.manifest import Head
from ..signal.chain import Chain
from ..signal.spec import Scale, Signal, Step, Whiten
from ..types import Float32, Float64, Int64
from .align import ALIGNER
from .judge import groups

_BATCH = 64


class Decoder:
    """One head.

    Attributes
    ----------
    front : Chain
        The steps before whitening: what calibration leaves as it is.
    whitener : str
        Name of the whitening step's array, "" where the chain has none.
    reference : array of shape (n_chans, n_chans), or None
        Covariance of the training epochs behind the chain; None where the bundle does not tell.
    """

    def __init__(self, bundle: Bundle, head: Head, threads: int = 1) -> None:
        self.bundle, self.head = bundle, head
        self.features = bundle.gallery.features
        self._engine = OnnxEngine(bundle.encoder(head), head, threads)
        self._signal = bundle.manifest.signal.until(head.horizon)
        names = {step.array for step in self._signal.steps if isinstance(step, Whiten)} | {"evoked", "covariance"}
        names |= set(bundle.manifest.array_names)
        self._arrays: dict[str, npt.NDArray[Any]] = {
            name: array for name in names if (array := bundle.array(head, name)) is not None
        }
        steps = plain(self._signal)
        at = next((i for i, step in enumerate(steps) if isinstance(step, Whiten)), len(steps))
        self._rest, own = steps[at:], self._signal.steps[at:]
        first = self._rest[0] if self._rest else None
        self.whitener = first.array if isinstance(first, Whiten) else ""
        self.front = Chain(msgspec.structs.replace(self._signal, steps=steps[:at]), self._arrays)
        front = self.front
        tmax = front.tmin + (front.shape[1] - 1) / front.sfreq
        self._behind = Signal(front.ch_names, front.sfreq, front.tmin, tmax)
        self._own = self._chain(own, {})
        self.reference: Float64 | None = self._arrays.get("covariance")
        if self.reference is None and self.whitener:
            factors = np.prod([step.factor for step in self._rest if isinstance(step, Scale)])
            self.reference = np.eye(head.shape[0]) * factors**2

    @property
    def evoked(self) -> Float32 | None:
        """Mean response that is expected behind the chain, (n_chans, n_times); None where the bundle does not tell."""
        return self._arrays.get("evoked")

    @property
    def adaptation(self) -> Adaptation | None:
        """What the bundle has already."""
        return self.bundle.adaptation(self.head)

    def kept(self, front: Float32) -> Float32:
        """Epochs (n, ...) behind the front -> the encoder's input, as the bundle has it."""
        return self._own(front)

    def changed(self, front: Float32, arrays: Mapping[str, npt.NDArray[Any]]) -> Float32:
        """Do the same with other arrays; the aligner only where it is among them."""
        last: tuple[Step, ...] = (Whiten(ALIGNER),) if ALIGNER in arrays else ()
        return self._chain((*self._rest, *last), arrays)(front)

    def encode(self, epochs: Float32) -> Float32:
        """Epochs (n, n_chans, n_times) behind the chain -> embeddings (n, D), not adapted."""
        blocks = range(0, len(epochs), _BATCH)
        return np.concatenate([self._engine.run_batch(epochs[start : start + _BATCH]) for start in blocks])

    def similarities(self, embeddings: Float32, adaptation: Adaptation | None) -> Float32:
        """Cosines with the gallery, (n, G)."""
        adapted = embeddings if adaptation is None else adaptation(embeddings)
        out: Float32 = unit(adapted) @ self.features.T
        return out

    def repeated(
        self, epochs: Float32, embeddings: Float32, image: Int64, repetitions: int, adaptation: Adaptation | None
    ) -> tuple[Float32, Int64]:
        """Add repetitions up as the bundle's evidence does.

        Returns
        -------
        similarities : array of shape (n_groups, G)
            Times the weight of the evidence.
        image : array of shape (n_groups,)
        """
        members = groups(image, repetitions)
        if not members:
            return np.empty((0, len(self.features)), np.float32), np.empty(0, np.int64)
        index = np.stack(members)
        if repetitions == 1:
            return self.similarities(embeddings[index[:, 0]], adaptation), image[index[:, 0]]
        if self.bundle.manifest.evidence == "mean":
            means = np.stack([epochs[each].mean(axis=0, dtype=np.float64).astype(np.float32) for each in index])
            return self.similarities(self.encode(means), adaptation), image[index[:, 0]]
        adapted = unit(embeddings if adaptation is None else adaptation(embeddings))
        weighted: Float32 = adapted[index].mean(axis=1) @ self.features.T
        return weighted, image[index[:, 0]]

    def close(self) -> None:
        """Let go of the encoder."""
        self._engine.close()

    def _chain(self, steps: tuple[Step, ...], arrays: Mapping[str, npt.NDArray[Any]]) -> Chain:
        return Chain(msgspec.structs.replace(self._behind, steps=steps), {**self._arrays, **arrays})


def plain(signal: Signal) -> tuple[Step, ...]:
    """The steps of a signal without the aligner of an earlier calibration."""
    return tuple(step for step in signal.steps if step != Whiten(ALIGNER))
