"""Small networks that the live side runs: written as ONNX when onnxruntime gives what torch gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from streamdec.errors import EngineError
from streamdec.types import Float32

from ..checkpoint import replace, writing

_OPSET = 18
_ERROR = 1e-4  # of the largest value: both sides add up float32 products, in another order


def write(path: Path, network: nn.Module, examples: Sequence[Mapping[str, Float32]], output: str) -> float:
    """Export a network of one sample at a time, and compare both on examples.

    Parameters
    ----------
    path : Path
    network : nn.Module
        Takes the inputs of an example in their order; evaluated on the CPU.
    examples : sequence of mapping of str to array
        Inputs by name, each (1, ...) float32.
    output : str
        Name of what it gives.

    Returns
    -------
    float
        Largest difference between the two.

    Raises
    ------
    EngineError
        They differ by more than 1e-4 of the largest value; nothing is written.
    """
    network = network.cpu().eval().requires_grad_(False)
    names = list(examples[0])
    model = to_onnx(network, [torch.from_numpy(examples[0][name]) for name in names], names, output)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    error = size = 0.0
    for example in examples:
        with torch.inference_mode():
            wanted = network(*(torch.from_numpy(example[name]) for name in names)).numpy()
        got = session.run(None, {name: example[name] for name in names})[0]
        error, size = max(error, float(np.abs(got - wanted).max())), max(size, float(np.abs(wanted).max()))
    if not error <= _ERROR * size:
        raise EngineError(
            f"{path.name} differs from the trained network; nothing was written",
            got=f"error {error:.3g} of {size:.3g}",
            allowed=f"{_ERROR * size:.3g}",
        )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, model)
    return error


def to_onnx(
    network: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], output: str, *, batched: bool = False
) -> bytes:
    """Export for inputs of these very shapes, or, ``batched``, for any number of samples."""
    program = torch.onnx.export(
        network,
        tuple(inputs),
        input_names=list(names),
        output_names=[output],
        dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in inputs) if batched else None,
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise EngineError("ONNX export", got="no model")
    model = program.model_proto
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")  # where in whose files each node was written
        part.ClearField("doc_string")
    out: bytes = model.SerializeToString()
    return out
