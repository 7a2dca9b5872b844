"""Transductive scores: against their formulas spelt out, and where they should help."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from offline import evaluate, transductive
from offline.evaluate import About
from streamdec.decode.gallery import Gallery, unit

ABOUT = About(
    method="known",
    dataset="made",
    subject="nobody",
    protocol="intra",
    simulated=True,
    offline_only="",
    seed=0,
    data=("a",),
    test_data="b",
)


def test_csls_is_its_formula(rng) -> None:
    scores = rng.standard_normal((7, 5)).astype(np.float32)
    got = transductive.csls(scores, 3)
    for i in range(7):
        for j in range(5):
            near_query = np.mean(sorted(scores[i].tolist())[-3:])
            near_candidate = np.mean(sorted(scores[:, j].tolist())[-3:])
            assert got[i, j] == pytest.approx(2 * scores[i, j] - near_query - near_candidate, abs=1e-6)
    assert transductive.csls(scores, 99).shape == (7, 5)


def test_sinkhorn_takes_all_candidates_alike(rng) -> None:
    plan = np.exp(transductive.sinkhorn(rng.uniform(-0.2, 0.2, (8, 4)).astype(np.float32)))
    assert plan.sum(axis=0) == pytest.approx(np.full(4, 2.0))
    assert plan.sum(axis=1) == pytest.approx(np.ones(8), abs=1e-3)


@pytest.mark.parametrize("dim", [3, 30])
def test_whitening_is_its_formula(rng, dim: int) -> None:
    queries = rng.standard_normal((12, dim)).astype(np.float32)
    rows = unit(queries).astype(np.float64)
    covariance = np.cov(rows.T, bias=True)
    sigma = 0.4 * covariance + 0.6 * np.trace(covariance) / dim * np.eye(dim)
    values, vectors = np.linalg.eigh(sigma)
    wanted = unit((rows - rows.mean(axis=0)) @ (vectors / np.sqrt(values)) @ vectors.T)
    assert transductive.whitened(queries) == pytest.approx(wanted, abs=1e-5)


def test_a_hub_misleads_what_looks_at_queries_alone(rng) -> None:
    """One candidate is near to every query; with the others at hand that shows."""
    gallery = Gallery(unit(rng.standard_normal((20, 16))), [str(i) for i in range(20)], [""] * 20)
    queries = unit(gallery.features + 1.5 * gallery.features[7])
    found = transductive.transductive(ABOUT, queries, gallery, np.arange(20), 4)
    assert found.alone.top1 < 0.2
    assert min(found.csls.top1, found.sinkhorn.top1, found.whitened.top1) > 0.9
    assert found.alone == evaluate.retrieval(queries, gallery, np.arange(20), 4)
    again = msgspec.json.decode(msgspec.json.encode(found), type=transductive.Transductive)
    assert (again.subject, again.csls) == ("nobody", found.csls)


@pytest.mark.data
def test_a_real_decoder_gains_by_what_it_must_not_have(data) -> None:
    """ATM-S, subject 08: alone 72 of 200; the figures with help are what other papers' tables hold."""
    folder = data / "things_eeg2"
    queries = np.load(folder / "atm_s_sub-08_test_query_embeddings.npy")
    ids = (folder / "things_eeg2_test_image_ids.txt").read_text().split()
    gallery = Gallery(np.load(folder / "vit_h14_test_image_features.npy"), ids, ids)
    found = transductive.transductive(ABOUT, queries, gallery, np.arange(200), 80)
    assert found.alone.top1 * 200 == pytest.approx(72)
    assert all(kind.top1 * 200 > 85 for kind in (found.csls, found.sinkhorn, found.whitened))
