"""Engines run an encoder: epoch in, query embedding out."""

from __future__ import annotations

from typing import Literal, Protocol

from ..types import Float32
from .manifest import Head

Device = Literal["cpu", "cuda"]
_PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Engine(Protocol):
    """What the loop needs of an encoder that is ready to run."""

    shape: tuple[int, int]
    dim: int

    def __call__(self, epoch: Float32) -> Float32:
        """Encode one epoch (n_chans, n_times) float32: (dim,) float32 in a static buffer, valid until the next call."""

    def warm_up(self, n_runs: int = 20) -> float:
        """Run on made-up epochs of the real shape until caches have settled; return the median seconds of a run."""

    def close(self) -> None:
        """Let go of the model. Idempotent."""


class OnnxEngine:
    """An ONNX encoder in onnxruntime.

    Parameters
    ----------
    model : bytes
        A self-contained ONNX model.
    head : Head
        What the model must be: names and sizes of its input and output.
    threads : int
        Threads within one operator. Idle threads sleep: they do not spin between epochs.
    device : {"cpu", "cuda"}
        "cuda" needs onnxruntime-gpu.

    Raises
    ------
    EngineError
        The model cannot be loaded, is not what the head says, or the device is not there.
    """

    def __init__(self, model: bytes, head: Head, threads: int = 1, device: Device = "cpu") -> None: ...
