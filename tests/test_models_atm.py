"""ATM-S against its layers written out; subjects; the quirks of the reference as options."""

from __future__ import annotations

import pytest
import torch
from textbook import Atms, Transformer, assert_same_gradients, layers, random_norms, without_dropout

from models.atm import ATMS, ChannelTransformer

N_CHANS, N_TIMES, DIM = 5, 90, 7


def small(**options: bool | float) -> ATMS:
    torch.manual_seed(2)
    net = ATMS(N_CHANS, N_TIMES, DIM, n_subjects=3, **options)
    random_norms(net)
    return net


def test_transformer_is_the_layers_written_out() -> None:
    torch.manual_seed(0)
    ours = ChannelTransformer(90, dropout=0.0)
    theirs = Transformer(ours).double()
    x, token = torch.randn(3, 5, 90), torch.randn(3, 90)
    y, expected = ours(x, token), theirs(x.double(), token.double())
    assert y.shape == (3, 6, 90)
    torch.testing.assert_close(y, expected.float(), atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    fused = torch.cat([layer.weight.grad for layer in (theirs.query, theirs.key, theirs.value)]).float()
    torch.testing.assert_close(ours.query_key_value.weight.grad, fused, atol=1e-4, rtol=1e-4)
    for name in ("embedding", "out", "inner", "outer", "norm"):
        found, reference = getattr(ours, name).weight.grad, getattr(theirs, name).weight.grad.float()
        torch.testing.assert_close(found, reference, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_gradient_flows_through_tsconv_into_transformer_and_subjects(training: bool) -> None:
    net = small(hidden=0.0).train(training)
    without_dropout(net)
    theirs = Atms(net).double()
    x, subject = torch.randn(6, N_CHANS, N_TIMES), torch.tensor([0, 2, 1, 0, -1, 3])
    y = net(x, subject)
    expected = theirs(x.double(), torch.tensor([0, 2, 1, 0, 3, 3]))
    torch.testing.assert_close(y, expected.float(), atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_same_gradients(net.encoder, theirs.encoder)
    for name in ("transformer.embedding.weight", "transformer.outer.bias", "subjects.weight"):
        found, reference = net.get_parameter(name).grad, theirs.get_parameter(name).grad.float()
        torch.testing.assert_close(found, reference, atol=1e-4, rtol=1e-4, msg=name)
    assert len(layers(net.encoder, theirs.encoder)) == 5


def test_unknown_subjects_have_the_shared_token_sample_by_sample() -> None:
    net = small().eval()
    x = torch.randn(4, N_CHANS, N_TIMES)
    together = net(x, torch.tensor([1, -1, 3, 0]))
    for i, subject in enumerate((1, None, None, 0)):
        known = None if subject is None else torch.tensor([subject])
        torch.testing.assert_close(net(x[i : i + 1], known)[0], together[i], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(net(x, torch.tensor([0, 0, 0, 0])), net(x), atol=1e-3)


def test_one_unknown_subject_makes_the_batch_unknown_as_published() -> None:
    net = small(shares_batch=True).eval()
    x = torch.randn(3, N_CHANS, N_TIMES)
    assert torch.equal(net(x, torch.tensor([1, 3, 0])), net(x))
    assert not torch.allclose(net(x, torch.tensor([1, 2, 0])), net(x), atol=1e-3)


def test_last_channel_is_seen_by_tsconv_unless_dropped_as_published() -> None:
    x = torch.randn(2, N_CHANS, N_TIMES)
    for net, first in ((small(), 1), (small(drops_last_channel=True), 0)):
        seen = []
        net.encoder.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        y = net.eval()(x)
        tokens = net.transformer(x, net.subjects(torch.tensor([3, 3])))
        torch.testing.assert_close(seen[0], tokens[:, first : first + N_CHANS])
        torch.testing.assert_close(net.folded()(x), y, atol=1e-5, rtol=1e-5)


def test_reduced_precision_of_the_transformer_reaches_tsconv_and_comes_back() -> None:
    net = small(hidden=0.0)
    x, subject = torch.randn(6, N_CHANS, N_TIMES), torch.tensor([0, 1, 2, 0, 1, 2])
    without_dropout(net)
    expected = net(x, subject)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x, subject)
    torch.testing.assert_close(y.float(), expected, atol=0.1, rtol=0.1)
    y.float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(("hidden", "share"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_share_of_known_subjects_that_is_hidden_in_training(hidden: float, share: float) -> None:
    net = small(hidden=hidden)
    rows = net._rows(torch.zeros(4000, dtype=torch.int64))
    assert abs(float((rows == 3).double().mean()) - share) < 0.03
    assert (net.eval()._rows(torch.tensor([2, 0])) == torch.tensor([2, 0])).all()
    net.train()(torch.randn(8, N_CHANS, N_TIMES), torch.zeros(8, dtype=torch.int64)).sum().backward()
    assert (net.subjects.weight.grad[1:3] == 0).all()


@pytest.mark.parametrize("subject", [-1, 0, 2, 3])
def test_folded_is_the_network_of_one_subject(subject: int) -> None:
    net = small()
    plain = net.folded(subject)
    assert net.training
    x = torch.randn(4, N_CHANS, N_TIMES)
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(x), net(x, torch.full((4,), subject)), atol=1e-5, rtol=1e-5)


def test_counts_of_parameters() -> None:
    embedding, subjects, shared = 250 * 250 + 250, 10 * 250, 250
    attention = 3 * (250 * 248 + 248) + 248 * 250 + 250
    feed_forward = 250 * 256 + 256 + 256 * 250 + 250
    norms = 3 * 2 * 250
    tsconv = (40 * 25 + 40) + (40 * 40 * 63 + 40) + 2 * 2 * 40 + (40 * 40 + 40)
    head = (1440 * 1024 + 1024) + (1024 * 1024 + 1024) + 2 * 1024
    total = embedding + subjects + shared + attention + feed_forward + norms + tsconv + head
    with torch.device("meta"):
        net = ATMS(63, 250)
    assert sum(p.numel() for p in net.parameters()) == total == 3_075_412
