"""CLIP-MUSED: Zhou et al., "CLIP-Guided Multi-Subject Visual Neural Information Semantic Decoding", arXiv 2402.08994.

The paper's transformer takes patches of fMRI, one per region of interest; its published code (CLIP-MUSED/CLIP-MUSED
@99d153d) has a 3-D convolutional network instead. This is the paper's, on rectangles of channels and samples.

Shapes: B batch, C channels, T samples, P patches, D width, S subjects, K tokens of a subject, E embedding, L labels.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from .blocks import ResProj


class Block(nn.Module):
    """Transformer layer with the norms first: ``x + attention(LN x)``, then ``x + MLP(LN x)``.

    Parameters
    ----------
    width : int
        D.
    n_heads, n_hidden : int
    dropout : float
        Of what is added.
    """

    def __init__(self, width: int, n_heads: int, n_hidden: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, n_hidden), nn.GELU(), nn.Linear(n_hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K + P, D) -> (B, K + P, D)."""
        of_heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = of_heads.permute(2, 0, 3, 1, 4)
        attended = nnf.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(attended))
        y: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return y


class Mused(nn.Module):
    """Transformer over patches with a high-level and a low-level token per subject.

    All but the tokens is shared by the subjects. The two tokens, as the transformer leaves them, are the
    representation of an epoch: side by side they give the logits of labels and, for retrieval, an embedding [ours; the
    paper has labels only].

    Parameters
    ----------
    n_chans, n_times : int
        Shape of one epoch. A row of fMRI with F features is an epoch of one channel and F samples.
    n_features : int
        E.
    n_labels : int
        L.
    n_subjects : int
        S, numbered from 0. Any other number, such as -1, is a new subject and has the mean of all tokens [ours].
    patch : tuple of int, optional
        Channels and samples of one patch; what the last patches lack is filled with zeros. By default all channels of
        25 samples [ours]: windows of 0.1 s at 250 Hz.
    width, n_layers, n_heads, n_hidden : int
        Of the transformer. Heads, their width of 64 and ``n_hidden`` as in the published code's attention; the number
        of layers is inferred.
    n_tokens : {2, 1}
        1: one token is both high and low (the paper's ablation).
    dropout : float
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        n_features: int,
        n_labels: int,
        n_subjects: int,
        *,
        patch: tuple[int, int] | None = None,
        width: int = 256,
        n_layers: int = 4,
        n_heads: int = 4,
        n_hidden: int = 512,
        n_tokens: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if n_tokens not in (1, 2):
            raise ValueError(f"n_tokens: got {n_tokens}; allowed: 1, 2")
        self.patch = patch or (n_chans, min(25, n_times))
        self._grid = (-(-n_chans // self.patch[0]), -(-n_times // self.patch[1]))
        self._missing = (self._grid[0] * self.patch[0] - n_chans, self._grid[1] * self.patch[1] - n_times)
        self.embedding = nn.Linear(self.patch[0] * self.patch[1], width)
        self.position = nn.Parameter(0.02 * torch.randn(self._grid[0] * self._grid[1], width))
        # One parameter per subject: a new one can be trained while the others stay.
        self.tokens = nn.ParameterList([0.02 * torch.randn(n_tokens, width) for _ in range(n_subjects)])
        self.blocks = nn.Sequential(*[Block(width, n_heads, n_hidden, dropout) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(width)
        self.labels = nn.Linear(2 * width, n_labels)
        self.head = ResProj(2 * width, n_features, dropout)

    def forward(self, x: Tensor, subject: Tensor) -> tuple[Tensor, Tensor]:
        """Represent epochs.

        Parameters
        ----------
        x : Tensor of shape (B, C, T), float32
        subject : Tensor of shape (B,), int64

        Returns
        -------
        high, low : Tensors of shape (B, D)
            The same where there is one token.
        """
        known = torch.stack(list(self.tokens))
        rows = torch.cat([known, known.mean(0, keepdim=True)])
        number = subject.masked_fill((subject < 0) | (subject >= len(known)), len(known))
        return self.represent(x, rows[number])

    def represent(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T) and the tokens of each epoch's subject (B, K, D) -> high, low (B, D) each."""
        patches = self.embedding(self._patches(x)) + self.position
        tokens = self.norm(self.blocks(torch.cat([tokens, patches], dim=1))[:, : tokens.shape[1]])
        return tokens[:, 0], tokens[:, -1]

    def _patches(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, P, samples of a patch)."""
        x = nnf.pad(x, (0, self._missing[1], 0, self._missing[0]))
        x = x.reshape(x.shape[0], self._grid[0], self.patch[0], self._grid[1], self.patch[1])
        return x.transpose(2, 3).flatten(3).flatten(1, 2)

    def logits(self, high: Tensor, low: Tensor) -> Tensor:
        """(B, D), (B, D) -> (B, L), one number per label."""
        y: Tensor = self.labels(torch.cat([high, low], dim=1))
        return y

    def embed(self, high: Tensor, low: Tensor) -> Tensor:
        """(B, D), (B, D) -> (B, E), not normalised."""
        y: Tensor = self.head(torch.cat([high, low], dim=1))
        return y

    def folded(self, subject: int = -1) -> nn.Module:
        """Make the network of one subject for inference: (B, C, T) -> (B, E)."""
        return _OneSubject(self, subject).eval()


class _OneSubject(nn.Module):
    def __init__(self, network: Mused, subject: int) -> None:
        super().__init__()
        known = torch.stack(list(network.tokens)).detach()
        self.register_buffer("token", known[subject] if 0 <= subject < len(known) else known.mean(0))
        self.network = copy.deepcopy(network)
        self.network.tokens = nn.ParameterList()

    def forward(self, x: Tensor) -> Tensor:
        tokens = cast(Tensor, self.token).expand(x.shape[0], -1, -1)
        return self.network.embed(*self.network.represent(x, tokens))
