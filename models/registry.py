"""The networks by name: each takes ``(n_chans, n_times, n_features, ...)`` and has a ``folded()`` for inference."""

from __future__ import annotations

from torch import nn

from .atm import ATMS
from .channelnet import ChannelNet
from .convnets import DeepNet, EEGNet, ShallowNet, TSConvNet
from .mlp import BrainMLP, EEGProject
from .nice import Nice

NETWORKS: dict[str, type[nn.Module]] = {
    "nice": Nice,  # TSConv, projection head; initial weights of NICE
    "tsconv": TSConvNet,  # the same as UBP and HVF have it
    "atm": ATMS,  # transformer over channels, subject tokens, TSConv
    "eegproject": EEGProject,  # flat epoch, projection head (UBP)
    "brainmlp": BrainMLP,  # flat epoch, hidden layer without biases (HVF)
    "shallownet": ShallowNet,  # convolution over time and channels, pooling
    "deepnet": DeepNet,  # four convolutions over time
    "eegnet": EEGNet,  # few filters, long taps
    "channelnet": ChannelNet,  # parallel dilated and spatial convolutions, residual blocks (Thought2Text)
}
