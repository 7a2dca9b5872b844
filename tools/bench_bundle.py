"""A bundle for benchmarks: the folded NICE encoder with random weights, and a random gallery. It decodes nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from offline.methods.network import NetworkEncoder, Shapes, _Standardised
from offline.methods.nice import NiceLearner, NiceSettings
from streamdec.decode import bundle
from streamdec.decode.gallery import Gallery
from streamdec.decode.manifest import Calibration, Head, Manifest
from streamdec.signal.spec import Baseline, Resample, Signal


def nice_bundle(
    path: Path, ch_names: tuple[str, ...], sfreq: float = 1000.0, n_gallery: int = 200, dim: int = 1024
) -> Path:
    """Write the bundle: the last 0.2 s and the next 0.8 s at ``sfreq``, baseline, 250 Hz, (n_chans, 250) -> ``dim``."""
    torch.manual_seed(0)
    steps = (Baseline(-0.2, 0.0), Resample(250.0))
    signal = Signal(ch_names, sfreq, -0.2, 0.799 if sfreq == 1000 else 0.8 - 1 / sfreq, steps=steps)
    shape = (len(ch_names), 250)
    shapes = Shapes(epochs=shape, targets={"image": (dim,)}, subjects=(), n_concepts=n_gallery, kind="stimulus")
    settings = NiceSettings()
    encoder = NetworkEncoder(_Standardised(NiceLearner(settings, shapes), shapes), settings, shapes)
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(Path(folder) / "encoder.safetensors")
        weights = (Path(folder) / "encoder.safetensors").read_bytes()
    head = Head(
        horizon=signal.tmax, encoder="encoder.onnx", shape=shape, dim=dim, calibration=Calibration((1,), (20.0,))
    )
    features = np.random.default_rng(0).normal(size=(n_gallery, dim)).astype(np.float32)
    ids = [str(i + 1) for i in range(n_gallery)]
    manifest = Manifest(
        method="nice",
        citation="random weights, for benchmarks",
        created="",
        commit="",
        config={},
        seeds=(0,),
        data="none",
        simulated=True,
        signal=signal,
        channel_sd={},
        heads=(head,),
        evidence="none",
        budgets={"retrieval": 0.05},
    )
    encoders = {"encoder.onnx": encoder.to_onnx(), "encoder.safetensors": weights}
    return bundle.write(path, manifest, {}, Gallery(features, ids, ids), encoders)
