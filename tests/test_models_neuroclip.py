"""NeuroCLIP's visual side: a frozen open_clip transformer with random weights inside."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from models.neuroclip import NeuroClipVision, identity

K = 3


def tiny(**kwargs: object) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(32, 8, width=16, layers=2, heads=2, mlp_ratio=2, output_dim=6, **kwargs)


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def thumbnails(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 56, 56, generator=torch.Generator().manual_seed(2))


def tokens(vit: VisionTransformer, n: int = 4) -> Tensor:
    """Rows of a token cache; the second and third filter are a mean over all pixels and black."""
    x = images(n)
    filtered = [x, x.mean((2, 3), keepdim=True).expand_as(x), torch.zeros_like(x)]
    with torch.no_grad():
        return torch.stack([vit.conv1(each).flatten(2).transpose(1, 2) for each in filtered], dim=1)


def trained(net: nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in net.named_parameters() if parameter.requires_grad}


def shake(net: NeuroClipVision) -> NeuroClipVision:
    """Stand in for training."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    return net


@pytest.mark.parametrize("dynamic_filter", [True, False])
def test_starts_as_the_frozen_clip(dynamic_filter: bool) -> None:
    vit = tiny()
    expected = vit.eval()(images())
    net = NeuroClipVision(vit, K, dynamic_filter=dynamic_filter, n_prompts=0)
    for mode in (True, False):
        found = net.train(mode)(tokens(vit), thumbnails())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(shake(net)(tokens(vit), thumbnails()), expected, atol=1e-2)


def test_shared_prompts_against_the_blocks_spelt_out() -> None:
    vit = tiny()
    for depth in ("deep", "shallow"):
        net = NeuroClipVision(vit, dynamic_filter=False, instance=False, n_prompts=5, depth=depth).eval()
        prompts = net.prompts.detach()
        assert prompts.shape == (2 if depth == "deep" else 1, 5, 16)
        assert prompts.abs().max() < math.sqrt(6 / (3 * 64 + 16))
        with torch.no_grad():
            x = vit._embeds(images())
            x = vit.transformer.resblocks[0](torch.cat([x[:, :1], prompts[[0] * 4], x[:, 1:]], 1))
            again = prompts[[1] * 4] if depth == "deep" else x[:, 1:6]
            x = vit.transformer.resblocks[1](torch.cat([x[:, :1], again, x[:, 6:]], 1))
            expected = vit.ln_post(x)[:, 0] @ vit.proj
            torch.testing.assert_close(net(tokens(vit)), expected, rtol=0, atol=1e-6)
            assert not torch.allclose(expected, vit(images()), atol=1e-3)


def test_patches_against_their_formula() -> None:
    vit = tiny()
    net, x, small = shake(NeuroClipVision(vit, K)), tokens(vit), thumbnails()
    weights = net.filter(small)
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    plain, filtered = x[:, 0], sum(weights[:, k, None, None] * x[:, k] for k in range(K))

    def norm(layer: nn.LayerNorm, y: Tensor) -> Tensor:
        y = (y - y.mean(-1, keepdim=True)) / torch.sqrt(y.var(-1, correction=0, keepdim=True) + 1e-5)
        return y * layer.weight + layer.bias

    first, _, second, _ = net.fusion.gate
    both = torch.cat([norm(net.fusion.norms[0], plain), norm(net.fusion.norms[1], filtered)], -1)
    gate = torch.sigmoid(nn.functional.gelu(both @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    fused = gate * plain + (1 - gate) * filtered
    before, down, _, up = net.instance.layers
    added = nn.functional.gelu(norm(before, fused) @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(net.patches(x, small), plain + added)
    without = shake(NeuroClipVision(vit, K, dynamic_filter=False))
    before, down, _, up = without.instance.layers
    added = nn.functional.gelu(norm(before, plain) @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(without.patches(x), plain + added)


def test_filtering_tokens_is_filtering_the_image() -> None:
    vit = tiny()
    net, x = NeuroClipVision(vit, K), images()
    w = net.filter(thumbnails())[:, :, None, None, None]
    flat = x.mean((2, 3), keepdim=True).expand_as(x)
    filtered = w[:, 0] * x + w[:, 1] * flat
    mixed = torch.einsum("bk,bknd->bnd", w[:, :, 0, 0, 0], tokens(vit))
    torch.testing.assert_close(vit.conv1(filtered).flatten(2).transpose(1, 2), mixed, rtol=0, atol=1e-5)


def test_thumbnails_of_bytes_and_tokens_of_half_precision() -> None:
    vit = tiny()
    net = shake(NeuroClipVision(vit, K)).eval()
    small = (thumbnails() * 255).round()
    as_bytes = net(tokens(vit).half(), small.to(torch.uint8))
    torch.testing.assert_close(as_bytes, net(tokens(vit).half().float(), small / 255))
    assert as_bytes.dtype == torch.float32


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_only_prompts_learn(depth: str) -> None:
    vit = tiny()
    frozen = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    net = shake(NeuroClipVision(vit, K, depth=depth)).train()
    assert not net.vit.training
    assert not any(name.startswith("vit.") for name in trained(net))
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net(tokens(vit), thumbnails()).square().sum().backward()
    learning = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning == set(trained(net))
    optimiser.step()
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in net.vit.state_dict().items())


def test_first_step_moves_what_starts_at_zero() -> None:
    vit = tiny()
    net = NeuroClipVision(vit, K)
    net(tokens(vit), thumbnails()).square().sum().backward()
    assert net.instance.layers[-1].weight.grad.any()
    assert net.prompts.grad.any()


def test_an_image_is_embedded_alone_as_in_a_batch() -> None:
    vit = tiny()
    net = shake(NeuroClipVision(vit, K)).eval()
    whole, one = net(tokens(vit), thumbnails()), net(tokens(vit)[2:3], thumbnails()[2:3])
    torch.testing.assert_close(whole[2:3], one, rtol=0, atol=1e-5)


def test_parameters_at_published_sizes() -> None:
    with torch.device("meta"):
        vit = VisionTransformer(224, 32, width=768, layers=12, heads=12, mlp_ratio=4, output_dim=512)
        net = NeuroClipVision(vit)
    conv = 3 * 16 * 9 + 16 + 16 * 32 * 9 + 32 + 32 * 64 * 9 + 64
    by_part = {
        "filter": conv + 64 * 4 + 4,
        "fusion": 4 * 768 + (1536 * 96 + 96) + (96 * 768 + 768),
        "instance": 2 * 768 + (768 * 64 + 64) + (64 * 768 + 768),
        "prompts": 12 * 8 * 768,
        "head": 512 * 512 + 512,
    }
    assert by_part["filter"] == 23_844
    assert by_part["prompts"] == 73_728
    found = {part: sum(n for name, n in trained(net).items() if name.split(".")[0] == part) for part in by_part}
    assert found == by_part
    assert sum(trained(net).values()) == 686_020
    assert net(torch.empty(2, 4, 49, 768, device="meta"), torch.empty(2, 3, 56, 56, device="meta")).shape == (2, 512)


def test_ablations_leave_parts_out() -> None:
    def parts(**kwargs: object) -> set[str]:
        return {name.split(".")[0] for name in trained(NeuroClipVision(tiny(), K, **kwargs))}

    assert parts() == {"filter", "fusion", "instance", "prompts", "head"}
    assert parts(dynamic_filter=False) == {"instance", "prompts", "head"}
    assert parts(dynamic_filter=False, instance=False) == {"prompts", "head"}
    assert parts(n_prompts=0) == {"filter", "fusion", "instance", "head"}


def test_cached_features_start_as_they_are() -> None:
    features = torch.randn(3, 6)
    assert torch.equal(identity(6)(features), features)


def test_what_it_cannot_take_is_said() -> None:
    with pytest.raises(ValueError, match="without instance prompt"):
        NeuroClipVision(tiny(), instance=False)
    with pytest.raises(ValueError, match=r"pool_type.*got avg"):
        NeuroClipVision(tiny(pool_type="avg"))
    with pytest.raises(ValueError, match="attn_pool"):
        NeuroClipVision(tiny(attentional_pool=True, attn_pooler_heads=2))
