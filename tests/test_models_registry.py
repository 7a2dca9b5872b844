"""What every network must do: embed, fold, export, sample by sample."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from textbook import random_norms
from torch import nn

from models.registry import NETWORKS

N_CHANS, N_TIMES, DIM = 6, 160, 11


def evaluating(name: str) -> nn.Module:
    torch.manual_seed(3)
    net = NETWORKS[name](N_CHANS, N_TIMES, DIM)
    random_norms(net)
    return net.eval()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_trains(name: str) -> None:
    torch.manual_seed(3)
    net = NETWORKS[name](N_CHANS, N_TIMES, DIM)
    x = torch.randn(4, N_CHANS, N_TIMES)
    before = x.clone()
    y = net(x)
    assert y.shape == (4, DIM)
    y.square().sum().backward()
    assert torch.equal(x, before)
    untrained = {key for key, parameter in net.named_parameters() if parameter.grad is None}
    assert untrained <= {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_says_what_is_published(name: str) -> None:
    doc = NETWORKS[name].__doc__ or ""
    assert "published" in doc.lower()
    assert "\n\n    Parameters" in doc


@pytest.mark.parametrize("name", sorted(NETWORKS))
@torch.no_grad()
def test_samples_do_not_see_each_other_in_evaluation(name: str) -> None:
    net = evaluating(name)
    x = torch.randn(5, N_CHANS, N_TIMES)
    together = net(x)
    for i in range(5):
        torch.testing.assert_close(net(x[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(x.flip(0)), together.flip(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@torch.no_grad()
def test_folded_and_exported_are_the_network(name: str) -> None:
    net = evaluating(name)
    folded = net.folded()
    assert not folded.training
    program = torch.onnx.export(
        folded,
        (torch.zeros(2, N_CHANS, N_TIMES),),
        input_names=["epochs"],
        output_names=["embeddings"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for n_batch in (1, 2, 7):
        x = torch.randn(n_batch, N_CHANS, N_TIMES)
        expected = net(x)
        torch.testing.assert_close(folded(x), expected, atol=1e-5, rtol=1e-5)
        (exported,) = session.run(None, {"epochs": x.numpy()})
        np.testing.assert_allclose(exported, expected.numpy(), atol=1e-4)
