"""Published layers as the papers write them, with the parameters of ours: what ours are tested and timed against."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models.atm import ATMS, ChannelTransformer
from models.blocks import TSConv
from models.convnets import JointConv, Layers


class TokenMajor(nn.Module):
    """(B, F, 1, W) -> (B, W·F): index = window * 40 + filter."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(2).transpose(1, 2).flatten(1)


def tsconv(ours: TSConv) -> nn.Sequential:
    """TSConv in the order of the paper; mode and dropout as ours."""
    n_filters, n_chans = ours.temporal.out_channels, ours.spatial.kernel_size[0]
    net = nn.Sequential(
        nn.Unflatten(1, (1, n_chans)),
        nn.Conv2d(1, n_filters, ours.temporal.kernel_size),
        nn.AvgPool2d((1, ours.pool), (1, ours.stride)),
        nn.BatchNorm2d(n_filters),
        nn.ELU(),
        nn.Conv2d(n_filters, n_filters, (n_chans, 1)),
        nn.BatchNorm2d(n_filters),
        nn.ELU(),
        nn.Dropout(ours.dropout.p),
        nn.Conv2d(n_filters, n_filters, 1) if isinstance(ours.project, nn.Linear) else nn.Identity(),
        TokenMajor(),
    )
    return take(ours, net)


def shallownet(ours: Layers) -> nn.Sequential:
    """ShallowNet's encoder layer by layer."""
    joint = ours[0]
    assert isinstance(joint, JointConv)
    n_filters, n_chans = joint.temporal.out_channels, joint.spatial.kernel_size[0]
    net = nn.Sequential(
        nn.Unflatten(1, (1, n_chans)),
        nn.Conv2d(1, n_filters, joint.temporal.kernel_size),
        nn.Conv2d(n_filters, n_filters, (n_chans, 1)),
        nn.BatchNorm2d(n_filters),
        nn.ELU(),
        nn.AvgPool2d((1, 51), (1, 5)),
        nn.Dropout(ours[4].p),
        nn.Flatten(),
    )
    return take(ours, net)


class Transformer(nn.Module):
    """The layer of iTransformer with query, key and value apart and the softmax written out."""

    def __init__(self, ours: ChannelTransformer) -> None:
        super().__init__()
        width, n_times = ours.out.in_features, ours.out.out_features
        self.n_heads = ours.n_heads
        self.embedding = nn.Linear(n_times, n_times)
        self.query, self.key, self.value = (nn.Linear(n_times, width) for _ in range(3))
        self.out = nn.Linear(width, n_times)
        self.attention_norm = nn.LayerNorm(n_times)
        self.inner = nn.Linear(n_times, ours.inner.out_features)
        self.outer = nn.Linear(ours.inner.out_features, n_times)
        self.feed_forward_norm = nn.LayerNorm(n_times)
        self.norm = nn.LayerNorm(n_times)
        self.dropout = nn.Dropout(ours.dropout.p)
        state = ours.state_dict()
        for kind in ("weight", "bias"):
            whole = state.pop(f"query_key_value.{kind}")
            state |= dict(zip((f"query.{kind}", f"key.{kind}", f"value.{kind}"), whole.chunk(3), strict=True))
        self.load_state_dict(state)
        self.train(ours.training)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        x = self.dropout(torch.cat([token[:, None], self.embedding(x)], dim=1))
        query, key, value = (
            layer(x).view(*x.shape[:2], self.n_heads, -1) for layer in (self.query, self.key, self.value)
        )
        scores = torch.einsum("blhe,bshe->bhls", query, key) / query.shape[-1] ** 0.5
        attended = torch.einsum("bhls,bshe->blhe", self.dropout(scores.softmax(-1)), value)
        x = self.attention_norm(x + self.dropout(self.out(attended.flatten(2))))
        y = self.dropout(self.outer(self.dropout(nn.functional.gelu(self.inner(x)))))
        return self.norm(self.feed_forward_norm(x + y))


class Atms(nn.Module):
    """ATM-S; ``rows`` of the subjects' tokens, else the shared one, which is the last."""

    def __init__(self, ours: ATMS) -> None:
        super().__init__()
        self.subjects = nn.Embedding.from_pretrained(ours.subjects.weight.detach().clone(), freeze=False)
        self.transformer, self.encoder = Transformer(ours.transformer), tsconv(ours.encoder)
        self.head = copy.deepcopy(ours.head)

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        if rows is None:
            rows = torch.full((len(x),), self.subjects.num_embeddings - 1)
        return self.head(self.encoder(self.transformer(x, self.subjects(rows))[:, 1:]))


def take(ours: nn.Module, theirs: nn.Sequential) -> nn.Sequential:
    """Give the parameters and running statistics of ours to their layers, which come in the same order."""
    for layer, reference in layers(ours, theirs):
        for name, tensor in layer.state_dict().items():
            getattr(reference, name).data = tensor.detach().clone().view_as(getattr(reference, name))
    return theirs.train(ours.training)


def layers(ours: nn.Module, theirs: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Layers with parameters of ours beside theirs."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
    mine, reference = ([module for module in net.modules() if isinstance(module, kinds)] for net in (ours, theirs))
    return list(zip(mine, reference, strict=True))


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    """Compare the gradients and running statistics of all layers, gradients to 1e-5 of the largest of the layer."""
    for layer, reference in layers(ours, theirs):
        expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
        scale = max([1.0, *(float(gradient.abs().max()) for gradient in expected.values())])
        for name, parameter in layer.named_parameters():
            found, gradient = parameter.grad, expected[name].view_as(parameter).to(parameter.dtype)
            torch.testing.assert_close(
                found, gradient, atol=1e-5 * scale, rtol=1e-4, msg=lambda m, n=f"{layer} {name}": f"{n}: {m}"
            )
        for name in ("running_mean", "running_var"):
            if hasattr(layer, name):
                found, expected = (getattr(norm, name).float() for norm in (layer, reference))
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def random_norms(net: nn.Module) -> None:
    """Give every batch norm weights, biases and statistics that show when they are left out."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)


def without_dropout(net: nn.Module) -> None:
    """Set every dropout to 0, so that training can be compared."""
    for module in net.modules():
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d):
            module.p = 0.0
