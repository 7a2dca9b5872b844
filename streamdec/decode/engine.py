"""Engines run an encoder: epoch in, query embedding out."""

from __future__ import annotations

import os
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime

from ..errors import ConfigError, EngineError
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


class StaticEngine(ABC):
    """An engine with one buffer for the epoch and one for the embedding, both made once.

    Parameters
    ----------
    head : Head
    threads : int
        Within one operation.
    """

    def __init__(self, head: Head, threads: int) -> None:
        if threads < 1:
            raise ConfigError("engine.threads", got=threads, allowed="1 or more")
        self.shape = head.shape
        self.dim = head.dim
        self.name = head.encoder
        self._noise = np.random.default_rng(0).standard_normal(head.shape, dtype=np.float32)
        self._input = np.zeros((1, *head.shape), dtype=np.float32)
        self._output = np.zeros((1, head.dim), dtype=np.float32)

    @abstractmethod
    def _encode(self) -> None:
        """From ``_input`` to ``_output``. Raises EngineError."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the model. Idempotent."""

    def __call__(self, epoch: Float32) -> Float32:
        """Encode one epoch.

        Parameters
        ----------
        epoch : array (n_chans, n_times) float32
            Finite.

        Returns
        -------
        array (dim,) float32
            A static buffer, valid until the next call.

        Raises
        ------
        EngineError
            The epoch has another shape or type, or NaN; or the embedding has.
        """
        if epoch.shape != self.shape or epoch.dtype != np.float32:
            raise EngineError(
                f"epoch for {self.name}",
                got=f"{epoch.dtype} {epoch.shape}",
                allowed=f"float32 {self.shape}",
            )
        _finite(f"epoch for {self.name}", epoch)
        self._input[0] = epoch
        self._encode()
        _finite(f"embedding from {self.name}", self._output)
        embedding: Float32 = self._output[0]
        return embedding

    def warm_up(self, n_runs: int = 20) -> float:
        """Run on made-up epochs of the real shape until caches have settled; return the median seconds of a run."""
        seconds: list[float] = []
        for _ in range(n_runs):
            began = time.perf_counter()
            self(self._noise)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)


class OnnxEngine(StaticEngine):
    """An ONNX encoder in onnxruntime.

    Parameters
    ----------
    model : bytes
        A self-contained ONNX model: weights in files beside it are refused.
    head : Head
        What the model must be: names and sizes of its input and output.
    threads : int
        Threads within one operation. Results are the same for the same number.
    device : {"cpu", "cuda"}
        "cuda" needs onnxruntime-gpu.

    Raises
    ------
    EngineError
        The model cannot be loaded, is not what the head says, or the device is not there.
    """

    def __init__(self, model: bytes, head: Head, threads: int = 1, device: Device = "cpu") -> None:
        super().__init__(head, threads)
        self._head = head
        self._session: Any = _load(model, head, threads, device)
        # Bound buffers cost what session.run costs (0.7 ms either way) and allocate nothing.
        self._binding: Any = self._session.io_binding()
        for bind, name, buffer in (
            (self._binding.bind_input, head.input, self._input),
            (self._binding.bind_output, head.output, self._output),
        ):
            bind(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        self._run(self._noise[None])

    def _encode(self) -> None:
        if self._binding is None:
            raise EngineError(self.name, got="a call after close")
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise EngineError(f"{self.name} failed", got=error) from error

    def run_batch(self, epochs: Float32) -> Float32:
        """Encode (B, n_chans, n_times) float32 epochs into a new array (B, dim), for offline use.

        Values may differ from those of single calls in the last bits, as matrix products depend on their size.
        """
        if epochs.ndim != 3 or epochs.shape[1:] != self.shape or epochs.dtype != np.float32:
            raise EngineError(
                f"epochs for {self.name}",
                got=f"{epochs.dtype} {epochs.shape}",
                allowed=f"float32 (B, {self.shape[0]}, {self.shape[1]})",
            )
        _finite(f"epochs for {self.name}", epochs)
        return self._run(np.ascontiguousarray(epochs))

    def close(self) -> None:
        """Let go of the model. Idempotent."""
        self._binding = self._session = None

    def _run(self, epochs: Float32) -> Float32:
        if self._session is None:
            raise EngineError(self.name, got="a call after close")
        try:
            (embeddings,) = self._session.run([self._head.output], {self._head.input: epochs})
        except Exception as error:  # as above
            raise EngineError(
                f"{self.name} failed", got=error, do=f"it must take a batch of {len(epochs)}, whatever the size"
            ) from error
        made: Float32 = embeddings
        if made.shape != (len(epochs), self.dim) or made.dtype != np.float32:
            raise EngineError(
                f"output of {self.name}",
                got=f"{made.dtype} {made.shape}",
                allowed=f"float32 ({len(epochs)}, {self.dim})",
            )
        _finite(f"embeddings from {self.name}", made)
        return made


def open_session(model: bytes, name: str, threads: int = 1, device: Device = "cpu") -> Any:
    """Open an ONNX model in onnxruntime.

    Parameters
    ----------
    model : bytes
        Self-contained: weights in files beside it are refused.
    name : str
        For messages.
    threads : int
        Within one operation.
    device : {"cpu", "cuda"}

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    EngineError
        It cannot be loaded, or the device is not there.
    """
    provider = _PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise EngineError(
            f"device {device!r} is not there", do="pip install 'streamdec[gpu]', or set engine.device to 'cpu'"
        )
    options = onnxruntime.SessionOptions()
    # A folded NICE (63 x 250, 10 MB) on two cores: 0.73 ms with one thread, 0.65 ms with two. With the pool's default
    # spinning two threads burn 14 ms of CPU for every epoch of a stream at 50 Hz, and their p99 is 9 to 13 ms.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A model may name files for its weights, by default looked for in the working directory: look where none can be.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise EngineError(f"{name} cannot be loaded", got=error, allowed="a self-contained ONNX model") from error
    if session.get_providers()[0] != provider:
        raise EngineError(f"device {device!r} cannot be used", do="check the CUDA libraries onnxruntime-gpu needs")
    return session


def _load(model: bytes, head: Head, threads: int, device: Device) -> Any:
    session = open_session(model, head.encoder, threads, device)
    _expect(head.encoder, "input", session.get_inputs(), head.input, head.shape)
    _expect(head.encoder, "output", session.get_outputs(), head.output, (head.dim,))
    return session


def _expect(encoder: str, what: str, tensors: Sequence[Any], name: str, shape: tuple[int, ...]) -> None:
    """One tensor, of this name, float32, (B, *shape); sizes the model leaves open may be anything."""
    found = [(t.name, t.type, tuple(t.shape)) for t in tensors]
    if len(found) == 1:
        (got, kind, sizes) = found[0]
        fits = len(sizes) == 1 + len(shape) and all(
            not isinstance(size, int) or size == wanted for size, wanted in zip(sizes[1:], shape, strict=True)
        )
        if got == name and kind == "tensor(float)" and fits:
            return
    allowed = f"one float32 {name!r} (B, {', '.join(map(str, shape))})"
    raise EngineError(f"{what} of {encoder}", got=found, allowed=allowed)


def _finite(what: str, values: Float32) -> None:
    if not np.isfinite(values).all():
        raise EngineError(what, got="NaN or infinity", allowed="finite values")
