"""A bundle around one matrix: the epoch, flattened, times it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from streamdec.decode import bundle
from streamdec.decode.gallery import Gallery
from streamdec.decode.manifest import Calibration, Head, Manifest
from streamdec.signal.spec import Signal


def write_linear(path: Path, signal: Signal, gallery: Gallery, weights: np.ndarray) -> Path:
    """``weights`` (n_chans * n_times, dim) float32; the signal's steps must not change the epoch's shape."""
    shape, dim = (len(signal.ch_names), signal.window[1]), weights.shape[1]
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["epochs"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["embeddings"]),
        ],
        "linear",
        [helper.make_tensor_value_info("epochs", TensorProto.FLOAT, ["B", *shape])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", dim])],
        [numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )
    encoder = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    manifest = Manifest(
        method="linear",
        citation="made for tests",
        created="2026-01-01T00:00:00Z",
        commit="",
        config={},
        seeds=(),
        data="none",
        simulated=False,
        signal=signal,
        channel_sd={},
        heads=(Head(signal.tmax, "encoder.onnx", shape, dim, Calibration((1,), (10.0,))),),
        evidence="none",
        budgets={"retrieval": 0.05},
        gallery=gallery.kind,
    )
    return bundle.write(path, manifest, {}, gallery, {"encoder.onnx": encoder})
