"""From a bundle to an engine for this machine: what is compiled agrees with ONNX, or nothing is kept."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import small_bundle
import tiny_store
import torch
from torch import nn

from offline import cli, engines, parity
from offline.data.store import Prepared
from offline.engines import Half, Wanted, compile_bundle, exported, made_up
from streamdec.config import Config, EngineSettings
from streamdec.decode import bundle as bundles
from streamdec.decode import compiled
from streamdec.decode.archive import write_archive
from streamdec.decode.bundle import Bundle
from streamdec.decode.compiled import CompiledEngine
from streamdec.decode.engine import OnnxEngine
from streamdec.errors import BundleError, DataError, EngineError
from streamdec.serve import engines as live_engines

SHORT = "[schedule]\nn_epochs_train = 1\nbatch_size = 32\n"
AOTI = Wanted("aoti")


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, runs on it, and their bundles."""
    path = tmp_path_factory.mktemp("engines")
    tiny_store.make(path / "store", noise=2.0)
    (path / "short.toml").write_text(SHORT)
    for method in ("ridge", "nice"):
        config = ["--config", path / "short.toml"] if method == "nice" else []
        assert run("fit", method, path / "store", path / "store-targets", path / method, *config) == 0
        assert run("export", path / method, path / f"{method}.zip") == 0
    return path


@pytest.fixture(params=["ridge", "nice"])
def bundle(request: pytest.FixtureRequest, folder: Path) -> Bundle:
    return bundles.read(folder / f"{request.param}.zip")


@pytest.mark.slow
def test_aotinductor_from_the_command_to_the_live_engine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Really compiled, once."""
    arguments = ("compile", folder / "nice.zip", "--engine", "aoti", "--cache", folder / "cache")
    assert run(*arguments, "--prepared", folder / "store") == 0
    first = capsys.readouterr()
    assert "compiling for aoti, as none was compiled" in first.err
    assert "as ONNX on 64 real epochs, error" in first.out
    assert 'engine.kind = "aoti" and engine.device = "cpu"' in first.out
    (package,) = (folder / "cache").rglob("engine.pt2")
    written = package.stat().st_mtime_ns
    assert run(*arguments) == 0
    assert "aoti is there already" in capsys.readouterr().err
    assert package.stat().st_mtime_ns == written
    assert sorted(p.name for p in package.parent.parent.iterdir()) == ["aoti-cpu"], "nothing half-made is left"

    nice = bundles.read(folder / "nice.zip")
    config = Config(engine=EngineSettings(kind="aoti", cache=str(folder / "cache")))
    (fast,) = live_engines(nice, config).values()
    (onnx,) = live_engines(nice, Config()).values()
    assert isinstance(fast, CompiledEngine)
    epochs = np.asarray(Prepared(folder / "store").part("test").epochs[:20])
    got = np.stack([fast(epoch).copy() for epoch in epochs])
    wanted = np.stack([onnx(epoch).copy() for epoch in epochs])
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(fast.run_batch(epochs), got, atol=1e-6)


def test_what_is_exported_computes_what_onnx_does(bundle: Bundle) -> None:
    (head,) = bundle.manifest.heads
    network = engines.rebuilt(bundle, head)
    epochs = made_up(bundle, head, 5)
    wanted = OnnxEngine(bundle.encoder(head), head).run_batch(epochs)
    for most in (1, 5):
        program = exported(network, head.shape, Wanted("aoti", max_batch=most)).module()
        for n in {1, most}:
            np.testing.assert_allclose(program(torch.from_numpy(epochs[:n])).detach(), wanted[:n], atol=1e-5)
    with pytest.raises(Exception, match=r"batch|size|shape|Expected"):
        program(torch.from_numpy(np.concatenate([epochs, epochs])))


def test_made_up_epochs_have_the_scale_of_the_signal(folder: Path) -> None:
    bundle = bundles.read(
        small_bundle.write_bundle(folder / "sd.zip", channel_sd=dict.fromkeys(small_bundle.NAMES, 3.0))
    )
    (head,) = bundle.manifest.heads
    epochs = made_up(bundle, head, 200)
    assert epochs.shape == (200, *head.shape)
    np.testing.assert_allclose(epochs.std(), 3.0, rtol=0.05)
    np.testing.assert_array_equal(epochs, made_up(bundle, head, 200))


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.export in the place of the C++ compiler, which takes ten seconds: what was compiled."""
    made: list[str] = []

    def pack(program: Any, *, package_path: str, inductor_configs: dict[str, Any]) -> None:
        assert inductor_configs == {"cpp.dynamic_threads": True}
        torch.export.save(program, package_path)
        made.append(package_path)

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", pack)
    monkeypatch.setattr(
        torch._inductor, "aoti_load_package", lambda path, run_single_threaded: torch.export.load(path).module()
    )
    return made


def test_it_is_compiled_again_where_it_does_not_fit(
    folder: Path, tmp_path: Path, packed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ridge, said = bundles.read(folder / "ridge.zip"), []

    def again(wanted: Wanted = AOTI, prepared: Prepared | None = None) -> str:
        said.clear()
        before = len(packed)
        (build,) = compile_bundle(ridge, wanted, tmp_path, prepared, lambda line, *_: said.append(line))
        assert build == compiled.read_build(compiled.slot(tmp_path, build.encoder, "aoti", "cpu"))
        return f"{len(packed) - before} {said[0]}"

    assert "1 encoder.onnx: compiling for aoti, as none" in again()
    assert again() == "0 encoder.onnx: aoti is there already"
    assert "takes up to 1 epochs" in again(Wanted("aoti", max_batch=3))
    assert again(Wanted("aoti", max_batch=3))[0] == "0"
    assert "never held against real epochs" in again(Wanted("aoti", max_batch=3), Prepared(folder / "store"))
    assert again(Wanted("aoti", max_batch=3), Prepared(folder / "store"))[0] == "0"
    assert again(Wanted("aoti", max_batch=3))[0] == "0", "held against real epochs is more than was asked for"
    monkeypatch.setattr(engines, "machine", lambda *_: "another processor")
    monkeypatch.setattr(compiled, "machine", lambda *_: "another processor")
    assert "1 encoder.onnx: compiling for aoti, as it was compiled for another machine" in again()
    (package,) = tmp_path.rglob("engine.pt2")
    package.write_bytes(b"")
    assert "another sha256" in again()


def with_weights(bundle: Path, weights: bytes, out: Path) -> Bundle:
    """The bundle, sealed anew with other weights."""
    with zipfile.ZipFile(bundle) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    fields = msgspec.json.decode(contents["manifest.json"])
    fields["files"]["encoder.safetensors"] = hashlib.sha256(weights).hexdigest()
    raw = msgspec.json.encode(fields)
    seal = f"{hashlib.sha256(raw).hexdigest()}  manifest.json\n".encode()
    contents |= {"encoder.safetensors": weights, "manifest.json": raw, "manifest.sha256": seal}
    write_archive(out, contents, zipped=True)
    return bundles.read(out)


def test_what_disagrees_is_not_kept(folder: Path, tmp_path: Path, packed: list[str]) -> None:
    weights = bytearray((folder / "ridge" / "encoder.safetensors").read_bytes())
    weights[-4096:] = np.random.default_rng(0).standard_normal(1024).astype(np.float32).tobytes()
    other = with_weights(folder / "ridge.zip", bytes(weights), tmp_path / "other.zip")
    with pytest.raises(EngineError, match=r"aoti differs from encoder\.onnx; got error .* allowed: error"):
        compile_bundle(other, AOTI, tmp_path / "cache")
    assert packed
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_weights_that_carry_code_are_refused(folder: Path, tmp_path: Path, packed: list[str]) -> None:
    evil = with_weights(folder / "nice.zip", pickle.dumps(Evil(tmp_path / "made")), tmp_path / "evil.zip")
    with pytest.raises(DataError, match=r"encoder\.safetensors"):
        compile_bundle(evil, AOTI, tmp_path / "cache")
    assert not (tmp_path / "made").exists()


def test_weights_of_another_method_and_a_cache_that_cannot_be_written_are_told(
    folder: Path, tmp_path: Path, packed: list[str]
) -> None:
    weights = (folder / "ridge" / "encoder.safetensors").read_bytes()
    mixed = with_weights(folder / "nice.zip", weights, tmp_path / "mixed.zip")
    with pytest.raises(BundleError, match=r"encoder\.safetensors is no nice network; got .*; export it again"):
        compile_bundle(mixed, AOTI, tmp_path / "cache")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EngineError, match=r"cache .* cannot be written; got Not a directory; free space there"):
        compile_bundle(bundles.read(folder / "ridge.zip"), AOTI, tmp_path / "file")


def test_a_bundle_without_weights_says_what_to_do(tmp_path: Path, packed: list[str]) -> None:
    bare = bundles.read(small_bundle.write_bundle(tmp_path / "bare.zip"))
    with pytest.raises(BundleError, match=r"no encoder-0\.5\.safetensors; export it again"):
        compile_bundle(bare, AOTI, tmp_path / "cache")


def test_a_compiler_that_fails_is_told_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no C++ compiler\nlong tale")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(
        EngineError, match=r"aoti cannot compile encoder\.onnx; got no C\+\+ compiler; it needs a C\+\+"
    ):
        compile_bundle(bundles.read(folder / "ridge.zip"), AOTI, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--engine", "aoti", "--max-batch", 0), 2, "max_batch; got 0; allowed: 1 or more"),
        (("--engine", "tensorrt-fp16", "--device", "cpu"), 2, "device of tensorrt-fp16; got cpu; allowed: cuda"),
        (("--engine", "tensorrt-fp32"), 1, "pip install 'streamdec[tensorrt]'"),
        (("--engine", "aoti", "--prepared", "OTHER"), 2, "another signal than the bundle's"),
    ],
)
def test_errors_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[Any, ...], code: int, says: str
) -> None:
    if "OTHER" in arguments:
        shutil.copytree(folder / "store", tmp_path / "OTHER")
        meta = msgspec.json.decode((tmp_path / "OTHER" / "meta.json").read_bytes())
        meta["signal"]["sfreq"] = 99.0
        (tmp_path / "OTHER" / "meta.json").write_bytes(msgspec.json.encode(meta))
    arguments = tuple(tmp_path / "OTHER" if a == "OTHER" else a for a in arguments)
    assert run("compile", folder / "nice.zip", "--cache", tmp_path / "cache", *arguments) == code
    captured = capsys.readouterr().err.replace("\n", " ")
    assert says in captured
    assert "Traceback" not in captured


class FakeTensorRt:
    """What is asked of torch_tensorrt; TensorRT itself was never run. It computes what the program does."""

    __version__ = "2.14.0"

    def __init__(self) -> None:
        self.inputs: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        self.saved: dict[str, Any] = {}
        self.dynamo = SimpleNamespace(compile=self._compile)

    def Input(self, **shapes: Any) -> dict[str, Any]:  # noqa: N802 - its name there
        self.inputs.append(shapes)
        return shapes

    def _compile(self, program: Any, *, arg_inputs: list[Any], **options: Any) -> Any:
        assert arg_inputs == self.inputs
        self.options = options
        return program

    def save(self, module: Any, path: str, **options: Any) -> None:
        self.saved = options
        torch.export.save(module, path)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, packed: list[str]) -> FakeTensorRt:
    fake = FakeTensorRt()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", fake)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.1"))  # type: ignore[arg-type]
    return fake


def on_cpu(kind: str, max_batch: int = 1) -> Any:
    """What ``Wanted`` would refuse: a TensorRT engine without a GPU."""
    return SimpleNamespace(kind=kind, device="cpu", max_batch=max_batch)


@pytest.mark.parametrize(("kind", "most"), [("tensorrt-fp32", 1), ("tensorrt-fp32", 4), ("tensorrt-fp16", 1)])
def test_tensorrt_is_asked_as_its_documentation_says(
    folder: Path, tmp_path: Path, tensorrt: FakeTensorRt, kind: str, most: int
) -> None:
    nice = bundles.read(folder / "nice.zip")
    (build,) = compile_bundle(nice, on_cpu(kind, most), tmp_path, Prepared(folder / "store"))
    shape = nice.manifest.heads[0].shape
    (asked,) = tensorrt.inputs
    assert asked.pop("dtype") == torch.float32
    if most == 1:
        assert asked == {"shape": (1, *shape)}
    else:
        assert asked == {"min_shape": (1, *shape), "opt_shape": (1, *shape), "max_shape": (4, *shape)}
    timing = Path(tensorrt.options.pop("timing_cache_path"))
    assert timing.is_relative_to(tmp_path)
    assert tensorrt.options == {"min_block_size": 1, "disable_tf32": True, "use_fp32_acc": kind == "tensorrt-fp16"}
    assert tensorrt.saved.pop("arg_inputs")
    assert tensorrt.saved == {"output_format": "aot_inductor", "retrace": True}
    assert build.versions == {"torch": str(torch.__version__), "torch_tensorrt": "2.14.0", "tensorrt": "11.1"}
    assert not build.made_up
    if kind == "tensorrt-fp16":
        assert build.parity.max_abs_error > 1e-5, "computed in float16"
    else:
        assert build.parity.max_abs_error < 1e-5


def test_half_is_asked_and_answers_in_single() -> None:
    linear = nn.Linear(3, 2)
    half = Half(linear)
    made = half(torch.ones(4, 3))
    assert (made.dtype, half.network.weight.dtype, linear.weight.dtype) == (torch.float32, torch.float16, torch.float32)
    np.testing.assert_allclose(made.detach(), linear(torch.ones(4, 3)).detach(), atol=1e-2)


def test_a_precision_may_cost_twice_what_it_costs_torch() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((20, 8)).astype(np.float32)
    noise = 1e-3 * rng.standard_normal(wanted.shape).astype(np.float32)
    cost = parity.compare(wanted + noise, wanted)
    near, far = parity.compare(wanted + 1.9 * noise, wanted), parity.compare(wanted + 3 * noise, wanted)
    lengths = np.linalg.norm(wanted, axis=1)
    naive = [w @ (w + n) / np.linalg.norm(w + n) / v for w, n, v in zip(wanted, noise, lengths, strict=True)]
    assert cost.cosine == pytest.approx(min(naive), abs=1e-7)
    assert cost.error == pytest.approx(np.abs(noise).max(), rel=1e-3)
    with pytest.raises(EngineError, match=r"it; got error .* of .*; allowed: error"):
        parity.check("it", near)
    with pytest.raises(EngineError, match="it"):
        parity.check("it", far, cost)
    parity.check("it", parity.compare(wanted + 1.3 * noise, wanted), cost)
    parity.check("it", parity.compare(wanted, wanted))
