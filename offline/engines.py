"""A bundle's encoder, compiled for the machine that serves: AOTInductor anywhere, TensorRT on an NVIDIA GPU.

The trained network is rebuilt from the arrays in the bundle by our own code. A ``torch.export`` file from a stranger
would not do: where restricted pickle refuses, ``torch.export.load`` goes on with the unrestricted one (seen to run code
with torch 2.15). Then::

    network -> torch.export ---------------------> AOTInductor -> engine.pt2
                            -> torch_tensorrt ---> AOTInductor -> engine.pt2, TensorRT engines in it

TensorRT, and anything on a GPU, was never run: it is written against torch-tensorrt 2.14.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from streamdec.decode.bundle import Bundle
from streamdec.decode.compiled import (
    BUILD,
    ENGINE,
    Build,
    CompiledEngine,
    CompiledKind,
    machine,
    packages,
    slot,
    versions,
)
from streamdec.decode.engine import Device, OnnxEngine
from streamdec.decode.manifest import Head, Parity
from streamdec.errors import BundleError, ConfigError, EngineError, StreamdecError
from streamdec.types import Float32

from . import parity
from .data.store import Prepared
from .methods.registry import method as method_named
from .progress import Report, silent

_PARITY_EPOCHS = 64
_SD = 10.0  # microvolt, of channels whose deviation the bundle does not tell


class Wanted(msgspec.Struct, frozen=True):
    """What to compile to: for one epoch, which is what the live loop runs, or for 1 to ``max_batch`` at once."""

    kind: CompiledKind
    device: Device = "cpu"
    max_batch: int = 1

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ConfigError("max_batch", got=self.max_batch, allowed="1 or more")
        if self.kind != "aoti" and self.device != "cuda":
            raise ConfigError(f"device of {self.kind}", got=self.device, allowed="cuda")


def compile_bundle(
    bundle: Bundle, wanted: Wanted, cache: Path, prepared: Prepared | None = None, report: Report = silent
) -> list[Build]:
    """Compile every head of a bundle into the cache; what is there and still fits is kept.

    Parameters
    ----------
    bundle : Bundle
    wanted : Wanted
    cache : Path
    prepared : Prepared, optional
        Store on whose test epochs (without a test part, training epochs) parity is checked; omitted, on made-up ones.
    report : callable

    Raises
    ------
    ConfigError
        The store is not the bundle's.
    EngineError
        It cannot be compiled here, or does not agree with the bundle's ONNX encoder: then nothing is kept.
    """
    heads = bundle.manifest.heads
    signals = [bundle.manifest.signal.until(head.horizon) for head in heads]
    if prepared is not None and prepared.meta.signal not in signals:
        raise ConfigError(
            f"store {prepared.path}", got="another signal than the bundle's", do="name the one it is from"
        )
    builds = []
    for head, signal in zip(heads, signals, strict=True):
        real = _epochs(prepared) if prepared is not None and prepared.meta.signal == signal else None
        kept = _kept(bundle, head, wanted, cache, real is not None, report)
        try:
            builds.append(kept or _compile(bundle, head, wanted, cache, real))
        except OSError as error:
            do = "free space there, or name another folder with --cache"
            raise EngineError(f"cache {cache} cannot be written", got=error.strerror, do=do) from error
    return builds


def made_up(bundle: Bundle, head: Head, n: int = _PARITY_EPOCHS) -> Float32:
    """Make (n, n_chans, n_times) epochs of the right scale: white noise, as strong as the training data's channels."""
    manifest, chain = bundle.manifest, bundle.chain(head)
    sd = np.array([manifest.channel_sd.get(name) or _SD for name in manifest.signal.ch_names])
    noise = np.random.default_rng(0).standard_normal((n, *chain.shape_in)) * sd[:, None]
    return chain(noise.astype(np.float32))


def _epochs(prepared: Prepared) -> Float32:
    epochs = prepared.part("test" if "test" in prepared.meta.items else "train").epochs
    return np.asarray(epochs[np.linspace(0, len(epochs) - 1, _PARITY_EPOCHS).astype(int)])


def _kept(bundle: Bundle, head: Head, wanted: Wanted, cache: Path, real: bool, report: Report) -> Build | None:
    """Find the engine that is there, if it is what is wanted; say why not."""
    digest = bundle.manifest.files[head.encoder]
    folder = slot(cache, digest, wanted.kind, wanted.device)
    try:
        kept = CompiledEngine(folder, digest, head, wanted.kind, device=wanted.device).build
    except EngineError as error:
        report(f"{head.encoder}: compiling for {wanted.kind}, as {error}")
        return None
    if kept.max_batch != wanted.max_batch:
        report(f"{head.encoder}: compiling again, as what is there takes up to {kept.max_batch} epochs")
        return None
    if real and kept.made_up:
        report(f"{head.encoder}: compiling again, as what is there was never held against real epochs")
        return None
    report(f"{head.encoder}: {wanted.kind} is there already")
    return kept


def _compile(bundle: Bundle, head: Head, wanted: Wanted, cache: Path, real: Float32 | None) -> Build:
    kind, device = wanted.kind, wanted.device
    digest = bundle.manifest.files[head.encoder]
    modules = packages(kind)
    here = machine(torch, device)
    network = rebuilt(bundle, head).to(device)
    folder = slot(cache, digest, kind, device)
    part = folder.with_name(f".{folder.name}.{uuid4().hex}")
    part.mkdir(parents=True)
    part.chmod(0o700)
    try:
        _build(network, head, wanted, modules, part / ENGINE)
        with (part / ENGINE).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        build = Build(
            kind=kind,
            encoder=digest,
            machine=here,
            versions=versions(modules),
            max_batch=wanted.max_batch,
            parity=Parity(head.encoder, kind, 0, 0.0, 1.0),
            made_up=real is None,
            engine=sha256,
        )
        _write(part, build)
        engine = CompiledEngine(part, digest, head, kind, device=device)
        found = _check(bundle, head, engine, network, made_up(bundle, head) if real is None else real)
        build = msgspec.structs.replace(build, parity=found)
        _write(part, build)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return build


def _build(network: nn.Module, head: Head, wanted: Wanted, modules: dict[str, Any], out: Path) -> None:
    kind = wanted.kind
    try:
        if kind == "aoti":
            _inductor(network, head.shape, wanted, out)
        else:
            _tensorrt(modules["torch_tensorrt"], network, head.shape, wanted, out)
    except Exception as error:  # compilers raise what they like
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        do = "it needs a C++ compiler (g++ or clang++)" if kind == "aoti" else "serve it as onnx or aoti"
        raise EngineError(f"{kind} cannot compile {head.encoder}", got=why, do=do) from error


def _write(folder: Path, build: Build) -> None:
    (folder / BUILD).write_bytes(msgspec.json.format(msgspec.json.encode(build), indent=1))
    for name in (BUILD, ENGINE):
        (folder / name).chmod(0o600)


def rebuilt(bundle: Bundle, head: Head) -> nn.Module:
    """Rebuild a head's trained network, for the bundle's subject, of plain layers: (B, *head.shape) -> (B, head.dim).

    Raises
    ------
    BundleError
        The bundle has no weights for it, or they are not its method's.
    EngineError
        They have another size than the ONNX encoder.
    """
    manifest = bundle.manifest
    weights = bundle.weights(head)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / head.weights
            path.write_bytes(weights)
            encoder = method_named(manifest.method).load(path)
        network: nn.Module = encoder.folded(str(manifest.config.get("subject", "")))
        with torch.inference_mode():
            made = network(torch.zeros(1, *head.shape))
    except (StreamdecError, OSError):
        raise
    except Exception as error:  # torch and msgspec, of arrays that are not this method's
        raise BundleError(f"{head.weights} is no {manifest.method} network", got=error, do="export it again") from error
    if made.shape != (1, head.dim):
        raise EngineError(f"{head.weights} and {head.encoder} differ", got=tuple(made.shape), allowed=(1, head.dim))
    return network.requires_grad_(requires_grad=False)


def _check(bundle: Bundle, head: Head, engine: CompiledEngine, network: nn.Module, epochs: Float32) -> Parity:
    """Compare with the bundle's ONNX encoder, epoch by epoch as the live loop runs both, and in batches."""
    reference = OnnxEngine(bundle.encoder(head), head)
    wanted = np.stack([reference(epoch).copy() for epoch in epochs])
    kind = engine.build.kind
    cost = None
    if kind == "tensorrt-fp16":
        with torch.inference_mode():
            halved = Half(network)(torch.from_numpy(epochs).to(engine.device)).cpu().numpy()
        cost = parity.compare(halved, wanted)
    found = parity.compare(np.stack([engine(epoch).copy() for epoch in epochs]), wanted)
    parity.check(f"{kind} differs from {head.encoder}", found, cost)
    parity.check(
        f"{kind} in batches differs from {head.encoder}", parity.compare(engine.run_batch(epochs), wanted), cost
    )
    about = ", ".join(f"{name} {version}" for name, version in engine.build.versions.items())
    return Parity(head.encoder, f"{kind}, {about}", len(epochs), found.error, found.cosine)


class Half(nn.Module):
    """A copy of a network that computes in float16 and is asked and answers in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, epochs: Tensor) -> Tensor:
        """(B, n_chans, n_times) -> (B, dim)."""
        out: Tensor = self.network(epochs.half()).float()
        return out


def exported(network: nn.Module, shape: tuple[int, int], wanted: Wanted) -> torch.export.ExportedProgram:
    """Trace a network for the batches that are wanted."""
    example = torch.zeros(wanted.max_batch, *shape, device=wanted.device)
    if wanted.max_batch == 1:
        return torch.export.export(network, (example,))
    batch = torch.export.Dim("batch", min=1, max=wanted.max_batch)
    return torch.export.export(network, (example,), dynamic_shapes=({0: batch},))


def _inductor(network: nn.Module, shape: tuple[int, int], wanted: Wanted, out: Path) -> None:
    # As many threads as who loads it says, not who compiles.
    settings = {"cpp.dynamic_threads": True}
    program = exported(network, shape, wanted)
    torch._inductor.aoti_compile_and_package(program, package_path=str(out), inductor_configs=settings)


def _tensorrt(trt: Any, network: nn.Module, shape: tuple[int, int], wanted: Wanted, out: Path) -> None:
    half = wanted.kind == "tensorrt-fp16"
    one, most = (1, *shape), (wanted.max_batch, *shape)
    if one == most:
        taken = trt.Input(shape=one, dtype=torch.float32)
    else:
        taken = trt.Input(min_shape=one, opt_shape=one, max_shape=most, dtype=torch.float32)
    # Since TensorRT 10.12 each layer has the type it has in the program: float16 is where Half put it.
    compiled = trt.dynamo.compile(
        exported(Half(network) if half else network, shape, wanted),
        arg_inputs=[taken],
        min_block_size=1,
        disable_tf32=True,
        use_fp32_acc=half,
        timing_cache_path=str(out.parent.parent / "timing.bin"),  # by default a file in /tmp, anyone's to write
    )
    trt.save(compiled, str(out), output_format="aot_inductor", arg_inputs=[taken], retrace=True)
