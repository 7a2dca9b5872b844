"""Small ONNX networks of a generator: one request at a time, sizes fixed, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....errors import EngineError
from ....types import Float32
from ...engine import open_session
from ..generator import OpenGenerator

_NOISE = "noise"


class Network:
    """A network of one input, whatever its name, and perhaps a second one named "noise"; and of one output.

    Parameters
    ----------
    generator : OpenGenerator
    name : str
        Its file there.
    threads : int
        Within one operation.

    Attributes
    ----------
    input, output : tuple of int
        Their shapes, with a batch of 1.

    Raises
    ------
    EngineError
        It cannot be loaded or run, or has other inputs and outputs.
    """

    def __init__(self, generator: OpenGenerator, name: str, threads: int = 1) -> None:
        self.name = name
        self._session: Any = open_session(generator.read(name), name, threads)
        inputs = {tensor.name: self._shape(tensor) for tensor in self._session.get_inputs()}
        self._noise = inputs.pop(_NOISE, None)
        if len(inputs) != 1 or len(self._session.get_outputs()) != 1:
            raise EngineError(
                f"network {name}",
                got=f"inputs {sorted(inputs)}, {len(self._session.get_outputs())} outputs",
                allowed=f"one input, perhaps {_NOISE!r}, and one output",
            )
        ((self._input, self.input),) = inputs.items()
        self.output: tuple[int, ...] = self(
            np.random.default_rng(0).standard_normal(self.input, dtype=np.float32)
        ).shape

    def __call__(self, values: Float32, seed: int = 0) -> Float32:
        """Run it.

        Parameters
        ----------
        values : array of the shape ``input``, float32
        seed : int
            Of the standard normal noise, where it takes any: the same seed, the same result.

        Returns
        -------
        array of the shape ``output``, float32

        Raises
        ------
        EngineError
            It fails, or gives NaN or infinity.
        """
        given = {self._input: values}
        if self._noise is not None:
            given[_NOISE] = np.random.default_rng(seed).standard_normal(self._noise, dtype=np.float32)
        try:
            (made,) = self._session.run(None, given)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise EngineError(f"network {self.name} failed", got=error) from error
        if made.dtype != np.float32 or not np.isfinite(made).all():
            raise EngineError(f"output of {self.name}", got=f"{made.dtype}, NaN or infinity", allowed="finite float32")
        out: Float32 = made
        return out

    def expect(self, **shapes: tuple[int | None, ...]) -> None:
        """Compare ``input`` or ``output`` with a shape; None is any size.

        Raises
        ------
        EngineError
            It is another one.
        """
        for what, wanted in shapes.items():
            got: tuple[int, ...] = getattr(self, what)
            if len(got) != len(wanted) or any(w not in (None, g) for g, w in zip(got, wanted, strict=True)):
                allowed = tuple("any" if size is None else size for size in wanted)
                raise EngineError(f"{what} of {self.name}", got=got, allowed=allowed)

    def _shape(self, tensor: Any) -> tuple[int, ...]:
        first, *rest = tensor.shape
        if tensor.type != "tensor(float)" or not all(isinstance(size, int) for size in rest):
            raise EngineError(
                f"input {tensor.name!r} of {self.name}",
                got=f"{tensor.type} {tensor.shape}",
                allowed="float32, every size but the batch fixed",
            )
        return (first if isinstance(first, int) else 1, *rest)
