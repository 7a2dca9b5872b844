"""Building blocks that several published networks share.

Shapes: B batch, C channels, T samples, F filters, W windows after the temporal pooling, K taps, D features.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .processes import summed, whole

# Epochs that go through both convolutions at once on the CPU: 32 with 63 channels make 12 MB of activations and stay in
# the cache. A step of training on 2 cores of an EPYC with 32 MB of L3, ms per epoch: 1.08 at 8 and at 32, 5.4 at 125.
_CPU_BLOCK = 32
_GPU_BLOCK = 512


class _Temporal(torch.autograd.Function):
    """``sum over c, f of spatial[c, f] * ELU(weight[f] . patch[b, w, c] + bias[f])``, a batch's activations never held.

    One epoch has C·W·F activations between the two layers, 6 times its own size even after the pooling. They are
    computed block by block, and once more on the way back, which costs less than writing and reading them.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, weight: Tensor, bias: Tensor, spatial: Tensor, stride: int) -> Tensor:
        """(B, C, M) what :func:`_patches` cuts, (F, K), (F,), (C·F, F) -> (B·W, F)."""
        ctx.save_for_backward(mean, weight, bias, spatial)
        ctx.stride = stride
        patches = _patches(mean, weight.shape[1], stride)
        block, n_windows = _block(mean), patches.shape[1]
        out = mean.new_empty(len(mean) * n_windows, spatial.shape[1])
        for start in range(0, len(mean), block):
            _, hidden = _hidden(patches[start : start + block], weight, bias)
            rows = out[start * n_windows : (start + block) * n_windows]
            torch.mm(hidden.view(len(rows), -1), spatial, out=rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None]:
        mean, weight, bias, spatial = ctx.saved_tensors
        with _float32(mean):
            return *_temporal_backward(mean, weight, bias, spatial, ctx.stride, ctx.needs_input_grad[0], *grads), None


def _temporal_backward(
    mean: Tensor, weight: Tensor, bias: Tensor, spatial: Tensor, stride: int, of_input: bool, grad: Tensor
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    patches, n_taps = _patches(mean, weight.shape[1], stride), weight.shape[1]
    block, n_windows = _block(mean), patches.shape[1]
    grad = grad.contiguous()
    d_weight, d_bias, d_spatial = torch.zeros_like(weight), torch.zeros_like(bias), torch.zeros_like(spatial)
    # Patches overlap; cut into runs of one stride they add up in a few shifts. So the taps are padded to whole runs.
    n_runs = -(-n_taps // stride)
    padded = nnf.pad(weight, (0, n_runs * stride - n_taps))
    d_mean = mean.new_zeros(*mean.shape[:2], n_windows - 1 + n_runs, stride) if of_input else None
    for start in range(0, len(mean), block):
        rows, hidden = _hidden(patches[start : start + block], weight, bias)
        d_out = grad[start * n_windows : (start + block) * n_windows]
        d_spatial.addmm_(hidden.view(len(d_out), -1).T, d_out)
        d_hidden = torch.mm(d_out, spatial.T).view(hidden.shape)
        d_hidden = torch.ops.aten.elu_backward(d_hidden, 1.0, 1.0, 1.0, True, hidden)
        d_weight.addmm_(d_hidden.T, rows)
        d_bias += d_hidden.sum(0)
        if d_mean is not None:
            target = d_mean[start : start + block]
            runs = torch.mm(d_hidden, padded).view(len(target), n_windows, -1, n_runs, stride)
            for i in range(n_runs):
                target[:, :, i : i + n_windows] += runs[:, :, :, i].transpose(1, 2)
    if d_mean is not None:
        d_mean = d_mean.flatten(2)[..., : mean.shape[-1]]
    return d_mean, d_weight, d_bias, d_spatial


def _patches(mean: Tensor, n_taps: int, stride: int) -> Tensor:
    """(B, C, M) -> what each window's taps see, a (B, W, C, K) view."""
    return mean.unfold(-1, n_taps, stride).transpose(1, 2)


def _block(mean: Tensor) -> int:
    return _GPU_BLOCK if mean.is_cuda else _CPU_BLOCK


def _hidden(patches: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    rows = patches.reshape(-1, weight.shape[1])
    return rows, nnf.elu_(torch.addmm(bias, rows, weight.T))


def _float32(x: Tensor) -> torch.autocast:
    """Keep an enclosing autocast out: moments of a whole batch need the digits, and the products are small."""
    return torch.autocast(x.device.type, enabled=False)


class TSConv(nn.Module):
    """Temporal and spatial convolution of NICE (Song et al. 2024, arXiv 2308.13234), in the order that costs least.

    Published: convolution of 25 taps, mean over 51 samples every 5, batch norm, ELU, convolution over the channels,
    batch norm, ELU, dropout, 1×1 convolution, flattened window by window. Parameters and numbers are those (float32,
    1e-5, forward and gradient); the arithmetic is not:

    - Convolution and mean are linear and commute. The mean is taken first, by a running sum; the 25 taps are then
      needed at 36 windows instead of 226 samples: a sixth of the multiplications and of the activations.
    - The batch norm of a linear map follows from the mean and covariance of its input, here 25 wide. It goes into the
      taps before they are applied, in training too, and no pass over the activations is left.
    - :class:`_Temporal` does both convolutions by matrix products that stay in the cache.

    Under autocast it computes in float32 all the same.

    Parameters
    ----------
    n_chans, n_times : int
        Shape of one epoch. 63 × 250 gives ``n_features`` 1440.
    n_filters, n_taps, pool, stride : int
        As published: 40, 25, 51, 5.
    dropout : float
        As published: 0.5.
    project : bool
        With the 1×1 convolution, as published; UBP and Brain-HIVE go without.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        n_filters: int = 40,
        n_taps: int = 25,
        pool: int = 51,
        stride: int = 5,
        dropout: float = 0.5,
        project: bool = True,
    ) -> None:
        super().__init__()
        if n_times < n_taps - 1 + pool:
            raise ValueError(f"n_times: got {n_times}; allowed: at least {n_taps - 1 + pool}, the reach of one window")
        self.n_windows = (n_times - n_taps + 1 - pool) // stride + 1
        self.pool, self.stride = pool, stride
        self.temporal = nn.Conv2d(1, n_filters, (1, n_taps))
        self.temporal_norm = nn.BatchNorm1d(n_filters)
        self.spatial = nn.Conv2d(n_filters, n_filters, (n_chans, 1))
        self.spatial_norm = nn.BatchNorm1d(n_filters)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(n_filters, n_filters) if project else nn.Identity()
        self.n_features = self.n_windows * n_filters

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, n_features)."""
        with _float32(x):
            mean = self._mean(x.to(self.temporal.weight.dtype))
            weight, bias = self._normed_taps(mean)
            spatial = self.spatial.weight[..., 0].permute(2, 1, 0).flatten(0, 1)
            y: Tensor = _Temporal.apply(mean, weight, bias, spatial, self.stride)
            y = self.dropout(nnf.elu(self.spatial_norm(y + cast(Tensor, self.spatial.bias))))
            features: Tensor = self.project(y).view(len(x), -1)
        return features

    def _mean(self, x: Tensor) -> Tensor:
        """(B, C, T) -> its running mean, as far as the windows reach, (B, C, M)."""
        n_times = (self.n_windows - 1) * self.stride + self.temporal.kernel_size[1]
        total = nnf.pad(x.cumsum(-1), (1, 0))
        return (total[..., self.pool : self.pool + n_times] - total[..., :n_times]) / self.pool

    def _normed_taps(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Taps (F, K) and bias (F,) with the batch norm in them; updates its running statistics in training."""
        norm, taps, bias = self.temporal_norm, self.temporal.weight[:, 0, 0], cast(Tensor, self.temporal.bias)
        running_mean, running_var = _running(norm)
        if not self.training:
            scale, shift = _affine(norm, running_mean, running_var)
            return taps * scale[:, None], bias * scale + shift
        patch, covariance, n = self._moments(mean)
        centre = taps @ patch + bias
        variance = ((taps @ covariance) * taps).sum(1)
        with torch.no_grad():
            momentum = cast(float, norm.momentum)
            running_mean.lerp_(centre, momentum)
            running_var.lerp_(variance * (n / max(n - 1, 1)), momentum)
        scale, shift = _affine(norm, centre, variance)
        return taps * scale[:, None], bias * scale + shift

    def _moments(self, mean: Tensor) -> tuple[Tensor, Tensor, int]:
        """Mean (K,) and covariance (K, K) of all patches of the batch, and how many there are.

        The second moments of the running mean itself are one well-shaped matrix product; those of the patches are sums
        along its diagonals. Double precision at the end: the mean is subtracted after squaring.
        """
        rows = mean.flatten(0, 1)
        second = (rows.T @ rows).double()
        starts = torch.arange(self.n_windows, device=mean.device) * self.stride
        index = starts[:, None] + torch.arange(self.temporal.kernel_size[1], device=mean.device)
        n = whole(len(rows) * self.n_windows)
        first = summed(rows.sum(0, dtype=torch.float64)[index].sum(0)) / n
        covariance = summed(second[index[:, :, None], index[:, None, :]].sum(0)) / n - torch.outer(first, first)
        return first.to(mean.dtype), covariance.to(mean.dtype), n

    @torch.no_grad()
    def folded(self) -> nn.Sequential:
        """Make the layers for inference: plain ones, (B, C, T) -> (B, n_features).

        Taps and mean become one convolution of 75 taps, both batch norms go into the weights.
        """
        # Correlating with the taps and then with the box is correlating with their convolution.
        box = self.temporal.weight.new_full((1, 1, 1, self.pool), 1 / self.pool)
        taps = nnf.conv2d(self.temporal.weight, box, padding=(0, self.pool - 1))
        n_filters = len(taps)
        temporal = nn.Conv2d(1, n_filters, (1, taps.shape[-1]), (1, self.stride))
        spatial = nn.Conv2d(n_filters, n_filters, (self.spatial.kernel_size[0], 1))
        for layer, weight, trained, norm in (
            (temporal, taps, self.temporal, self.temporal_norm),
            (spatial, self.spatial.weight, self.spatial, self.spatial_norm),
        ):
            scale, shift = _affine(norm, *_running(norm))
            layer.weight.copy_(weight * scale[:, None, None, None])
            cast(Tensor, layer.bias).copy_(cast(Tensor, trained.bias) * scale + shift)
        layers = nn.Sequential(nn.Unflatten(1, (1, -1)), temporal, nn.ELU(), spatial, nn.ELU())
        if isinstance(self.project, nn.Linear):
            project = nn.Conv2d(n_filters, n_filters, 1)
            project.weight.copy_(self.project.weight[..., None, None])
            cast(Tensor, project.bias).copy_(self.project.bias)
            layers.append(project)
        return layers.append(_TokenMajor()).to(taps.device).eval()


def _running(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    return cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)


def _affine(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Give the batch norm of these statistics as ``x * scale + shift``, each (F,)."""
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


class _TokenMajor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """(B, F, 1, W) -> (B, W·F), window by window."""
        return x.squeeze(2).transpose(1, 2).flatten(1)


class ResProj(nn.Module):
    """Projection head of NICE: linear, residual GELU block, layer norm.

    Parameters
    ----------
    n_in, n_out : int
        Features in and out. Of two features, as two classes have, a layer norm leaves a sign and no gradient: there is
        none then.
    dropout : float
        0.5 after TSConv, 0.3 on flat input, as published.
    """

    def __init__(self, n_in: int, n_out: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.first = nn.Linear(n_in, n_out)
        self.block = nn.Sequential(nn.GELU(), nn.Linear(n_out, n_out), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(n_out) if n_out > 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in) -> (B, n_out)."""
        x = self.first(x)
        y: Tensor = self.norm(x + self.block(x))
        return y


class Projected(nn.Module):
    """An encoder of epochs and its projection head: an epoch to a query embedding.

    Parameters
    ----------
    encoder : nn.Module
        (B, n_chans, n_times) -> (B, encoder.n_features), with a ``folded()``.
    n_features : int
        Width of the embedding.
    dropout : float
        In the head; published 0.5.
    """

    def __init__(self, encoder: nn.Module, n_features: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = ResProj(cast(int, encoder.n_features), n_features, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_chans, n_times) -> (B, n_features), not normalised."""
        y: Tensor = self.head(self.encoder(x))
        return y

    def folded(self) -> nn.Sequential:
        """Make the trained network for inference, from plain layers that any exporter knows."""
        encoder = cast(Any, self.encoder).folded()
        return nn.Sequential(encoder, copy.deepcopy(self.head)).eval()
