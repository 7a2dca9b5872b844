"""Visual side of NeuroCLIP: Wang et al. 2025, arXiv 2511.09250.

The paper's code is not public, and of the paper the abstract: that patch tokens of a frozen CLIP are adjusted by an
instance prompt made from two streams, one of them dynamically filtered, fused token by token, and that shared prompt
tokens are inserted into the transformer. Layers, widths and starts below are inferred.

Shapes: B batch, K filters, N patches, D width of the transformer, M shared prompts, E embedding.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

_FUSION_WIDTH = 96
_PROMPT_WIDTH = 64


class DynamicFilter(nn.Module):
    """Weights of the K filters of an image, from a thumbnail of it.

    The filters are Gaussian low-passes, the first one the identity; weighted sums of them are band-passes too. CLIP's
    patch embedding is linear, so that patch tokens of the filtered image are the weighted sum of the tokens of each
    filter, which can be stored: no pixels are needed but the thumbnail's.

    Parameters
    ----------
    n_filters : int
        K; 4, of standard deviation 0, 2, 4 and 8 pixels.
    """

    def __init__(self, n_filters: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, n_filters),
        )

    def forward(self, thumbnails: Tensor) -> Tensor:
        """(B, 3, 56, 56), uint8 or from 0 to 1 -> (B, K), rows sum to 1."""
        if not thumbnails.is_floating_point():
            thumbnails = thumbnails / 255
        weights: Tensor = self.layers(thumbnails).softmax(1)
        return weights


class TokenFusion(nn.Module):
    """Mix two streams of tokens by a gate for each token and feature, seen from both.

    Parameters
    ----------
    width : int
        D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.gate = nn.Sequential(
            nn.Linear(2 * width, _FUSION_WIDTH), nn.GELU(), nn.Linear(_FUSION_WIDTH, width), nn.Sigmoid()
        )

    def forward(self, plain: Tensor, filtered: Tensor) -> Tensor:
        """(B, N, D), (B, N, D) -> (B, N, D)."""
        gate = self.gate(torch.cat([self.norms[0](plain), self.norms[1](filtered)], dim=-1))
        fused: Tensor = gate * plain + (1 - gate) * filtered
        return fused


class InstancePrompt(nn.Module):
    """What is added to the patch tokens: a bottleneck, 0 at the start.

    Parameters
    ----------
    width : int
        D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, _PROMPT_WIDTH), nn.GELU(), nn.Linear(_PROMPT_WIDTH, width)
        )
        last = cast(nn.Linear, self.layers[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        prompt: Tensor = self.layers(tokens)
        return prompt


class NeuroClipVision(nn.Module):
    """A frozen CLIP vision transformer with trainable prompts, from stored patch tokens.

    At the start the instance prompt is 0 and the last layer the identity: without shared prompts the outputs are those
    of the frozen CLIP. Shared prompts start at random, as Jia et al. 2022 (arXiv 2203.12119) have them, and any prompt
    takes its part of the attention.

    Parameters
    ----------
    vit : nn.Module
        VisionTransformer of open_clip with a class token; taken over and frozen. Published: a CLIP ViT; ours
        ViT-B-32 laion2b_s34b_b79k, D 768, N 49, E 512.
    n_filters : int
        K of the stored tokens.
    dynamic_filter : bool
        False: the second stream is the unfiltered one, and nothing is left to fuse.
    instance : bool
        False: the patch tokens stay CLIP's own. The dynamic filter acts through the instance prompt alone and has to be
        off too.
    n_prompts : int
        M; 0: no shared prompts.
    depth : {"deep", "shallow"}
        New shared prompts before every layer, or before the first only, to stay.
    dropout : float
        Of shared prompts.

    Attributes
    ----------
    prompts : Parameter of shape (layers, M, D) or None
    filter : DynamicFilter or None

    Raises
    ------
    ValueError
        A transformer that is built otherwise, or a filter without instance prompt.
    """

    def __init__(
        self,
        vit: nn.Module,
        n_filters: int = 4,
        *,
        dynamic_filter: bool = True,
        instance: bool = True,
        n_prompts: int = 8,
        depth: Literal["deep", "shallow"] = "deep",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if dynamic_filter and not instance:
            raise ValueError("dynamic_filter: got True without instance prompt; allowed: False, nothing else sees it")
        self._check(vit)
        self.vit = vit.requires_grad_(False)
        width, n_features = cast(Tensor, vit.proj).shape
        self.filter = DynamicFilter(n_filters) if dynamic_filter else None
        self.fusion = TokenFusion(width) if dynamic_filter else None
        self.instance = InstancePrompt(width) if instance else None
        self.prompts: nn.Parameter | None = None
        if n_prompts:
            n_layers = len(cast(Any, vit.transformer).resblocks) if depth == "deep" else 1
            bound = math.sqrt(6 / (3 * math.prod(cast(Any, vit.conv1).kernel_size) + width))
            self.prompts = nn.Parameter(torch.empty(n_layers, n_prompts, width).uniform_(-bound, bound))
        self.dropout = nn.Dropout(dropout)
        self.head = identity(n_features)
        self.train(self.training)

    @staticmethod
    def _check(vit: nn.Module) -> None:
        expected = {"attn_pool": None, "pool_type": "tok"}
        for name, allowed in expected.items():
            if getattr(vit, name, allowed) != allowed:
                raise ValueError(f"{name} of the vision transformer: got {getattr(vit, name)}; allowed: {allowed}")
        if not isinstance(getattr(vit, "proj", None), Tensor) or not getattr(vit.transformer, "batch_first", True):
            raise ValueError("vision transformer: allowed: open_clip's, with a projection, batch first")

    def train(self, mode: bool = True) -> NeuroClipVision:
        """Set the mode of the trainable parts; the frozen one is always evaluating."""
        super().train(mode)
        self.vit.eval()
        return self

    def patches(self, tokens: Tensor, thumbnails: Tensor | None = None) -> Tensor:
        """Adjust the patch tokens of images: as :meth:`forward` takes them -> (B, N, D)."""
        plain = fused = tokens[:, 0]
        if self.filter is not None and self.fusion is not None:
            filtered = torch.einsum("bk,bknd->bnd", self.filter(thumbnails), tokens)
            fused = self.fusion(plain, filtered)
        return plain if self.instance is None else plain + self.instance(fused)

    def forward(self, tokens: Tensor, thumbnails: Tensor | None = None) -> Tensor:
        """Embed images.

        Parameters
        ----------
        tokens : Tensor of shape (B, K, N, D), any float
            Output of the transformer's first convolution for each filter of the image, the unfiltered first.
        thumbnails : Tensor of shape (B, 3, 56, 56), uint8 or float from 0 to 1
            Needed by the dynamic filter alone.

        Returns
        -------
        Tensor of shape (B, E), not normalised
        """
        vit = cast(Any, self.vit)
        patches = self.patches(tokens.to(vit.proj.dtype), thumbnails)
        n_patches = patches.shape[1]
        x = torch.cat([vit.class_embedding.expand(len(patches), 1, -1), patches], dim=1) + vit.positional_embedding
        x = vit.ln_pre(x)
        prompts = [] if self.prompts is None else self.prompts.unbind()
        for layer, block in enumerate(vit.transformer.resblocks):
            if layer < len(prompts):
                shared = self.dropout(prompts[layer].expand(len(x), -1, -1))
                x = torch.cat([x[:, :1], shared, x[:, -n_patches:]], dim=1)
            x = block(x)
        y: Tensor = self.head(vit.ln_post(x[:, 0]) @ vit.proj)
        return y


def identity(width: int) -> nn.Linear:
    """Make a linear layer that starts as the identity: all that is trained where prompts would cost too much.

    On features of a frozen CLIP that were computed once, this is the whole visual side ("cached").
    """
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
