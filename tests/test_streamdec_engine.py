"""OnnxEngine: what numpy computes, static buffers, and every way a model can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

from streamdec.decode.engine import OnnxEngine
from streamdec.decode.manifest import Calibration, Head
from streamdec.errors import ConfigError, EngineError

N_CHANS, N_TIMES, N_FILTERS, DIM = 63, 250, 40, 64
RNG = np.random.default_rng(0)
TEMPORAL = RNG.standard_normal((N_FILTERS, 75)).astype(np.float32) * 0.1
SPATIAL = RNG.standard_normal((N_FILTERS, N_FILTERS, N_CHANS)).astype(np.float32) * 0.02
LINEAR = RNG.standard_normal((N_FILTERS * 36, DIM)).astype(np.float32) * 0.02
HEAD = Head(1.0, "encoder.onnx", (N_CHANS, N_TIMES), DIM, Calibration((1,), (10.0,)))


def model(
    *,
    batch: str | int = "B",
    n_chans: int = N_CHANS,
    dim: int = DIM,
    input_name: str = "epochs",
    output_name: str = "embeddings",
    outputs: int = 1,
) -> Any:
    """A small NICE with folded temporal layer: a strided convolution in time, one across channels, a projection."""
    nodes = [
        helper.make_node("Unsqueeze", [input_name, "axis"], ["x"]),
        helper.make_node("Conv", ["x", "temporal"], ["t"], strides=[1, 5]),
        helper.make_node("Conv", ["t", "spatial"], ["s"]),
        helper.make_node("Elu", ["s"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "linear"], [output_name]),
    ]
    made = [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, [batch, dim])]
    if outputs == 2:
        nodes.append(helper.make_node("Identity", [output_name], ["more"]))
        made.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [batch, dim]))
    graph = helper.make_graph(
        nodes,
        "nice",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [batch, n_chans, N_TIMES])],
        made,
        [
            numpy_helper.from_array(np.array([1]), "axis"),
            numpy_helper.from_array(TEMPORAL[:, None, None, :], "temporal"),
            numpy_helper.from_array(SPATIAL[:, :, :n_chans, None], "spatial"),
            numpy_helper.from_array(LINEAR, "linear"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def naive(epoch: Any) -> Any:
    windows = sliding_window_view(epoch.astype(np.float64), 75, axis=1)[:, ::5]  # (n_chans, 36, 75)
    in_time = np.einsum("ctk,fk->fct", windows, TEMPORAL)
    across = np.einsum("fct,gfc->gt", in_time, SPATIAL)
    return np.where(across > 0, across, np.expm1(across)).ravel() @ LINEAR


def epochs(n: int) -> Any:
    return np.random.default_rng(1).standard_normal((n, N_CHANS, N_TIMES)).astype(np.float32)


@pytest.fixture(scope="module")
def engine() -> OnnxEngine:
    return OnnxEngine(model().SerializeToString(), HEAD)


def test_embeds_as_numpy_does(engine: OnnxEngine) -> None:
    x = epochs(3)
    before = x.copy()
    singles = np.stack([engine(epoch).copy() for epoch in x])
    np.testing.assert_allclose(singles, np.stack([naive(epoch) for epoch in x]), atol=1e-5)
    np.testing.assert_allclose(engine.run_batch(x), singles, atol=1e-6)
    np.testing.assert_array_equal(x, before)
    assert engine.run_batch(x[:0]).shape == (0, DIM)
    assert (engine.shape, engine.dim) == ((N_CHANS, N_TIMES), DIM)


def test_output_is_a_static_buffer_and_repeats_bit_for_bit(engine: OnnxEngine) -> None:
    x = epochs(2)
    first = engine(x[0])
    kept = first.copy()
    second = engine(x[1])
    assert np.shares_memory(first, second)
    assert not np.array_equal(kept, second)
    np.testing.assert_array_equal(engine(x[0]), kept)
    np.testing.assert_array_equal(engine(np.asfortranarray(x[0])), kept)  # any memory layout


def test_warm_up_tells_the_cost(engine: OnnxEngine) -> None:
    assert 0 < engine.warm_up(3) < 10


def test_threads_give_the_same_embedding(engine: OnnxEngine) -> None:
    other = OnnxEngine(model().SerializeToString(), HEAD, threads=2)
    x = epochs(1)[0]
    np.testing.assert_allclose(other(x), engine(x), atol=1e-6)
    with pytest.raises(ConfigError, match=r"engine\.threads"):
        OnnxEngine(b"", HEAD, threads=0)


@pytest.mark.parametrize(
    "wrong",
    [np.ones((N_CHANS, N_TIMES)), np.ones((N_TIMES, N_CHANS), np.float32), np.ones((1, N_CHANS, N_TIMES), np.float32)],
    ids=["float64", "turned", "batched"],
)
def test_epochs_of_another_shape_or_type_are_refused(engine: OnnxEngine, wrong: Any) -> None:
    with pytest.raises(EngineError, match=r"epoch for encoder.onnx; got float.*; allowed: float32 \(63, 250\)"):
        engine(wrong)
    with pytest.raises(EngineError, match=r"allowed: float32 \(B, 63, 250\)"):
        engine.run_batch(wrong[:, :, :9] if wrong.ndim == 3 else wrong)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_never_reaches_the_encoder(engine: OnnxEngine, bad: float) -> None:
    x = epochs(1)
    x[0, 5, 7] = bad
    for call in (lambda: engine(x[0]), lambda: engine.run_batch(x)):
        with pytest.raises(EngineError, match="NaN or infinity"):
            call()


def test_an_encoder_that_overflows_is_told(engine: OnnxEngine) -> None:
    with pytest.raises(EngineError, match=r"embedding from encoder\.onnx; got NaN or infinity"):
        engine(np.full((N_CHANS, N_TIMES), 3e38, np.float32))


def test_close_is_idempotent_and_final() -> None:
    engine = OnnxEngine(model().SerializeToString(), HEAD)
    engine.close()
    engine.close()
    for call in (lambda: engine(epochs(1)[0]), lambda: engine.run_batch(epochs(1))):
        with pytest.raises(EngineError, match="after close"):
            call()


@pytest.mark.parametrize("raw", [b"", b"garbage", model().SerializeToString()[:5000]], ids=["empty", "garbage", "cut"])
def test_what_is_no_model_is_refused_in_one_line(raw: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError, match=r"encoder\.onnx cannot be loaded") as caught:
        OnnxEngine(raw, HEAD)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_chans": 62}, "input of encoder.onnx"),
        ({"input_name": "x0"}, "input of encoder.onnx"),
        ({"output_name": "z"}, "output of encoder.onnx"),
        ({"outputs": 2}, "output of encoder.onnx"),
    ],
)
def test_a_model_that_is_not_what_the_head_says_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        OnnxEngine(model(**change).SerializeToString(), HEAD)


def test_sizes_the_model_leaves_open_are_checked_by_running_it() -> None:
    nodes = [  # as many values as are positive
        helper.make_node("Flatten", ["epochs"], ["f"]),
        helper.make_node("ReduceMax", ["f"], ["m"], axes=[0], keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["c"]),
        helper.make_node("Compress", ["f", "c"], ["embeddings"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "open",
        [helper.make_tensor_value_info("epochs", TensorProto.FLOAT, ["B", N_CHANS, N_TIMES])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", "D"])],
        [numpy_helper.from_array(np.float32(0), "zero")],
    )
    raw = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    with pytest.raises(
        EngineError, match=r"output of encoder.onnx; got float32 \(1, \d+\); allowed: float32 \(1, 64\)"
    ):
        OnnxEngine(raw, HEAD)


def test_a_model_for_single_epochs_runs_and_says_so_of_batches() -> None:
    fixed = OnnxEngine(model(batch=1).SerializeToString(), HEAD)
    x = epochs(2)
    np.testing.assert_allclose(fixed(x[0]), naive(x[0]), atol=1e-5)
    with pytest.raises(EngineError, match="a batch of 2"):
        fixed.run_batch(x)


def test_a_model_cannot_make_us_read_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "encoder.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    with pytest.raises(EngineError, match="self-contained"):
        OnnxEngine(path.read_bytes(), HEAD)


def test_a_device_that_is_not_there_is_named() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here")
    with pytest.raises(EngineError, match=r"device 'cuda' is not there; pip install 'streamdec\[gpu\]'"):
        OnnxEngine(model().SerializeToString(), HEAD, device="cuda")
