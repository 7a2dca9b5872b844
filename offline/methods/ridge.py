"""Ridge regression from epochs to target features: the baseline that needs no torch.

Penalty by exact leave-one-group-out cross-validation in closed form: of a linear smoother with hat matrix H, the
residuals of group g when it is left out are ``(I - H_gg)^-1 e_g``, so that one decomposition serves every penalty and
every fold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from streamdec.errors import ConfigError
from streamdec.types import Float32, Float64

from .. import checkpoint
from ..checkpoint import RunFolder
from ..data.store import Int64
from ..progress import Report
from .base import Fitted, Method, MethodSettings, Training, standard

if TYPE_CHECKING:
    from torch import nn

_OPSET, _IR = 17, 8


class RidgeSettings(MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``alphas`` penalties, in units of a sample's mean squared length; ``per_feature`` choose one for each feature."""

    alphas: tuple[float, ...] = tuple(float(10.0**e) for e in range(-4, 5))
    per_feature: bool = True

    def __post_init__(self) -> None:
        if not self.alphas or not all(np.isfinite(a) and a > 0 for a in self.alphas):
            raise ConfigError("ridge alphas", got=self.alphas, allowed="one or more, above 0")


class RidgeEncoder:
    """``epochs.ravel() @ weights + bias``, compared with ``(features - centre) / scale``.

    Parameters
    ----------
    weights : array of shape (n_chans * n_times, D), float32
    bias : array of shape (D,), float32
    centre, scale : arrays of shape (D,), float32
    shape : tuple of int
        (n_chans, n_times).
    """

    subjects: tuple[str, ...] = ()

    def __init__(
        self, weights: Float32, bias: Float32, centre: Float32, scale: Float32, shape: tuple[int, int]
    ) -> None:
        self.weights, self.bias, self.centre, self.scale, self.shape = weights, bias, centre, scale, shape
        self.dim = weights.shape[1]

    def __call__(self, epochs: Float32, subject: str = "") -> Float32:
        """(n, n_chans, n_times) -> (n, D); the same for every subject."""
        out: Float32 = epochs.reshape(len(epochs), -1) @ self.weights + self.bias
        return out

    def candidates(self, targets: Mapping[str, npt.NDArray[Any]]) -> Float32:
        """Features (G, D) of the role "image" -> (G, D)."""
        out: Float32 = ((targets["image"] - self.centre) / self.scale).astype(np.float32)
        return out

    def folded(self, subject: str = "") -> nn.Module:
        """Make two layers; the only place that needs torch."""
        import torch
        from torch import nn

        linear = nn.Linear(*self.weights.shape)
        linear.load_state_dict({"weight": torch.from_numpy(self.weights.T), "bias": torch.from_numpy(self.bias)})
        return nn.Sequential(nn.Flatten(), linear).eval()

    def to_onnx(self, subject: str = "") -> bytes:
        """Two nodes: flatten, multiply."""
        graph = helper.make_graph(
            [
                helper.make_node("Flatten", ["epochs"], ["flat"], axis=1),
                helper.make_node("Gemm", ["flat", "weights", "bias"], ["embeddings"]),
            ],
            "ridge",
            [helper.make_tensor_value_info("epochs", TensorProto.FLOAT, ["batch", *self.shape])],
            [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", self.dim])],
            [numpy_helper.from_array(self.weights, "weights"), numpy_helper.from_array(self.bias, "bias")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
        onnx.checker.check_model(model)
        out: bytes = model.SerializeToString()
        return out

    def save(self, path: Path) -> None:
        """Write."""
        arrays = {"weights": self.weights, "bias": self.bias, "centre": self.centre, "scale": self.scale}
        checkpoint.save(path, arrays, self.shape)


def load(path: Path) -> RidgeEncoder:
    """Read an encoder."""
    arrays, shape = checkpoint.load(path)
    return RidgeEncoder(arrays["weights"], arrays["bias"], arrays["centre"], arrays["scale"], (shape[0], shape[1]))


class Decomposition(NamedTuple):
    """Centred samples as ``u`` (n, r) * ``s`` (r,) @ ``vt`` (r, p), thin, and their ``mean`` (p,)."""

    u: Float64
    s: Float64
    vt: Float64
    mean: Float64

    def shrinkage(self, alpha: float) -> Float64:
        """How much of each component a penalty leaves: (r,)."""
        out: Float64 = self.s**2 / (self.s**2 + alpha)
        return out


def decompose(x: Float32) -> Decomposition:
    """Decompose samples (n, p), by way of the smaller of the two Gram matrices."""
    mean = x.mean(axis=0, dtype=np.float64)
    centred = x - mean
    wide = len(x) <= x.shape[1]
    values, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    kept = values > 1e-12 * max(values[-1], 0.0)
    s, vectors = np.sqrt(values[kept]), vectors[:, kept]
    if wide:
        return Decomposition(vectors, s, (vectors.T @ centred) / s[:, None], mean)
    return Decomposition((centred @ vectors) / s, s, vectors.T, mean)


def leave_out_errors(parts: Decomposition, y: Float64, group: Int64, alphas: Float64) -> Float64:
    """Sum the squared error of each target feature when each group is predicted from the others.

    Parameters
    ----------
    parts : Decomposition
        Of the samples.
    y : array of shape (n, D), float64
    group : array of shape (n,), int
    alphas : array of shape (n_alphas,), float64

    Returns
    -------
    array of shape (n_alphas, D), float64
    """
    n = len(y)
    centred = y - y.mean(axis=0)
    projected = parts.u.T @ centred
    members = [np.flatnonzero(group == g) for g in np.unique(group)]
    errors: Float64 = np.zeros((len(alphas), y.shape[1]))
    for i, alpha in enumerate(alphas):
        kept = parts.shrinkage(alpha)
        residual = centred - parts.u @ (kept[:, None] * projected)
        for rows in members:
            u = parts.u[rows]
            hat = (u * kept) @ u.T + 1 / n
            left_out = np.linalg.solve(np.eye(len(rows)) - hat, residual[rows])
            errors[i] += np.sum(left_out**2, axis=0)
    return errors


def solve(parts: Decomposition, y: Float64, alphas: Float64) -> tuple[Float64, Float64]:
    """Weights (p, D) and intercept (D,) with one penalty per target feature, ``alphas`` (D,)."""
    intercept = y.mean(axis=0)
    gain = parts.s[:, None] / (parts.s[:, None] ** 2 + alphas)
    weights: Float64 = parts.vt.T @ (gain * (parts.u.T @ (y - intercept)))
    return weights, intercept - parts.mean @ weights


def fit(training: Training, settings: RidgeSettings, seed: int, device: str, run: RunFolder, report: Report) -> Fitted:
    """Choose the penalty, fit on what is not held out, then with the same penalty on everything.

    Targets of stimuli are standardised by the training part, and so are the candidates; one-hot targets of classes
    stay as they are, so that the cosine with a class grows with its output.
    """
    if device != "cpu":
        report(f"ridge: on the processor, not on {device}")
    kept = ~training.held
    x = training.epochs[kept].reshape(int(kept.sum()), -1)
    targets = _targets(training)
    centre, scale = _scaling(training, targets[kept])
    y = (targets[kept] - centre) / scale
    parts = decompose(x)
    unit = float(np.sum(parts.s**2) / len(x))
    alphas = unit * np.sort(np.asarray(settings.alphas, np.float64))
    errors = leave_out_errors(parts, y, training.group[kept], alphas)
    best = np.argmin(errors if settings.per_feature else errors.sum(axis=1, keepdims=True), axis=0)
    chosen = np.broadcast_to(alphas[best], y.shape[1])
    explained = 1 - errors[best, np.arange(y.shape[1])].sum() / np.sum((y - y.mean(axis=0)) ** 2)
    median = float(np.median(chosen) / unit)
    at_edge = float(np.mean((best == 0) | (best == len(alphas) - 1)))
    report(f"ridge: {len(x)} samples, alpha {median:.3g}, explained when left out {100 * explained:.2f} %")
    held_out = _encoder(parts, y, chosen, centre, scale, training.shape)
    centre, scale = _scaling(training, targets)
    parts = decompose(training.epochs.reshape(len(kept), -1))
    encoder = _encoder(parts, (targets - centre) / scale, chosen, centre, scale, training.shape)
    return Fitted(encoder, held_out, {"alpha": median, "alphas_at_edge": at_edge, "explained": float(explained)})


def _targets(training: Training) -> Float32:
    """Targets of the samples, (n, D) float32."""
    features = training.targets["image"]
    if features.ndim != 2:
        raise ConfigError("targets of ridge", got=f"rows of shape {features.shape[1:]}", allowed="vectors")
    return features[training.item].astype(np.float32)


def _scaling(training: Training, targets: Float32) -> tuple[Float64, Float64]:
    """Mean and deviation of targets, (D,) each; 0 and 1 for classes."""
    if training.kind == "class":
        return np.zeros(targets.shape[1]), np.ones(targets.shape[1])
    return standard(targets)


def _encoder(
    parts: Decomposition, y: Float64, alphas: Float64, centre: Float64, scale: Float64, shape: tuple[int, int]
) -> RidgeEncoder:
    weights, bias = solve(parts, y, alphas)
    w, b, c, s = (array.astype(np.float32) for array in (weights, bias, centre, scale))
    return RidgeEncoder(w, b, c, s, shape)


RIDGE = Method(
    name="ridge",
    citation="Hoerl and Kennard (1970), Ridge regression, Technometrics 12(1), doi:10.1080/00401706.1970.10488634",
    settings=RidgeSettings,
    roles=("image",),
    fit=fit,
    load=load,
)
