"""The networks by name."""

from __future__ import annotations

from torch import nn

from .nice import Nice

NETWORKS: dict[str, type[nn.Module]] = {"nice": Nice}
