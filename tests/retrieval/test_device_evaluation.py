"""Measures by the CUDA engine: emulated on the CPU, or on a device with IIAE_TEST_GPU=1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from cases import make_case
from device_cases import CASES, numbers, put

from iiae_fast import _C
from iiae_fast.errors import DeviceMemoryError, InputError
from iiae_fast.retrieval import METRICS, evaluate, paired_recall
from iiae_fast.retrieval import device as module
from iiae_fast.retrieval.device_database import DeviceDatabase
from iiae_fast.retrieval.device_paths import select_method
from iiae_fast.retrieval.runtime import runtime_of


@pytest.mark.parametrize("metric", METRICS)
def test_evaluate_equals_oracle(device: torch.device, metric: str) -> None:
    for seed in range(1 + CASES // 30):
        rng = np.random.default_rng(seed)
        rows, queries = rng.integers(1, 61), rng.integers(1, 21)
        x, q = np.rint(rng.normal(size=(rows, 4)) * 2), np.rint(rng.normal(size=(queries, 4)) * 2)  # with ties
        row_labels, query_labels = rng.integers(0, 5, rows), rng.integers(0, 6, queries)
        expected = oracle.measures(q, x, query_labels, row_labels, metric, (1, 5, 100))
        for method in ("int8", "auto"):
            select_method(method)
            result = evaluate(put(q, device), put(x, device), put(query_labels, device), row_labels, metric=metric)
            assert list(result) == list(expected)
            np.testing.assert_allclose(list(result.values()), list(expected.values()), rtol=1e-12, err_msg=method)


def test_evaluate_in_batches_and_streams(device: torch.device, tmp_path: Path) -> None:
    """Many relevant rows (more than are sorted in shared memory), rows that are left out, few queries at a time."""
    rows, queries = numbers((4200, 3)), numbers((5, 3), seed=1)
    row_labels, query_labels = np.arange(4200) % 2, np.array([0, 1, 2, 0, 1])
    excluded = np.array([5, -1, 7, 4000, 11])
    np.save(tmp_path / "rows.npy", rows.numpy())
    expected = evaluate(queries.numpy(), rows.numpy(), query_labels, row_labels, exclude=excluded)
    for database in (put(rows, device), tmp_path / "rows.npy"):
        result = evaluate(
            put(queries, device),
            database,
            query_labels,
            row_labels,
            exclude=put(excluded, device),
            memory_limit=30_000,
            workspace_limit=200_000,
        )
        assert result == pytest.approx(expected, rel=1e-12)
    with pytest.raises(DeviceMemoryError, match=r"workspace_limit=99: evaluating over 4,200 rows takes at least"):
        evaluate(put(queries, device), put(rows, device), query_labels, row_labels, workspace_limit=99)
    with pytest.raises(InputError, match="queries has no rows"):
        evaluate(put(queries[:0], device), put(rows, device), query_labels[:0], row_labels)


@pytest.mark.parametrize("metric", METRICS)
def test_evaluate_by_a_scan(device: torch.device, metric: str) -> None:
    """Random problems with near ties, huge and tiny norms: the same measures as the CPU's float64 distances of all pairs."""
    select_method("int8")
    try:
        for seed in range(1 + CASES // 20):
            case = make_case(seed, metric, ("float32", "float32"), (300, 12, 9 + 40 * (seed % 2)), 1)
            rng = np.random.default_rng(seed)
            labels = rng.integers(0, 7, 12), rng.integers(0, 7, 300)
            excluded = rng.integers(-1, 300, 12)
            _C.select_method("brute_force")
            expected = evaluate(case.queries, case.rows, *labels, metric=metric, exclude=excluded)
            found = evaluate(put(case.queries, device), put(case.rows, device), *labels, metric=metric, exclude=excluded)
            assert found == pytest.approx(expected, rel=1e-12)
    finally:
        _C.select_method("auto")


def test_an_evaluation_measures_few_rows(device: torch.device) -> None:
    """That a scan's bounds place most rows: one that measured every row would pass all other tests."""
    rows, queries = numbers((2000, 24)), numbers((12, 24), seed=1)
    labels = np.arange(12) % 4, np.arange(2000) % 200
    database = DeviceDatabase(
        put(rows, device), "sqeuclidean", 1, runtime_of(device), copy=False, memory_limit=1 << 20, workspace_limit=1 << 24
    )
    database.statistics = put(torch.zeros(2, dtype=torch.int64), device)
    module.evaluate(database, put(queries, device), *labels, None, [1], 1)
    assert 0 < database.statistics[0] < 12 * 2000 // 4


@pytest.mark.parametrize("metric", METRICS)
def test_paired_recall(device: torch.device, metric: str) -> None:
    x = numbers((80, 6))
    y = x + 0.4 * numbers((80, 6), seed=1)
    expected = paired_recall(x.numpy(), y.numpy(), k=2, metric=metric)
    assert paired_recall(put(x, device), put(y, device), k=2, metric=metric) == expected
    with pytest.raises(InputError, match="x_codes has 80 rows and y_codes 79"):
        paired_recall(put(x, device), put(y[1:], device))
    with pytest.raises(InputError, match="k=81: accepted is 1 to 80"):
        paired_recall(put(x, device), put(y, device), k=81)
