"""NICE (Song et al. 2024): TSConv aligned to image features by the symmetric contrastive loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.nice import Nice
from streamdec.errors import DataError
from streamdec.types import Float32

from .. import checkpoint
from ..checkpoint import RunFolder
from ..fit import Schedule, train
from ..losses import symmetric_info_nce
from ..progress import Report
from .base import Fitted, Method, MethodSettings, Training, standard

_OPSET = 18
_BATCH = 256  # epochs encoded at once


class NiceSettings(MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As published, but for the validation, which holds out concepts (published: image, share 0.0447).

    ``standardise`` the target features by their mean and deviation over the training samples: for features whose
    cosines hardly differ, such as Gabor energy; published without. ``dropout`` in TSConv and head. ``logit_scale``
    multiplies the cosines and is not trained: the reference leaves its 1 / 0.07 out of the optimiser.
    """

    standardise: bool = False
    dropout: float = 0.5
    logit_scale: float = 1 / 0.07
    schedule: Schedule = Schedule()


class NiceEncoder:
    """A trained network.

    Parameters
    ----------
    network : Nice
    shape : tuple of int
        (n_chans, n_times).
    centre, scale : arrays of shape (dim,), float32
        Target features are compared as ``(features - centre) / scale``.
    """

    def __init__(self, network: Nice, shape: tuple[int, int], centre: Float32, scale: Float32) -> None:
        self.network, self.shape, self.centre, self.scale = network.cpu().eval(), shape, centre, scale
        self.dim = len(centre)

    @torch.no_grad()
    def __call__(self, epochs: Float32) -> Float32:
        """(n, n_chans, n_times) -> (n, dim)."""
        out = np.empty((len(epochs), self.dim), np.float32)
        for start in range(0, len(epochs), _BATCH):
            block = np.array(epochs[start : start + _BATCH])
            out[start : start + _BATCH] = self.network(torch.from_numpy(block)).numpy()
        return out

    def candidates(self, features: Float32) -> Float32:
        """(G, dim) -> (G, dim)."""
        out: Float32 = ((features - self.centre) / self.scale).astype(np.float32)
        return out

    def to_onnx(self) -> bytes:
        """Export the folded layers."""
        epochs = torch.zeros(2, *self.shape)
        program = torch.onnx.export(
            self.network.folded(),
            (epochs,),
            input_names=["epochs"],
            output_names=["embeddings"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise DataError("ONNX export of nice", got="no model")
        out: bytes = program.model_proto.SerializeToString()
        return out

    def save(self, path: Path) -> None:
        """Write."""
        arrays = {name: tensor.numpy() for name, tensor in self.network.state_dict().items()}
        checkpoint.save(path, arrays | {"centre": self.centre, "scale": self.scale}, self.shape)


def load(path: Path) -> NiceEncoder:
    """Read an encoder."""
    arrays, shape = checkpoint.load(path)
    centre, scale = arrays.pop("centre"), arrays.pop("scale")
    network = Nice(shape[0], shape[1], len(centre))
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return NiceEncoder(network, (shape[0], shape[1]), centre, scale)


class _Objective(nn.Module):
    def __init__(self, network: Nice, logit_scale: float) -> None:
        super().__init__()
        self.network, self.logit_scale = network, logit_scale

    def forward(self, epochs: Tensor, targets: Tensor) -> Tensor:
        return symmetric_info_nce(self.network(epochs), targets, self.logit_scale)


def fit(training: Training, settings: NiceSettings, seed: int, device: str, run: RunFolder, report: Report) -> Fitted:
    """Train; the validation samples only choose the pass."""
    torch.manual_seed(seed)
    shape, dim = (training.epochs.shape[1], training.epochs.shape[2]), training.targets.shape[1]
    centre, scale = np.zeros(dim), np.ones(dim)
    if settings.standardise:
        centre, scale = standard(training.targets[~training.held])
    network = Nice(*shape, dim, settings.dropout)
    encoder = NiceEncoder(network, shape, centre.astype(np.float32), scale.astype(np.float32))
    objective = _Objective(network, settings.logit_scale)
    notes = train(
        objective,
        training.epochs,
        encoder.candidates(training.targets),
        training.held,
        settings.schedule,
        seed=seed,
        device=device,
        run=run,
        report=report,
    )
    network.cpu()
    return Fitted(encoder, encoder, notes | {"logit_scale": settings.logit_scale})


NICE = Method(
    name="nice",
    citation="Song et al. (2024), Decoding Natural Images from EEG for Object Recognition, ICLR, arXiv 2308.13234",
    settings=NiceSettings,
    fit=fit,
    load=load,
)
