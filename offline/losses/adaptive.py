"""What training remembers from batch to batch: weights of several losses, the blur of each sample's image.

Both are modules: what they remember is in their buffers and goes on with a run that was killed.

Shapes: B batch, K losses, S training samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from streamdec.errors import ConfigError

from .processes import averaged

Adjustment = Literal["paper", "normalised", "fixed"]
BLUR_LEVELS = ("low", "medium", "high")

_EPS = 1e-8


class DynamicLossAdjustment(nn.Module):
    """Dynamic loss adjustment of NeuroAlign (DLA, equations 7 to 9): weights of K losses from their gradients.

    w = softmax(g (1 + r) / temperature), where g_k is the L2 norm of loss k's gradient over the parameters it shares
    with others and r_k = |g_k - g_k before| / (g_k before + 1e-8), 0 at first. The weights themselves give no gradient.

    With g near 1 and the published temperature the softmax is nearly one-hot: most steps then train one loss.
    ``"normalised"`` divides g by its sum first [inferred: what the paper's figures of smooth weights ask for];
    ``"fixed"`` weighs all alike (the ablation).

    Parameters
    ----------
    n_losses : int
    mode : {"paper", "normalised", "fixed"}
    temperature : float

    Attributes
    ----------
    weights : Tensor of shape (K,)
        Of the last step. They differ from step to step, so that no two sums may be compared.
    history : list of Tensors of shape (K,)
        The weights of each step of this process.
    """

    previous: Tensor
    weights: Tensor

    def __init__(self, n_losses: int = 3, mode: Adjustment = "paper", temperature: float = 0.07) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError("temperature of the loss adjustment", got=temperature, allowed="above 0")
        self.mode, self.temperature = mode, temperature
        self.history: list[Tensor] = []
        self.register_buffer("previous", torch.full((n_losses,), torch.nan))
        self.register_buffer("weights", torch.full((n_losses,), 1 / n_losses))

    def forward(self, losses: Sequence[Tensor], parameters: Sequence[Sequence[Tensor]]) -> Tensor:
        """Weighted sum, shape (), of K losses; ``parameters[k]``: those of which loss k's gradient is measured."""
        if self.mode != "fixed":
            norms = [_gradient_norm(loss, of) for loss, of in zip(losses, parameters, strict=True)]
            g = torch.stack(norms).to(self.previous)
            before = torch.where(self.previous.isnan(), g, self.previous)
            r = (g - before).abs() / (before + _EPS)
            measured = g / (g.sum() + _EPS) if self.mode == "normalised" else g
            self.weights = (measured * (1 + r) / self.temperature).softmax(0)
            self.previous = g
            self.history.append(self.weights)
        return (self.weights * torch.stack(list(losses))).sum()


class BlurChoice(nn.Module):
    """Uncertainty of UBP: how blurred an image each training sample is aligned with next.

    Wu et al. 2025, arXiv 2503.04207; HaitaoWuTJU/Uncertainty-aware-Blur-Prior @89d8b83.

    A sample's logit with its own image is remembered as a running mean, s = 0.3 logit + 0.7 s. Within a batch, a logit
    above mean + 1.96 SD of the batch's running means asks for low blur (the EEG holds detail), one below mean - 1.96 SD
    for high blur, else medium. The first logit starts the running mean [inferred]; the reference also lets validation
    batches overwrite the first training samples, which is not kept.

    Parameters
    ----------
    n_samples : int
    rate : float
        Share of the newest logit.
    width : float
        In SD.

    Attributes
    ----------
    level : Tensor of shape (S,), int64
        Index into ``BLUR_LEVELS``; all medium at first.
    """

    similarity: Tensor
    level: Tensor

    def __init__(self, n_samples: int, rate: float = 0.3, width: float = 1.96) -> None:
        super().__init__()
        self.rate, self.width = rate, width
        self.register_buffer("similarity", torch.full((n_samples,), torch.nan))
        self.register_buffer("level", torch.full((n_samples,), BLUR_LEVELS.index("medium")))

    @torch.no_grad()
    def update(self, sample: Tensor, logits: Tensor) -> None:
        """Take in a training batch: ``sample`` (B,) integer, each once; ``logits`` (B,) of :func:`paired_logits`."""
        logits = logits.to(self.similarity)
        before = self.similarity[sample]
        running = torch.where(before.isnan(), logits, self.rate * logits + (1 - self.rate) * before)
        self.similarity[sample] = running
        mean, reach = running.mean(), self.width * running.std(correction=0)
        # 0, 1, 2: one step up the levels for not being above the interval, one more for being below it.
        self.level[sample] = (logits <= mean + reach).long() + (logits < mean - reach).long()


def _gradient_norm(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """L2 norm of the gradient; over several processes that of the joined batch."""
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    norm: Tensor = torch.linalg.vector_norm(averaged(torch.cat([grad.flatten() for grad in grads])))
    return norm
