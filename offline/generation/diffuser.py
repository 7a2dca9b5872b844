"""A frozen diffusion model that an IP-Adapter is trained into (Ye et al. 2023, arXiv 2308.06721), and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from streamdec.decode.generate.tiers.diffusion import encode
from streamdec.errors import ConfigError

from ..targets.frozen import check_device, missing
from ..targets.huggingface import opened
from ..targets.store import Targets

N_TOKENS = 4
"""Tokens of an IP-Adapter, fixed by its official layout."""


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


def latent_shape(latents: Targets) -> tuple[int, ...]:
    """Give the shape of an image's latents, (channels, height, width), which are stored in one row.

    Raises
    ------
    ConfigError
        These features are none.
    """
    shape: list[int] | None = latents.meta.provenance.get("latents")
    if not shape:
        raise ConfigError(f"latents {latents.path}", got=latents.meta.encoder, allowed="features of vae:MODEL@size=N")
    return tuple(shape)


def empty_prompt(pipeline: Any) -> dict[str, Tensor]:
    """Encode the empty prompt: ``prompt_embeds`` (1, n_tokens, width), and ``pooled_prompt_embeds`` of SDXL."""
    for part in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
        if part is not None:
            part.float()  # may have been stored in half precision
    with torch.inference_mode():
        return {name: tensor.clone() for name, tensor in encode(pipeline, "").items()}


def _without(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
