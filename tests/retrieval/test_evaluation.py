"""Measures against the oracle and scikit-learn."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from iiae_fast import _C
from iiae_fast.retrieval import METRICS, evaluate, paired_recall, search
from iiae_fast.retrieval import evaluation as module


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(METRICS), st.integers(1, 60), st.integers(1, 20), st.sampled_from([1, 2, 5]))
def test_equals_oracle(seed: int, metric: str, rows: int, queries: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    x, q = np.rint(rng.normal(size=(rows, 4)) * 2), np.rint(rng.normal(size=(queries, 4)) * 2)  # with ties
    row_labels, query_labels = rng.integers(0, 5, rows), rng.integers(0, 6, queries)
    ks = (1, 5, 100)
    expected = oracle.measures(q, x, query_labels, row_labels, metric, ks)
    try:
        for method in ("brute_force", "float32", "auto"):
            _C.select_method(method)
            result = evaluate(q, x, query_labels, row_labels, metric=metric, ks=ks, threads=threads)
            assert list(result) == list(expected)
            np.testing.assert_allclose(list(result.values()), list(expected.values()), rtol=1e-12)
    finally:
        _C.select_method("auto")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("spread", [1e-12, 1.0, 1e6])
def test_many_rows(metric: str, spread: float) -> None:
    """Counting by scan, with rows far apart and rows that fp32 cannot tell apart."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=8) + spread * rng.normal(size=(3000, 8)) * (rng.random((3000, 1)) < 0.9)
    q = x[rng.integers(0, 3000, 12)] + spread * rng.normal(size=(12, 8))
    row_labels, query_labels = rng.integers(0, 3, 3000), rng.integers(0, 3, 12)
    result = evaluate(q, x, query_labels, row_labels, metric=metric, ks=(10,))
    expected = oracle.measures(q, x, query_labels, row_labels, metric, (10,))
    np.testing.assert_allclose(list(result.values()), list(expected.values()), rtol=1e-12)


def test_map_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(300, 8)), rng.normal(size=(20, 8))
    row_labels, query_labels = rng.integers(0, 4, 300), rng.integers(0, 4, 20)
    distances = oracle.distances(q, x, "cosine")
    expected = np.mean([average_precision_score(row_labels == label, -d) for label, d in zip(query_labels, distances)])
    assert evaluate(q, x, query_labels, row_labels, metric="cosine")["map@all"] == pytest.approx(expected, rel=1e-12)


def test_by_hand() -> None:
    """Ranking a b a b b with two relevant: AP = (1/1 + 2/3) / 2."""
    rows = np.arange(5, dtype=np.float32)[:, None]
    labels = ["a", "b", "a", "b", "b"]
    result = evaluate(np.zeros((1, 1), np.float32), rows, ["a"], labels, ks=(1, 2, 4))
    assert result == pytest.approx(
        {
            "recall@1": 1, "precision@1": 1, "map@1": 1,
            "recall@2": 1, "precision@2": 0.5, "map@2": 0.5,
            "recall@4": 1, "precision@4": 0.5, "map@4": (1 + 2 / 3) / 2,
            "map@all": (1 + 2 / 3) / 2,
        }
    )  # fmt: skip


def test_batches_and_streams_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    rng = np.random.default_rng(1)
    x, q = rng.normal(size=(500, 6)).astype(np.float32), rng.normal(size=(40, 6)).astype(np.float32)
    row_labels, query_labels = rng.integers(0, 7, 500), rng.integers(0, 8, 40)
    whole = evaluate(q, x, query_labels, row_labels)
    np.save(f"{tmp_path}/x.npy", x)
    monkeypatch.setattr(module, "_PAIRS_PER_BATCH", 200)
    streamed = evaluate(q, f"{tmp_path}/x.npy", query_labels, row_labels, memory_limit=1000)
    assert streamed == pytest.approx(whole, rel=1e-12)


def test_exclude_self() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(50, 3))
    labels = rng.integers(0, 5, 50)
    result = evaluate(x, x, labels, labels, ks=(1,), exclude="self")
    nearest = search(x, x, 1, exclude="self").indices[:, 0]
    assert result["recall@1"] == np.mean(labels[nearest] == labels)
    assert evaluate(x, x, labels, labels, ks=(1,))["recall@1"] == 1


@pytest.mark.parametrize("spread", [1e-9, 1.0])
def test_excluded_rows_are_not_counted_by_a_scan(spread: float) -> None:
    """A scan counts most rows unseen: it must find the excluded ones, of any label and at any rank, ties included."""
    rng = np.random.default_rng(5)
    x = (1 + spread * np.rint(2 * rng.normal(size=(400, 4)))).astype(np.float64)
    q = (1 + spread * np.rint(2 * rng.normal(size=(30, 4)))).astype(np.float64)
    row_labels, query_labels = rng.integers(0, 4, 400), rng.integers(0, 4, 30)
    excluded = rng.integers(-1, 400, 30)
    excluded[:3] = search(q[:3], x, 2).indices[:, 1]
    found = []
    try:
        for method in ("brute_force", "float32"):
            _C.select_method(method)
            found.append(evaluate(q, x, query_labels, row_labels, ks=(1, 5, 100), exclude=excluded))
    finally:
        _C.select_method("auto")
    assert found[1] == pytest.approx(found[0], rel=1e-12)
    assert found[0] != evaluate(q, x, query_labels, row_labels, ks=(1, 5, 100))


def test_torch_inputs() -> None:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 3
    assert evaluate(x, x, labels, labels) == evaluate(x.numpy(), x.numpy(), labels.numpy(), labels.numpy())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 3])
def test_paired_recall(metric: str, k: int) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(80, 6)).astype(np.float32)
    y = (x + 0.4 * rng.normal(size=x.shape)).astype(np.float32)
    expected = {}
    for name, a, b in (("x_to_y", x, y), ("y_to_x", y, x)):
        found = search(a, b, k, metric=metric).indices
        expected[name] = np.mean([i in row for i, row in enumerate(found)])
    assert paired_recall(x, y, k=k, metric=metric) == expected


def test_paired_recall_of_ties_goes_by_index() -> None:
    """Equal codes carry no information: only the first pair is found, not all of them."""
    same = np.ones((10, 4), np.float32)
    assert paired_recall(same, same) == {"x_to_y": 0.1, "y_to_x": 0.1}


def test_refusals() -> None:
    x = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match="x_codes has 4 rows and y_codes 3"):
        paired_recall(x, x[:3])
    with pytest.raises(ValueError, match="k=5: accepted is 1 to 4"):
        paired_recall(x, x, k=5)
    with pytest.raises(ValueError, match=r"query_labels has shape \(3,\)"):
        evaluate(x, x, [1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(ValueError, match="dtype float64"):
        evaluate(x, x, [1, 2, 3, 4], np.ones(4))
    with pytest.raises(ValueError, match="accepted is one kind"):
        evaluate(x, x, [1, 2, 3, 4], ["a"] * 4)
    with pytest.raises(ValueError, match="queries has no rows"):
        evaluate(x[:0], x, np.zeros(0, int), [1, 2, 3, 4])
    with pytest.raises(ValueError, match="k in ks=0"):
        evaluate(x, x, [1, 2, 3, 4], [1, 2, 3, 4], ks=(0,))
