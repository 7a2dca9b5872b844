"""NICE: sizes and initial weights."""

from __future__ import annotations

from models.nice import Nice


def test_counts_of_parameters() -> None:
    temporal, spatial, norms, project = 40 * 25 + 40, 40 * 40 * 63 + 40, 2 * (40 + 40), 40 * 40 + 40
    head = 1440 * 768 + 768 + 768 * 768 + 768 + 2 * 768
    assert sum(p.numel() for p in Nice(63, 250).parameters()) == temporal + spatial + norms + project + head


def test_initial_weights_are_narrow() -> None:
    net = Nice(63, 250)
    for weight in (net.encoder.spatial.weight, net.head.first.weight):
        assert abs(float(weight.detach().std()) - 0.02) < 0.0005
