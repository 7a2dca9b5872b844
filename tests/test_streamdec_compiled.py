"""Compiled engines on the live side: what fits runs, what does not falls back to ONNX and says why and what to do."""

from __future__ import annotations

import gc
import hashlib
import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import small_bundle
import torch

from streamdec import serve
from streamdec.config import Config, EngineSettings, load
from streamdec.decode import bundle as bundles
from streamdec.decode import compiled
from streamdec.decode.bundle import Bundle
from streamdec.decode.compiled import Build, CompiledEngine
from streamdec.decode.manifest import Parity
from streamdec.doctor.rehearsal import retrieval
from streamdec.errors import ConfigError, EngineError
from streamdec.serve import engines
from streamdec.session import MemoryOutlet
from streamdec.sessions.log import Line, Log
from streamdec.types import Float32

PACKAGE = b"what AOTInductor packed"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bundles.read(small_bundle.write_bundle(tmp_path / "bundle.zip"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What was given to torch's loader; what it loads answers with the sum of the epoch, in every place."""
    calls: list[tuple[str, bool]] = []

    def load(path: str, run_single_threaded: bool) -> Any:
        calls.append((path, run_single_threaded))
        return lambda epochs: epochs.sum((1, 2))[:, None].expand(-1, small_bundle.DIM)

    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    return calls


def put(cache: Path, bundle: Bundle, package: bytes = PACKAGE, **change: Any) -> Path:
    """An engine in the cache, for this machine but for what is changed."""
    (head,) = bundle.manifest.heads
    digest = bundle.manifest.files[head.encoder]
    fields: dict[str, Any] = {
        "kind": "aoti",
        "encoder": digest,
        "machine": compiled.machine(torch, "cpu"),
        "versions": {"torch": str(torch.__version__)},
        "max_batch": 2,
        "parity": Parity(head.encoder, "aoti", 64, 1e-7, 1.0),
        "made_up": True,
        "engine": hashlib.sha256(PACKAGE).hexdigest(),
    }
    folder = compiled.slot(cache, digest, "aoti", "cpu")
    folder.mkdir(parents=True)
    (folder / "build.json").write_bytes(msgspec.json.encode(Build(**(fields | change))))
    (folder / "engine.pt2").write_bytes(package)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o700)
    return folder


def settings(cache: Path, **change: Any) -> Config:
    return Config(engine=EngineSettings(**({"kind": "aoti", "cache": str(cache)} | change)))


def an_epoch(bundle: Bundle) -> Float32:
    return np.random.default_rng(0).standard_normal(bundle.manifest.heads[0].shape).astype(np.float32)


def test_a_fitting_engine_runs(tmp_path: Path, bundle: Bundle, loaded: list[tuple[str, bool]]) -> None:
    folder = put(tmp_path / "cache", bundle)
    (engine,) = engines(bundle, settings(tmp_path / "cache", threads=2)).values()
    assert isinstance(engine, CompiledEngine)
    assert loaded == [(str(folder / "engine.pt2"), False)]
    assert torch.get_num_threads() == 2
    epoch = an_epoch(bundle)
    first = engine(epoch)
    np.testing.assert_allclose(first, np.full(small_bundle.DIM, epoch.sum()), rtol=1e-4)
    assert np.shares_memory(first, engine(epoch * 2))
    batch = np.stack([epoch, 2 * epoch, 3 * epoch])
    np.testing.assert_allclose(engine.run_batch(batch)[:, 0], batch.sum((1, 2)), rtol=1e-4)
    with pytest.raises(EngineError, match="NaN"):
        engine(epoch * np.float32(np.nan))
    engine.close()
    engine.close()
    for call in (lambda: engine(epoch), lambda: engine.run_batch(batch)):
        with pytest.raises(EngineError, match="after close"):
            call()
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"machine": "another processor"}, "compiled for another machine; got another processor; allowed: "),
        ({"versions": {"torch": "1.0"}}, "compiled for another packages; got {'torch': '1.0'}"),
        ({"encoder": "0" * 64}, "compiled for another encoder"),
        ({"kind": "tensorrt-fp32"}, "compiled for another kind"),
        ({"engine": "0" * 64}, "another sha256 than when it was compiled"),
        ({"package": PACKAGE[:-1]}, "another sha256 than when it was compiled"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_falls_back(
    tmp_path: Path, bundle: Bundle, loaded: list[tuple[str, bool]], change: dict[str, Any], why: str
) -> None:
    put(tmp_path / "cache", bundle, **change)
    assert_falls_back(bundle, settings(tmp_path / "cache"), why)
    assert not loaded, "nothing that does not fit is loaded: loading it runs it"


def assert_falls_back(bundle: Bundle, config: Config, why: str) -> None:
    told: list[str] = []
    (engine,) = engines(bundle, config, told.append).values()
    (onnx,) = engines(bundle, Config()).values()
    np.testing.assert_array_equal(engine(an_epoch(bundle)), onnx(an_epoch(bundle)))
    (message,) = told
    assert why in message
    assert "ONNX on the CPU instead" in message
    assert f"streamdec-train compile bundle.zip --engine {config.engine.kind}" in message
    with pytest.raises(EngineError, match="ONNX on the CPU instead"):
        engines(bundle, config)


def test_nothing_compiled_falls_back(tmp_path: Path, bundle: Bundle) -> None:
    assert_falls_back(bundle, settings(tmp_path / "cache"), "none was compiled for this encoder")


def test_a_damaged_record_falls_back(tmp_path: Path, bundle: Bundle, loaded: list[tuple[str, bool]]) -> None:
    folder = put(tmp_path / "cache", bundle)
    (folder / "build.json").write_bytes(b"{")
    assert_falls_back(bundle, settings(tmp_path / "cache"), "build.json is damaged")
    (folder / "build.json").unlink()
    (folder / "build.json").mkdir()
    assert_falls_back(bundle, settings(tmp_path / "cache"), "cannot be read; got Is a directory")
    assert not loaded


@pytest.mark.parametrize("name", ["", "build.json", "engine.pt2"])
def test_what_others_may_write_is_never_run(
    tmp_path: Path, bundle: Bundle, loaded: list[tuple[str, bool]], name: str
) -> None:
    (put(tmp_path / "cache", bundle) / name).chmod(0o720)
    assert_falls_back(bundle, settings(tmp_path / "cache"), "files that others may write")
    assert not loaded


def test_a_missing_package_falls_back(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, loaded: list[tuple[str, bool]]
) -> None:
    put(tmp_path / "cache", bundle)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_falls_back(bundle, settings(tmp_path / "cache"), "pip install 'streamdec[train]'")


def test_what_torch_cannot_load_or_run_is_told(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, loaded: list[tuple[str, bool]]
) -> None:
    put(tmp_path / "cache", bundle)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda *_, **__: lambda epochs: epochs[0])
    assert_falls_back(bundle, settings(tmp_path / "cache"), "compiled, failed")
    monkeypatch.undo()
    assert_falls_back(bundle, settings(tmp_path / "cache"), "cannot be loaded")  # PACKAGE is none


def test_the_gpu_is_asked_for_only_where_it_is(tmp_path: Path, bundle: Bundle) -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA is here")
    folder = put(tmp_path / "cache", bundle)
    folder.rename(folder.with_name("aoti-cuda"))
    config = settings(tmp_path / "cache", device="cuda")
    assert_falls_back(bundle, config, "device 'cuda' is not there")
    with pytest.raises(EngineError, match="--engine aoti --device cuda"):
        engines(bundle, config)


def test_serve_says_it_and_goes_on(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    data, onsets, keys = small_bundle.presentation(n_events=3)
    script = small_bundle.events(data, onsets, keys, itertools.repeat(50))
    outlet = MemoryOutlet()
    monkeypatch.setattr(outlet, "close", lambda: None, raising=False)
    monkeypatch.setattr(outlet, "endpoint", "nowhere", raising=False)
    monkeypatch.setattr(serve, "LslInlet", lambda *_, **__: small_bundle.ScriptedInlet(script))
    monkeypatch.setattr(serve, "Publisher", lambda *_: outlet)
    said: list[Line] = []
    config = msgspec.structs.replace(settings(tmp_path / "cache"), bundle=str(bundle.path))
    counts = serve.serve(config, Log(said.append))
    gc.unfreeze()
    assert counts.decided == 3
    (warned,) = (line for line in said if line.level == "warning")
    assert "ONNX on the CPU instead" in warned.text
    started, _, warning = (message for message in outlet.messages[:3])
    assert (started.state, warning.state, warning.stream) == ("started", "warning", "")
    assert warning.reason.startswith(warned.text)


def test_doctor_warns(tmp_path: Path, bundle: Bundle) -> None:
    warning, *rehearsal = retrieval(bundle, settings(tmp_path / "cache"), None)
    assert warning.level == "warning"
    assert "ONNX on the CPU instead" in warning.text
    assert rehearsal
    assert not any(finding.fatal for finding in rehearsal)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"kind": "tensorrt-fp16"}, r"engine\.device with engine\.kind 'tensorrt-fp16'; got 'cpu'; allowed: 'cuda'"),
        ({"cuda_graph": True}, r"engine\.cuda_graph; got engine\.kind 'onnx' on 'cpu'"),
        ({"cuda_graph": True, "device": "cuda"}, r"engine\.cuda_graph"),
        ({"kind": "aoti", "cuda_graph": True}, r"engine\.cuda_graph"),
        ({"kind": "fast"}, r"engine\.kind"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, engine: dict[str, Any], message: str) -> None:
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in engine.items()
    ]
    (tmp_path / "live.toml").write_text("[engine]\n" + "\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "live.toml")


def test_the_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert compiled.cache_folder() == Path("/somewhere/streamdec/engines")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert compiled.cache_folder() == Path("/home/me/.cache/streamdec/engines")
    assert compiled.cache_folder("engines") == Path("engines")


def test_a_cuda_graph_is_recorded_once_and_replayed() -> None:
    """Of torch's CUDA, what the recording asks for; no GPU was at hand."""
    did: list[str] = []

    class Scope:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            did.append(f"in {self.name}")

        def __exit__(self, *_: object) -> None:
            did.append(f"out of {self.name}")

        def wait_stream(self, other: Any) -> None:
            did.append(f"{self.name} waits for {other.name}")

        def replay(self) -> None:
            did.append("replay")

    fake = SimpleNamespace(
        inference_mode=lambda: Scope("inference"),
        cuda=SimpleNamespace(
            Stream=lambda: Scope("aside"),
            current_stream=lambda: Scope("main"),
            stream=lambda stream: stream,
            CUDAGraph=lambda: Scope("graph"),
            graph=lambda graph: graph,
        ),
    )

    def model(epochs: Any) -> Any:
        did.append("run")
        return epochs

    static = object()
    replayed = compiled._recorded(fake, model, static)
    assert did == [
        *("aside waits for main", "in inference", "in aside", "run", "run", "run", "out of aside", "out of inference"),
        *("main waits for aside", "in inference", "in graph", "run", "out of graph", "out of inference"),
    ]
    did.clear()
    assert replayed("whatever") is static
    assert did == ["replay"]


def test_torch_stays_out_until_an_engine_needs_it() -> None:
    code = "import sys, streamdec.serve, streamdec.decode.compiled; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
