"""ATM-S: Li et al., "Visual Decoding and Reconstruction via EEG Embeddings with Guided Diffusion", arXiv 2403.07721.

As in Retrieval/ATMS_retrieval.py of dongyangli-del/EEG_Image_decode@22c84ad.
Shapes: B batch, C channels, T samples, L tokens = C + 1, H heads, D embedding.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from .blocks import ResProj, TSConv


class ChannelTransformer(nn.Module):
    """One layer of iTransformer (Liu et al. 2024, arXiv 2310.06625): every channel's samples are a token.

    Embedding, dropout; attention, residual, norm; two linear layers with GELU, residual, norm; a last norm. Heads are
    n_times // 4 wide, 62 of 250, so query, key and value have 248 features. Nothing marks positions or time.

    Parameters
    ----------
    n_times : int
        Width of a token, T.
    n_heads, n_hidden : int
        As published: 4, 256.
    dropout : float
        Everywhere in it; published 0.25.
    """

    def __init__(self, n_times: int, n_heads: int = 4, n_hidden: int = 256, dropout: float = 0.25) -> None:
        super().__init__()
        width = n_times // n_heads * n_heads
        self.n_heads = n_heads
        self.embedding = nn.Linear(n_times, n_times)
        self.query_key_value = nn.Linear(n_times, 3 * width)
        self.out = nn.Linear(width, n_times)
        self.attention_norm = nn.LayerNorm(n_times)
        self.inner = nn.Linear(n_times, n_hidden)
        self.outer = nn.Linear(n_hidden, n_times)
        self.feed_forward_norm = nn.LayerNorm(n_times)
        self.norm = nn.LayerNorm(n_times)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """(B, C, T) and one more token each (B, T), which comes first -> (B, C + 1, T)."""
        x = self.dropout(torch.cat([token[:, None], self.embedding(x)], dim=1))
        query, key, value = self.query_key_value(x).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nnf.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout.p if self.training else 0.0
        )
        x = self.attention_norm(x + self.dropout(self.out(attended.transpose(1, 2).flatten(2))))
        hidden = self.dropout(nnf.gelu(self.inner(x)))
        y: Tensor = self.norm(self.feed_forward_norm(x + self.dropout(self.outer(hidden))))
        return y


class ATMS(nn.Module):
    """Channels as tokens with a subject token before them, TSConv over what leaves the transformer, projection head.

    Differs from the reference, which a named option brings back: there the subject token takes the place of the last
    channel, which is lost; and one unknown subject makes the whole batch unknown. Its subject-wise linear layers, mask
    tokens and time features, none of them in its forward pass, are left out.

    Parameters
    ----------
    n_chans, n_times : int
        Shape of one epoch; published 63 × 250.
    n_features : int
        D; published 1024 (CLIP ViT-H/14).
    n_subjects : int
        Subjects with a token of their own, numbered from 0. Any other number, such as -1, has the shared token.
        Published 10, numbered from 1, which leaves the tenth without.
    dropout : float
        In the transformer; published 0.25. TSConv and head have 0.5.
    hidden : float
        Share of the training epochs of known subjects that have the shared token all the same: else nothing trains
        it. Not in the reference [inf], where batches of several subjects mostly have it, by the last option's rule.
    drops_last_channel : bool
        As published: TSConv sees the subject token and all channels but the last.
    shares_batch : bool
        As published: one unknown subject gives its whole batch the shared token. Evaluation then depends on the batch.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        n_features: int = 1024,
        n_subjects: int = 10,
        dropout: float = 0.25,
        hidden: float = 0.1,
        drops_last_channel: bool = False,
        shares_batch: bool = False,
    ) -> None:
        super().__init__()
        self.n_subjects, self.hidden = n_subjects, hidden
        self.drops_last_channel, self.shares_batch = drops_last_channel, shares_batch
        # The last row is the shared token.
        self.subjects = nn.Embedding(n_subjects + 1, n_times)
        self.transformer = ChannelTransformer(n_times, dropout=dropout)
        self.encoder = TSConv(n_chans, n_times)
        self.head = ResProj(self.encoder.n_features, n_features)

    def forward(self, x: Tensor, subject: Tensor | None = None) -> Tensor:
        """Embed epochs.

        Parameters
        ----------
        x : Tensor of shape (B, C, T), float32
        subject : Tensor of shape (B,), int64, optional
            Numbers of the subjects; without it none is known.

        Returns
        -------
        Tensor of shape (B, D), not normalised
        """
        if subject is None:
            subject = torch.full((len(x),), -1, device=x.device)
        tokens = self.transformer(x, self.subjects(self._rows(subject)))
        y: Tensor = self.head(self.encoder(_channels(tokens, self.drops_last_channel)))
        return y

    def _rows(self, subject: Tensor) -> Tensor:
        """Rows of the embedding, (B,)."""
        unknown = (subject < 0) | (subject >= self.n_subjects)
        if self.shares_batch:
            unknown = unknown.any().expand_as(unknown)
        if self.training:
            unknown = unknown | (torch.rand(unknown.shape, device=unknown.device) < self.hidden)
        return subject.masked_fill(unknown, self.n_subjects)

    def folded(self, subject: int = -1) -> nn.Module:
        """Make the trained network of one subject for inference, (B, C, T) -> (B, D), from plain layers."""
        row = subject if 0 <= subject < self.n_subjects else self.n_subjects
        return _OneSubject(self, self.subjects.weight[row]).eval()


def _channels(tokens: Tensor, drops_last: bool) -> Tensor:
    """(B, C + 1, T) -> (B, C, T)."""
    return tokens[:, :-1] if drops_last else tokens[:, 1:]


class _OneSubject(nn.Module):
    def __init__(self, network: ATMS, token: Tensor) -> None:
        super().__init__()
        self.register_buffer("token", token.detach().clone())
        self.transformer, self.head = copy.deepcopy(network.transformer), copy.deepcopy(network.head)
        self.encoder, self.drops_last_channel = network.encoder.folded(), network.drops_last_channel

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.transformer(x, cast(Tensor, self.token).expand(x.shape[0], -1))
        y: Tensor = self.head(self.encoder(_channels(tokens, self.drops_last_channel)))
        return y
