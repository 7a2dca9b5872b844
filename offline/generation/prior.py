"""Fusion Prior of HVF: fused image features become the condition of a frozen diffusion model, learned on images alone.

Fusion encoder, projector phi_c and an IP-Adapter (Ye et al. 2023, arXiv 2308.06721) are trained by the loss the
diffusion model itself was trained by, with the empty prompt. As in ssshamiii/Brain-HIVE@f06db69, train_prior.py; that
a dropped condition is a zero z_c, as in IP-Adapter, is inferred.

With ``fuse`` off it is a plain IP-Adapter of one kind of features, which is what the prior is compared with.

A prior is a folder: ``prior.json``; ``adapter.safetensors``, the IP-Adapter in the official layout;
``prompt.safetensors``, the empty prompt; and, fused, ``fusion.safetensors`` and ``projector.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nnf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.fusion import FusionEncoder, PriorProjector
from streamdec.errors import ConfigError, DataError
from streamdec.types import Float32

from .. import checkpoint
from ..checkpoint import replace, writing
from ..progress import Report, silent
from ..targets.frozen import check_device, missing
from ..targets.huggingface import opened
from ..targets.store import Targets
from .loop import Rows, Steps, train

N_TOKENS = 4
"""Tokens of an IP-Adapter, fixed by its official layout."""
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


class Diffuser:
    """A frozen diffusion model: its U-Net, its noise schedule and its empty prompt.

    Parameters
    ----------
    name : str
        Folder, or name on the hub, of a text-to-image pipeline of diffusers with a UNet2DConditionModel.
    device : str
        As torch names it.

    Raises
    ------
    ConfigError
        diffusers is not installed; no such model, or one of another architecture; no such device.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        try:
            from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
        except ImportError as error:
            raise missing("diffusers", "generate") from error
        check_device(device)
        pipeline = opened(DiffusionPipeline.from_pretrained, name, low_cpu_mem_usage=False)
        unet = getattr(pipeline, "unet", None)
        if not isinstance(unet, UNet2DConditionModel):
            raise ConfigError(f"model {name}", got=type(pipeline).__name__, allowed="a pipeline with a U-Net")
        self.name, self.device = name, device
        self.noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.prompt = empty_prompt(pipeline)
        self.unet = unet.float().to(device).eval().requires_grad_(False)
        self._factor = pipeline.vae_scale_factor

    @property
    def n_times(self) -> int:
        """Steps of its noise schedule."""
        n: int = self.noise.config.num_train_timesteps
        return n

    def add_adapter(self, state: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
        """Add an IP-Adapter of the official layout; return its parameters by their names there, to be trained.

        Raises
        ------
        ConfigError
            Its weights do not fit the U-Net.
        """
        parts = {part: _without(state, f"{part}.") for part in ("image_proj", "ip_adapter")}
        try:
            self.unet._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
        except (RuntimeError, KeyError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ConfigError(f"IP-Adapter weights for {self.name}", got=first, do="take those of its size") from error
        (projection,) = self.unet.encoder_hid_proj.image_projection_layers
        found = {
            "image_proj.proj.weight": projection.image_embeds.weight,
            "image_proj.proj.bias": projection.image_embeds.bias,
            "image_proj.norm.weight": projection.norm.weight,
            "image_proj.norm.bias": projection.norm.bias,
        }
        for key, processor in self._cross_attentions():
            found[f"ip_adapter.{key}.to_k_ip.weight"] = processor.to_k_ip[0].weight
            found[f"ip_adapter.{key}.to_v_ip.weight"] = processor.to_v_ip[0].weight
        return {name: cast(nn.Parameter, parameter.requires_grad_(True)) for name, parameter in found.items()}

    def own_adapter(self, n_features: int) -> dict[str, Tensor]:
        """Make an IP-Adapter to begin with: keys and values as those of the text, the image projection random."""
        width = self.unet.config.cross_attention_dim
        projection = nn.Linear(n_features, N_TOKENS * width)
        state = {
            "image_proj.proj.weight": projection.weight.detach(),
            "image_proj.proj.bias": projection.bias.detach(),
            "image_proj.norm.weight": torch.ones(width),
            "image_proj.norm.bias": torch.zeros(width),
        }
        for key, name in self._numbered():
            attention = self.unet.get_submodule(name.removesuffix(".processor"))
            state[f"ip_adapter.{key}.to_k_ip.weight"] = attention.to_k.weight.detach().clone()
            state[f"ip_adapter.{key}.to_v_ip.weight"] = attention.to_v.weight.detach().clone()
        return state

    def loss(self, latents: Tensor, condition: Tensor, often: Sequence[int] = ()) -> Tensor:
        """Mean squared error of what the model is to predict, at random times, with random noise.

        Parameters
        ----------
        latents : Tensor of shape (B, channels, height, width)
            Scaled, as the U-Net takes them.
        condition : Tensor of shape (B, D)
        often : sequence of int
            Times of half of the samples; those of the others, and of all without it, are drawn from the whole schedule.
        """
        noise = torch.randn_like(latents)
        n, device = len(latents), latents.device
        times = torch.randint(0, self.n_times, (n,), device=device)
        if often:
            chosen = torch.tensor(often, device=device)[torch.randint(0, len(often), (n,), device=device)]
            times = torch.where(torch.rand(n, device=device) < 0.5, chosen, times)
        noisy = self.noise.add_noise(latents, noise, times)
        return nnf.mse_loss(self.predict(noisy, times, condition).float(), self.wanted(latents, noise, times))

    def wanted(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Give what the model predicts, as its noise schedule says: the noise, the velocity, or the latents."""
        kind = self.noise.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "sample":
            return latents
        velocity: Tensor = self.noise.get_velocity(latents, noise, times)
        return velocity

    def predict(self, noisy: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """Run the U-Net with the empty prompt: (B, channels, height, width), (B,), (B, D) -> as the first."""
        n = len(noisy)
        added: dict[str, Any] = {"image_embeds": [condition[:, None]]}
        if "pooled_prompt_embeds" in self.prompt:  # SDXL also wants the size in pixels, and that nothing was cut off
            height, width = (self._factor * side for side in noisy.shape[2:])
            added["text_embeds"] = self.prompt["pooled_prompt_embeds"].to(noisy).expand(n, -1)
            added["time_ids"] = noisy.new_tensor([height, width, 0, 0, height, width]).expand(n, -1)
        prompt = self.prompt["prompt_embeds"].to(noisy).expand(n, -1, -1)
        out: Tensor = self.unet(noisy, times, encoder_hidden_states=prompt, added_cond_kwargs=added, return_dict=False)[
            0
        ]
        return out

    def _numbered(self) -> list[tuple[int, str]]:
        """Cross-attentions by the odd numbers that the official layout gives them."""
        names = [name for name in self.unet.attn_processors if not name.endswith("attn1.processor")]
        return [(2 * i + 1, name) for i, name in enumerate(names)]

    def _cross_attentions(self) -> list[tuple[int, Any]]:
        processors = self.unet.attn_processors
        return [(key, processors[name]) for key, name in self._numbered()]


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
    shape = latents.meta.provenance.get("latents")
    if not shape:
        raise ConfigError(f"latents {latents.path}", got=latents.meta.encoder, allowed="features of vae:MODEL@size=N")
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
        batch = {role: _tensor(array, rows, device) for role, array in arrays.items()}
        shown = torch.rand(len(rows), device=device) >= settings.drop
        condition = prior(batch) * shown[:, None]
        return diffuser.loss(_tensor(pictures, rows, device).view(-1, *shape), condition, settings.often)

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
            block = {role: _tensor(features[role], rows, "cpu") for role in self.meta.widths}
            out[start : start + _BATCH] = self.network.fused(block).numpy()
        return out


def empty_prompt(pipeline: Any) -> dict[str, Tensor]:
    """Encode the empty prompt: ``prompt_embeds`` (1, n_tokens, width), and ``pooled_prompt_embeds`` of SDXL."""
    for part in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
        if part is not None:
            part.float()  # may have been stored in half precision
    with torch.inference_mode():
        encoded = pipeline.encode_prompt(
            prompt="", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    found = {"prompt_embeds": encoded[0].clone()}
    if len(encoded) > 2:
        found["pooled_prompt_embeds"] = encoded[2].clone()
    return found


def _read_adapter(path: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"IP-Adapter weights {path}", got=str(error), do="name a .safetensors file") from error


def _without(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _tensor(array: npt.NDArray[Any], rows: Rows, device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array[rows])).to(device).float()
