"""ATM's diffusion prior: the embedding of an epoch -> an image embedding as the diffusion model's adapter knows them.

As in dongyangli-del/EEG_Image_decode, Generation/diffusion_prior.py: diffusers' DDPMScheduler as it is by default,
which clips the predicted embedding to -1..1; the condition is left out for a whole batch at a time; 50 steps, guidance
5. Sampling is exported as one network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from models.diffusion_prior import DiffusionPriorUNet
from streamdec.errors import ConfigError
from streamdec.types import Float32

from ..progress import Report, silent
from ..targets.frozen import missing
from .loop import Rows, Steps, digest, train


class DiffusionPriorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As published, but for the samples: as many steps as 150 passes over 66 160 single epochs make.

    Here a sample is the mean of an image's repetitions: there are fewer, of less noise, and each is seen more often.

    ``widths``, ``n_time`` and ``dropout`` of the network; ``drop`` share of batches without a condition; ``clip`` of
    the predicted embedding, None for none: published 1, which embeddings that are not normalised exceed; ``n_samples``
    steps of sampling, with ``guidance``.
    """

    widths: tuple[int, ...] = (1024, 512, 256, 128, 64)
    n_time: int = 512
    dropout: float = 0.1
    drop: float = 0.1
    clip: float | None = 1.0
    n_samples: int = 50
    guidance: float = 5.0
    steps: Steps = Steps(
        n_steps=9_750, batch_size=1024, learning_rate=1e-3, weight_decay=0.0, warm_up=500, cosine=True, clip=1.0
    )

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1 or self.n_time < 2 or self.n_time % 2:
            raise ConfigError(
                "diffusion_prior",
                got=f"widths {self.widths}, n_time {self.n_time}",
                allowed="two widths or more, even n_time",
            )
        if not 0 <= self.drop < 1 or not 0 <= self.dropout < 1:
            raise ConfigError("diffusion_prior drop and dropout", allowed="from 0 to below 1")
        if not 1 <= self.n_samples <= 1000:
            raise ConfigError("diffusion_prior n_samples", got=self.n_samples, allowed="1..1000")


def schedule(settings: DiffusionPriorSettings) -> Any:
    """Make the noise schedule, a DDPMScheduler of diffusers.

    Raises
    ------
    ConfigError
        diffusers is not installed.
    """
    try:
        from diffusers import DDPMScheduler
    except ImportError as error:
        raise missing("diffusers", "generate") from error
    made = DDPMScheduler(clip_sample=settings.clip is not None, clip_sample_range=settings.clip or 1.0)
    made.set_timesteps(settings.n_samples)
    return made


def fit(
    conditions: Float32,
    images: Float32,
    settings: DiffusionPriorSettings,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    report: Report = silent,
) -> tuple[DiffusionPriorUNet, float]:
    """Train on pairs; a killed call goes on where it was.

    Parameters
    ----------
    conditions : array of shape (n, C), float32
        Embeddings of epochs.
    images : array of shape (n, D), float32
        Of what they were answers to, as the adapter takes them: not normalised.
    settings : DiffusionPriorSettings
    folder : Path
        Of the training state.
    seed, device, report
        As in :func:`.loop.train`.

    Returns
    -------
    network : DiffusionPriorUNet
        On the CPU.
    loss : float
        At the end.
    """
    torch.manual_seed(seed)
    network = DiffusionPriorUNet(
        images.shape[1], conditions.shape[1], settings.widths, settings.n_time, settings.dropout
    ).to(device)
    noise = schedule(settings)
    given, wanted = (torch.from_numpy(array) for array in (conditions, images))
    network.train()
    last = train(
        cast(dict[str, nn.Parameter], dict(network.named_parameters())),
        lambda rows: batch_loss(network, noise, given, wanted, rows, settings.drop, device),
        len(images),
        settings.steps,
        folder,
        {"settings": settings, "samples": digest(conditions, images)},
        seed=seed,
        report=lambda line, done=0, total=0: report(f"diffusion prior, {line}", done, total),
    )
    return network.cpu().eval(), last


def batch_loss(
    network: DiffusionPriorUNet,
    noise: Any,
    conditions: Tensor,
    images: Tensor,
    rows: Rows,
    drop: float,
    device: str = "cpu",
) -> Tensor:
    """Mean squared error of the predicted noise; without the condition in a share ``drop`` of the batches."""
    of_batch = torch.from_numpy(rows)
    clean = images[of_batch].to(device)
    condition = None if torch.rand(1).item() < drop else conditions[of_batch].to(device)
    added = torch.randn_like(clean)
    times = torch.randint(0, noise.config.num_train_timesteps, (len(rows),), device=device)
    return nnf.mse_loss(network(noise.add_noise(clean, added, times), times, condition), added)


class Sampler(nn.Module):
    """Sampling as one network: every step of DDPM written out, with the network's weights shared.

    ``x = (sqrt(a_p) b x0 + sqrt(a) (1 - a_p) x) / (1 - a_t) + sigma z`` with what diffusers computes of its schedule:
    a_t and a_p the products of alphas at this step and at the next, a = a_t / a_p, b = 1 - a.

    Parameters
    ----------
    network : DiffusionPriorUNet
    settings : DiffusionPriorSettings
    """

    def __init__(self, network: DiffusionPriorUNet, settings: DiffusionPriorSettings) -> None:
        super().__init__()
        self.network, self.guidance, self.clip = network, settings.guidance, settings.clip
        noise = schedule(settings)
        powers = [float(power) for power in noise.alphas_cumprod.double()]
        times: Sequence[int] = noise.timesteps.tolist()
        self.times = tuple(times)
        self._constants = []
        for i, time in enumerate(times):
            now, then = powers[time], powers[times[i + 1]] if i + 1 < len(times) else 1.0
            alpha, kept = now / then, 1 - now
            spread = (1 - then) / kept * (1 - alpha)
            sigma = max(spread, 1e-20) ** 0.5 if time > 0 else 0.0
            self._constants.append(
                (now**0.5, kept**0.5, then**0.5 * (1 - alpha) / kept, alpha**0.5 * (1 - then) / kept, sigma)
            )

    @property
    def n_noises(self) -> int:
        """Noises it takes: the first embedding, and one per step but the last, which adds none."""
        return len(self.times)

    def forward(self, embedding: Tensor, noise: Tensor) -> Tensor:
        """Condition (1, C), standard normal noise (1, n_noises, D) -> image embedding (1, D)."""
        x = noise[:, 0]
        for i, (time, (signal, noisy, of_clean, of_x, sigma)) in enumerate(
            zip(self.times, self._constants, strict=True)
        ):
            at = torch.full((len(x),), float(time))
            predicted = self.network(x, at, embedding)
            if self.guidance != 0:
                without = self.network(x, at)
                predicted = without + self.guidance * (predicted - without)
            clean = (x - noisy * predicted) / signal
            if self.clip is not None:
                clean = clean.clamp(-self.clip, self.clip)
            x = of_clean * clean + of_x * x
            if sigma:
                x = x + sigma * noise[:, i + 1]
        return x


def noises(sampler: Sampler, n: int, seed: int) -> Float32:
    """Draw standard normal noise for n samples: (n, 1, n_noises, D)."""
    shape = (n, 1, sampler.n_noises, sampler.network.n_features)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
