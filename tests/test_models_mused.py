"""CLIP-MUSED's transformer against its layers spelt out; subjects, one token, a new subject."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from models.mused import Block, Mused


def tiny(n_tokens: int = 2, patch: tuple[int, int] | None = (2, 4), **kwargs: int) -> Mused:
    torch.manual_seed(0)
    sizes = {"width": 8, "n_layers": 2, "n_heads": 2, "n_hidden": 12} | kwargs
    return Mused(3, 10, 5, 4, 3, patch=patch, n_tokens=n_tokens, dropout=0.2, **sizes)


def epochs(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 10, generator=torch.Generator().manual_seed(1))


def subjects(n: int = 6) -> Tensor:
    return torch.arange(n) % 3


def test_block_is_torchs_encoder_layer() -> None:
    torch.manual_seed(0)
    ours = Block(8, 2, 12, 0.0)
    theirs = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True)
    names = {
        "norm1": ours.attention_norm,
        "norm2": ours.mlp_norm,
        "self_attn.out_proj": ours.out,
        "linear1": ours.mlp[0],
        "linear2": ours.mlp[2],
    }
    state = {f"{name}.{key}": tensor for name, layer in names.items() for key, tensor in layer.state_dict().items()}
    theirs.load_state_dict(
        state
        | {
            "self_attn.in_proj_weight": ours.query_key_value.weight,
            "self_attn.in_proj_bias": ours.query_key_value.bias,
        }
    )
    x = torch.randn(3, 7, 8)
    mine, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(ours(mine), theirs(reference), rtol=1e-5, atol=1e-6)
    weights = torch.randn(3, 7, 8)
    (ours(mine) * weights).sum().backward()
    (theirs(reference) * weights).sum().backward()
    torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        ours.query_key_value.weight.grad, theirs.self_attn.in_proj_weight.grad, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("patch", [(2, 4), (3, 5), (1, 10), (3, 10), (1, 3)])
def test_patches_are_rectangles_filled_with_zeros(patch: tuple[int, int]) -> None:
    net, x = tiny(patch=patch), epochs(2)
    found = net._patches(x)
    rows, columns = -(-3 // patch[0]), -(-10 // patch[1])
    assert found.shape == (2, rows * columns, patch[0] * patch[1]) == (2, len(net.position), net.embedding.in_features)
    for b in range(2):
        for p in range(rows * columns):
            expected = np.zeros(patch)
            c, t = p // columns * patch[0], p % columns * patch[1]
            part = x[b, c : c + patch[0], t : t + patch[1]].numpy()
            expected[: part.shape[0], : part.shape[1]] = part
            np.testing.assert_array_equal(found[b, p].reshape(patch), expected)


def test_default_patch_is_a_window_of_all_channels() -> None:
    with torch.device("meta"):
        assert Mused(63, 250, 5, 4, 3).patch == (63, 25)
        assert Mused(63, 20, 5, 4, 3).patch == (63, 20)


def test_tokens_in_front_of_patches() -> None:
    net, x = tiny().eval(), epochs()
    high, low = net(x, subjects())
    for i, number in enumerate(subjects().tolist()):
        sequence = torch.cat([net.tokens[number], net.embedding(net._patches(x[i : i + 1]))[0] + net.position])[None]
        out = net.norm(net.blocks[1](net.blocks[0](sequence)))[0]
        torch.testing.assert_close(high[i], out[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(low[i], out[1], rtol=1e-5, atol=1e-6)
    both = torch.cat([high, low], 1)
    torch.testing.assert_close(net.logits(high, low), both @ net.labels.weight.T + net.labels.bias)
    torch.testing.assert_close(net.embed(high, low), net.head(both))
    assert net.logits(high, low).shape == (6, 4)
    assert net.embed(high, low).shape == (6, 5)


def test_one_token_is_both() -> None:
    net = tiny(n_tokens=1).eval()
    high, low = net(epochs(), subjects())
    assert torch.equal(high, low)
    assert net.tokens[0].shape == (1, 8)
    high, low = tiny().eval()(epochs(), subjects())
    assert not torch.allclose(high, low)
    with pytest.raises(ValueError, match="n_tokens: got 3"):
        tiny(n_tokens=3)


def test_subjects_differ_by_their_tokens_alone() -> None:
    net = tiny().eval()
    x = epochs(1).expand(4, -1, -1)
    high, _ = net(x, torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(high[0], high[3])
    assert not torch.allclose(high[0], high[1])
    unknown, _ = net(x, torch.tensor([-1, 3, 99, -5]))
    assert torch.equal(unknown, unknown[:1].expand(4, -1))
    with torch.no_grad():
        net.tokens[1].copy_(net.tokens[0])
        net.tokens[2].copy_(net.tokens[0])
    torch.testing.assert_close(net(x, torch.tensor([1, 2, 0, -1]))[0], high[[0, 0, 0, 0]], rtol=1e-5, atol=1e-6)


def test_gradients_reach_every_parameter() -> None:
    net = tiny()
    high, low = net(epochs(), subjects())
    (net.embed(high, low).pow(3).sum() + net.logits(high, low).square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize("n_tokens", [1, 2])
def test_folded_is_one_subject(n_tokens: int) -> None:
    net, x = tiny(n_tokens).eval(), epochs()
    for subject in (2, -1):
        expected = net.embed(*net(x, torch.full((6,), subject)))
        torch.testing.assert_close(net.folded(subject)(x), expected, rtol=1e-5, atol=1e-6)
    net.train().folded(0)
    assert net.training
    assert len(net.tokens) == 3
    assert not any(name.startswith("network.tokens") for name in net.folded(0).state_dict())


def test_folded_exports_with_a_dynamic_batch() -> None:
    net = tiny().eval()
    program = torch.onnx.export(
        net.folded(1),
        (epochs(2),),
        input_names=["epochs"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for n in (1, 5):
        x = epochs(n)
        expected = net.embed(*net(x, torch.ones(n, dtype=torch.long))).detach().numpy()
        np.testing.assert_allclose(session.run(None, {"epochs": x.numpy()})[0], expected, atol=1e-4)


def test_parameters_and_shapes_of_eeg_and_fmri() -> None:
    d, hidden, layers, subjects_ = 256, 512, 4, 10
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * hidden + hidden) + (hidden * d + d)
    head = (2 * d * 1024 + 1024) + (1024 * 1024 + 1024) + 2 * 1024
    for shape, patch, inside, n_patches in (((63, 250), None, 63 * 25, 10), ((1, 6000), (1, 128), 128, 47)):
        with torch.device("meta"):
            net = Mused(*shape, 1024, 27, subjects_, patch=patch)
            high, low = net(torch.empty(2, *shape), torch.zeros(2, dtype=torch.long))
        assert high.shape == low.shape == (2, d)
        assert net.embed(high, low).shape == (2, 1024)
        patches = (inside * d + d) + n_patches * d
        labels = 2 * d * 27 + 27
        expected = patches + subjects_ * 2 * d + layers * block + 2 * d + labels + head
        assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_epochs_are_independent_of_their_batch_and_not_changed() -> None:
    net, x = tiny().eval(), epochs()
    before = x.clone()
    whole = net(x, subjects())[0]
    assert torch.equal(x, before)
    torch.testing.assert_close(whole[2:3], net(x[2:3], subjects()[2:3])[0], rtol=1e-5, atol=1e-6)
