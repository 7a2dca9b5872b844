"""Fusion Prior of HVF: fused image features become the condition of a frozen diffusion model, learned on images alone.

Fusion encoder, projector phi_c and an IP-Adapter (Ye et al. 2023, arXiv 2308.06721) are trained by the loss the
diffusion model itself was trained by, with the empty prompt. As in ssshamiii/Brain-HIVE@f06db69, train_prior.py; that
a dropped condition is a zero z_c, as in IP-Adapter, is inferred.

With ``fuse`` off it is a plain IP-Adapter of one kind of features, which is what the prior is compared with.

A prior is a folder: ``prior.json``; ``adapter.safetensors``, the IP-Adapter in the official layout;
``prompt.safetensors``, the empty prompt; and, fused, ``fusion.safetensors`` and ``projector.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.fusion import FusionEncoder, PriorProjector
from streamdec.errors import ConfigError, DataError
from streamdec.types import Float32

from .. import checkpoint
from ..checkpoint import replace, writing
from ..progress import Report, silent
from ..targets.store import Targets
from .diffuser import Diffuser, latent_shape
from .loop import Rows, Steps, train

_BATCH = 256


class PriorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As published, but for the number of steps, which is that of the code (the paper says 100 000).

    ``n_dims`` of the fused space, ``n_inner`` of the fusion encoder, ``n_projector`` of phi_c; ``dropout`` in the
    fusion encoder [inferred]; ``drop`` share of samples without a condition; ``start`` a file of IP-Adapter weights to
    begin with, as the reference does, "" begins with the diffusion model's own keys and values; ``fuse`` false: one
    kind of features goes into the adapter as it is. ``often`` steps of the noise schedule at which every second sample
    is taken, such as those that drawing in few steps passes through; published none.
    """

    n_dims: int = 1024
    n_inner: int = 4096
    n_projector: int = 4096
    dropout: float = 0.1
    drop: float = 0.1
    start: str = ""
    fuse: bool = True
    often: tuple[int, ...] = ()
    steps: Steps = Steps()

    def __post_init__(self) -> None:
        if min(self.n_dims, self.n_inner, self.n_projector) < 1:
            raise ConfigError("prior", got=f"n_dims {self.n_dims}, n_inner {self.n_inner}", allowed="1 or more")
        if not 0 <= self.drop < 1:
            raise ConfigError("prior drop", got=self.drop, allowed="from 0 to below 1")
        if self.often and min(self.often) < 0:
            raise ConfigError("prior often", got=min(self.often), allowed="0 or more")


class PriorMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a prior says of itself.

    ``model`` it was trained into; ``encoders`` by role, as ``streamdec-train features`` names them, ``widths`` of their
    features and ``features`` the fingerprints; ``latents`` fingerprint; ``n_images``; ``loss`` at the end.
    """

    model: str
    settings: PriorSettings
    seed: int
    encoders: dict[str, str]
    widths: dict[str, int]
    features: dict[str, str]
    latents: str
    n_images: int
    loss: float
    commit: str
    versions: dict[str, str]


class FusionPrior(nn.Module):
    """What is trained besides the adapter: features of several encoders -> the condition z_c.

    Parameters
    ----------
    widths : mapping of str to int
        Numbers per image, by role.
    settings : PriorSettings

    Raises
    ------
    ConfigError
        Several kinds of features that are not to be fused.
    """

    def __init__(self, widths: Mapping[str, int], settings: PriorSettings) -> None:
        super().__init__()
        self.n_dims = settings.n_dims
        if not settings.fuse:
            if len(widths) != 1:
                raise ConfigError("features of an unfused prior", got=", ".join(widths), allowed="of one encoder")
            (self.n_dims,) = widths.values()
            return
        self.fusion = FusionEncoder(widths, settings.n_dims, settings.n_inner, settings.dropout)
        self.projector = PriorProjector(settings.n_dims, settings.n_projector)

    def fused(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features (B, ...) by role -> z_f (B, D), not normalised."""
        if not hasattr(self, "fusion"):
            (only,) = features.values()
            return only.flatten(1)
        y: Tensor = self.fusion(features)
        return y

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features (B, ...) by role -> z_c (B, D)."""
        fused = self.fused(features)
        y: Tensor = self.projector(fused) if hasattr(self, "projector") else fused
        return y


def fit(
    model: str,
    features: Mapping[str, Targets],
    latents: Targets,
    out: Path,
    settings: PriorSettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    report: Report = silent,
) -> PriorMeta:
    """Train a prior on images; a killed call goes on where it was.

    Parameters
    ----------
    model : str
        See :class:`Diffuser`.
    features : mapping of str to Targets
        By role, of the same images: ``streamdec-train features IMAGES ENCODER``.
    latents : Targets
        The images as the diffusion model draws them: ``streamdec-train features IMAGES vae:MODEL@size=PIXELS``, with
        the autoencoder of the model.
    out : Path
        Folder.
    settings : PriorSettings
    seed : int
    device : str
    report : callable

    Raises
    ------
    ConfigError
        The folder holds another prior; the model or the features do not fit.
    DataError
        Features of other images; see :func:`.loop.train`.
    """
    first = next(iter(features.values()))
    for role, of_role in {**features, "latents": latents}.items():
        if of_role.meta.ids != first.meta.ids:
            raise DataError(f"images of {role}", got=of_role.path, allowed=f"those of {first.path}")
        if not role.isidentifier():
            raise ConfigError("role of features", got=role, allowed="letters, digits and _")
    shape = latent_shape(latents)
    arrays = {role: of_role.rows() for role, of_role in features.items()}
    widths = {role: int(np.prod(array.shape[1:])) for role, array in arrays.items()}
    fingerprints = {role: of_role.meta.fingerprint for role, of_role in features.items()}
    about = {
        "model": model,
        "settings": settings,
        "features": fingerprints,
        "latents": latents.meta.fingerprint,
    }
    torch.manual_seed(seed)
    diffuser = Diffuser(model, device)
    if diffuser.unet.config.in_channels != shape[0]:
        raise ConfigError(
            f"channels of the latents {latents.path}", got=shape[0], allowed=diffuser.unet.config.in_channels
        )
    if settings.often and max(settings.often) >= diffuser.n_times:
        raise ConfigError("prior often", got=max(settings.often), allowed=f"below {diffuser.n_times}, as {model} has")
    prior = FusionPrior(widths, settings).to(device)
    start = _read_adapter(settings.start) if settings.start else diffuser.own_adapter(prior.n_dims)
    adapter = diffuser.add_adapter(start)
    pictures = latents.rows()

    def loss(rows: Rows) -> Tensor:
        shown = torch.rand(len(rows), device=device) >= settings.drop
        condition = prior({role: _to_tensor(array, rows, device) for role, array in arrays.items()})
        images = _to_tensor(pictures, rows, device).view(-1, *shape)
        return diffuser.loss(images, condition * shown[:, None], settings.often)

    prior.train()
    parameters = {**dict(prior.named_parameters()), **adapter}
    last = train(
        cast(Mapping[str, nn.Parameter], parameters),
        loss,
        len(pictures),
        settings.steps,
        out,
        about,
        seed=seed,
        report=report,
    )
    meta = PriorMeta(
        model=model,
        settings=settings,
        seed=seed,
        encoders={role: of_role.meta.encoder for role, of_role in features.items()},
        widths=widths,
        features=fingerprints,
        latents=latents.meta.fingerprint,
        n_images=len(pictures),
        loss=last,
        commit=checkpoint.commit(),
        versions=checkpoint.versions(),
    )
    write(out, prior.cpu().eval(), adapter, diffuser.prompt, meta)
    return meta


def write(
    out: Path, prior: FusionPrior, adapter: Mapping[str, Tensor], prompt: Mapping[str, Tensor], meta: PriorMeta
) -> None:
    """Write a trained prior, ``prior.json`` last."""
    checkpoint.save(out / "adapter.safetensors", {name: p.detach().cpu().numpy() for name, p in adapter.items()})
    checkpoint.save(out / "prompt.safetensors", {name: tensor.numpy() for name, tensor in prompt.items()})
    if meta.settings.fuse:
        weights = {name: tensor.numpy() for name, tensor in prior.fusion.state_dict().items()}
        checkpoint.save(out / "fusion.safetensors", weights)
        checkpoint.save(
            out / "projector.safetensors", {name: t.numpy() for name, t in prior.projector.state_dict().items()}
        )
    with writing(out):
        replace(out / "prior.json", msgspec.json.format(msgspec.json.encode(meta), indent=1))


class Prior:
    """A trained prior, opened.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        There is none, or it was not trained to the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.meta = msgspec.json.decode((path / "prior.json").read_bytes(), type=PriorMeta)
        except (OSError, msgspec.MsgspecError) as error:
            raise DataError(f"prior {path}", got=str(error), do="train it first: streamdec-train prior") from error
        self.network = FusionPrior(self.meta.widths, self.meta.settings).eval().requires_grad_(False)
        if self.meta.settings.fuse:
            for part, file in ((self.network.fusion, "fusion"), (self.network.projector, "projector")):
                arrays, _ = checkpoint.load(path / f"{file}.safetensors")
                part.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    @torch.no_grad()
    def fused(self, features: Mapping[str, npt.NDArray[Any]]) -> Float32:
        """Features of images (n, ...) by role -> z_f (n, D) float32."""
        n = len(next(iter(features.values())))
        out = np.empty((n, self.network.n_dims), np.float32)
        for start in range(0, n, _BATCH):
            rows = np.arange(start, min(start + _BATCH, n))
            block = {role: _to_tensor(features[role], rows, "cpu") for role in self.meta.widths}
            out[start : start + _BATCH] = self.network.fused(block).numpy()
        return out


def _read_adapter(path: str) -> dict[str, Tensor]:
    """Read IP-Adapter weights of the official layout, .safetensors."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"IP-Adapter weights {path}", got=str(error), do="name a .safetensors file") from error


def _to_tensor(array: npt.NDArray[Any], rows: Rows, device: str) -> Tensor:
    """Rows of an array on a device, float32."""
    return torch.from_numpy(np.ascontiguousarray(array[rows])).to(device).float()
