"""Milliseconds of one epoch through a bundle's encoder, engine by engine, beside ONNX in the same run.

    python tools/bench_engines.py [BUNDLE] [--engines aoti tensorrt-fp16] [--device cpu] [--threads 1]

Without a bundle: NICE, 63 x 250 -> 1024, random weights. Engines are compiled into a folder of their own, then take
turns, 50 epochs each, back to back; on "cuda" each also as a recorded CUDA graph.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from bench_bundle import nice_bundle  # noqa: E402

from offline.engines import Wanted, compile_bundle, made_up  # noqa: E402
from streamdec.config import Config, EngineSettings  # noqa: E402
from streamdec.decode import bundle as bundles  # noqa: E402
from streamdec.decode.bundle import Bundle  # noqa: E402
from streamdec.decode.engine import Engine  # noqa: E402
from streamdec.errors import StreamdecError  # noqa: E402
from streamdec.serve import engines  # noqa: E402

ROUNDS, BLOCK = 20, 50
NAMES = tuple(f"E{i}" for i in range(63))


def compiled(bundle: Bundle, args: argparse.Namespace, cache: Path) -> dict[str, Engine]:
    """ONNX, and every engine that can be had here; why not, where it cannot."""
    last = bundle.manifest.heads[-1].horizon
    found = {"onnx": engines(bundle, Config(engine=EngineSettings(threads=args.threads)))[last]}
    for kind in args.engines:
        try:
            began = time.perf_counter()
            build = compile_bundle(bundle, Wanted(kind, args.device), cache)[-1]
            took, error = time.perf_counter() - began, build.parity.max_abs_error
            print(f"{kind}: compiled in {took:.0f} s, error {error:.2g} against ONNX, {build.machine}")
            for graph in (False, True) if args.device == "cuda" else (False,):
                asked = EngineSettings(kind, args.threads, args.device, graph, str(cache))
                name = f"{kind}, CUDA graph" if graph else kind
                found[name] = engines(bundle, Config(engine=asked))[last]
        except StreamdecError as error:
            print(f"{kind}: {error}")
    return found


def main() -> None:
    """Compile, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--engines", nargs="+", default=["aoti"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundles.read(args.bundle or nice_bundle(Path(folder) / "nice.zip", NAMES), live=False)
        found = compiled(bundle, args, Path(folder) / "cache")
        epochs = made_up(bundle, bundle.manifest.heads[-1], BLOCK)
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(ROUNDS):
            for name, engine in found.items():
                for epoch in epochs:
                    began = time.perf_counter()
                    engine(epoch)
                    seconds[name].append(time.perf_counter() - began)
    base = np.median(seconds["onnx"])
    print(f"{bundle.manifest.method} {bundle.manifest.heads[-1].shape}, {args.threads} threads, batch 1")
    for name, took in seconds.items():
        middle, high = np.percentile(took, [50, 99])
        print(
            f"{name:28s} median {1e3 * middle:.2f} ms, 99th percentile {1e3 * high:.2f} ms, {middle / base:.2f} x onnx"
        )


if __name__ == "__main__":
    main()
