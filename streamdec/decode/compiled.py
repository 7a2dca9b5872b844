"""Engines compiled for this machine: where they are kept, whether they still fit it, and how they run.

A compiled engine is machine code, so it never travels in a bundle: ``streamdec-train compile`` builds it on the machine
that serves, from the bundle's weights, holds it against the bundle's ONNX encoder and keeps it in a cache::

    <cache>/<sha256 of the ONNX encoder, 16 digits>/<kind>-<device>/
        build.json    what it was built from and for (Build), with the sha256 of
        engine.pt2    AOTInductor's package; of ``tensorrt-*`` with the TensorRT engines in it

torch is imported by :class:`CompiledEngine` alone. Nothing here has run on a GPU.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from ..errors import EngineError
from ..types import Float32
from .engine import Device, StaticEngine
from .manifest import Head, Parity

CompiledKind: TypeAlias = Literal["aoti", "tensorrt-fp32", "tensorrt-fp16"]

BUILD, ENGINE = "build.json", "engine.pt2"

_PACKAGES: dict[CompiledKind, tuple[str, ...]] = {
    "aoti": ("torch",),
    "tensorrt-fp32": ("torch", "torch_tensorrt", "tensorrt"),
    "tensorrt-fp16": ("torch", "torch_tensorrt", "tensorrt"),
}
_CAPTURE_RUNS = 3  # before a CUDA graph is recorded: libraries choose their kernels and take their memory


class Build(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an engine was built from and for.

    ``kind`` and ``encoder`` (sha256 of the ONNX file it stands for); ``machine`` the processor or GPU and ``versions``
    of the packages, of which all must be the same for it to run; ``max_batch`` epochs it takes at once; ``parity`` with
    the ONNX encoder, on made-up epochs where ``made_up``; ``engine`` sha256 of the file.
    """

    kind: CompiledKind
    encoder: str
    machine: str
    versions: dict[str, str]
    max_batch: int
    parity: Parity
    made_up: bool
    engine: str


def cache_folder(chosen: str = "") -> Path:
    """Where engines are kept: ``chosen``, or "streamdec/engines" in the user's cache folder."""
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamdec" / "engines"


def slot(cache: Path, encoder: str, kind: CompiledKind, device: Device) -> Path:
    """Give the folder of the engine that stands for the ONNX encoder with sha256 ``encoder``."""
    return cache / encoder[:16] / f"{kind}-{device}"


def packages(kind: CompiledKind) -> dict[str, Any]:
    """Import what engines of a kind need: module by name.

    Raises
    ------
    EngineError
        One is not installed, or cannot be imported.
    """
    try:
        return {name: importlib.import_module(name) for name in _PACKAGES[kind]}
    except Exception as error:  # a missing CUDA library is an OSError, a missing TensorRT a bare Exception
        extra = "train" if kind == "aoti" else "tensorrt"
        raise EngineError(f"{kind} engines need more", got=error, do=f"pip install 'streamdec[{extra}]'") from error


def machine(torch: Any, device: Device) -> str:
    """Name what code is compiled for: the GPU and its architecture, or the processor and its instruction sets.

    Raises
    ------
    EngineError
        ``device`` is "cuda" and there is no GPU.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise EngineError("device 'cuda' is not there", do="check the driver, or set engine.device to 'cpu'")
        major, minor = torch.cuda.get_device_capability()
        return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    instructions = about.get("flags", about.get("Features", ""))
    return f"{about.get('model name', platform.machine())} (instruction sets {zlib.crc32(instructions.encode()):08x})"


def versions(modules: dict[str, Any]) -> dict[str, str]:
    """Versions of :func:`packages`."""
    return {name: str(module.__version__) for name, module in modules.items()}


def read_build(folder: Path) -> Build:
    """Read the record of the engine in a slot.

    Raises
    ------
    EngineError
        There is none, it is damaged, or somebody else could have written it.
    """
    try:
        raw = (folder / BUILD).read_bytes()
        found = [path.stat() for path in (folder, folder / BUILD, folder / ENGINE)]
    except FileNotFoundError:
        raise EngineError("none was compiled for this encoder") from None
    except OSError as error:
        raise EngineError(f"{folder} cannot be read", got=error.strerror) from error
    # Loading it runs it: whoever may write there could run anything as this user.
    if hasattr(os, "geteuid") and any(about.st_uid != os.geteuid() or about.st_mode & 0o022 for about in found):
        raise EngineError(f"{folder}", got="files that others may write", allowed="this user's own, mode 0755 or less")
    try:
        return msgspec.json.decode(raw, type=Build)
    except msgspec.DecodeError as error:
        raise EngineError(f"{folder / BUILD} is damaged", got=str(error)) from error


def check_build(build: Build, encoder: str, kind: CompiledKind, here: str, versions: dict[str, str]) -> None:
    """Refuse an engine that was built from or for something else.

    Raises
    ------
    EngineError
        Naming what differs.
    """
    for what, got, allowed in (
        ("encoder", build.encoder, encoder),
        ("kind", build.kind, kind),
        ("machine", build.machine, here),
        ("packages", build.versions, versions),
    ):
        if got != allowed:
            raise EngineError(f"it was compiled for another {what}", got=got, allowed=allowed)


class CompiledEngine(StaticEngine):
    """An engine from the cache.

    Parameters
    ----------
    folder : Path
        Its slot.
    encoder : str
        sha256 of the ONNX encoder it stands for.
    head : Head
    kind : {"aoti", "tensorrt-fp32", "tensorrt-fp16"}
    threads : int
        Within one operation, of all torch does in this process.
    device : {"cpu", "cuda"}
        What it was compiled for.
    cuda_graph : bool
        Record one run and replay it: one launch instead of one per kernel.

    Attributes
    ----------
    build : Build
    device : {"cpu", "cuda"}

    Raises
    ------
    EngineError
        There is none, it is damaged, for another machine or other versions, or a package is missing.
    """

    def __init__(
        self,
        folder: Path,
        encoder: str,
        head: Head,
        kind: CompiledKind,
        threads: int = 1,
        device: Device = "cpu",
        *,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__(head, threads)
        self.build = read_build(folder)
        modules = packages(kind)
        torch = self._torch = modules["torch"]
        check_build(self.build, encoder, kind, machine(torch, device), versions(modules))
        with (folder / ENGINE).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.build.engine:
                raise EngineError(f"{folder / ENGINE}", got="another sha256 than when it was compiled")
        torch.set_num_threads(threads)
        if device == "cuda":
            # Convolutions round their input to 10 bits by default; the ONNX encoder does not.
            torch.backends.cudnn.allow_tf32 = False
        self.device = device
        self._model: Callable[[Any], Any] | None
        self._run: Callable[[Any], Any] | None
        try:
            self._model = torch._inductor.aoti_load_package(str(folder / ENGINE), run_single_threaded=cuda_graph)
            # On the CPU the engine reads the epoch where numpy writes it.
            self._taken = torch.from_numpy(self._input).to(device)
            self._made = torch.from_numpy(self._output)
            self._run = _recorded(torch, self._model, self._taken) if cuda_graph else self._model
        except Exception as error:  # torch raises whatever the loader did
            raise EngineError(f"{folder / ENGINE} cannot be loaded", got=error) from error
        self._encode()

    def _encode(self) -> None:
        if self._run is None:
            raise EngineError(self.name, got="a call after close")
        try:
            with self._torch.inference_mode():
                if self.device == "cuda":
                    self._taken.copy_(self._torch.from_numpy(self._input))
                self._made.copy_(self._run(self._taken))
        except Exception as error:  # as above
            raise EngineError(f"{self.name}, compiled, failed", got=error) from error

    def run_batch(self, epochs: Float32) -> Float32:
        """Encode (B, n_chans, n_times) float32 epochs into a new array (B, dim), ``build.max_batch`` at once."""
        if self._model is None:
            raise EngineError(self.name, got="a call after close")
        torch, step = self._torch, self.build.max_batch
        made = np.empty((len(epochs), self.dim), np.float32)
        with torch.inference_mode():
            for start in range(0, len(epochs), step):
                block = torch.from_numpy(np.array(epochs[start : start + step])).to(self.device)
                made[start : start + step] = self._model(block).cpu().numpy()
        return made

    def close(self) -> None:
        """Let go of the model. Idempotent."""
        self._model = self._run = None


def _recorded(torch: Any, model: Callable[[Any], Any], taken: Any) -> Callable[[Any], Any]:
    """Record one run of ``model`` on the static tensor ``taken``; what is returned replays it, whatever it is given."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(aside):
        for _ in range(_CAPTURE_RUNS):
            model(taken)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        made = model(taken)

    def replay(_: Any) -> Any:
        graph.replay()
        return made

    return replay
