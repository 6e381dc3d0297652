"""Two processes over gloo find what one index finds."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from emulation.build import build
from sharded_worker import make, worker

from iiae_fast.retrieval import METRICS, FlatIndex


@pytest.mark.parametrize(
    ("split", "devices"),
    [([0, 20, 41], ("cpu", "cpu")), ([0, 41, 41], ("cpu", "cpu")), ([0, 20, 41], ("cpu", "cuda"))],
    ids=["both", "one-empty", "one-on-a-device"],
)
def test_two_processes(tmp_path: Path, split: list[int], devices: tuple[str, str]) -> None:
    if "cuda" in devices and build() is None:
        pytest.skip("no C++ compiler to build the emulated CUDA engine with")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    store = str(tmp_path / "store")
    processes = [
        context.Process(target=worker, args=(rank, 2, split, store, device, results)) for rank, device in enumerate(devices)
    ]
    for process in processes:
        process.start()
    gathered = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    rows, queries = make()
    mask = np.random.default_rng(1).random((6, 41)) < 0.4
    for _, found, errors in gathered:
        assert len(errors) == 3
        assert "rank 1: database row 0 holds NaN" in errors[0]
        assert "rank 1: metric='l3'" in errors[1]
        assert "k=42" in errors[2]
        for metric in METRICS:
            index = FlatIndex(rows, metric)
            expected = [
                index.search(queries, 41),
                index.search(queries, 30, allowed=mask),
                index.search(queries, 5, exclude=np.arange(6) * 7),
                index.search(queries, 3),
            ]
            for one, other in zip(found[metric], expected):
                np.testing.assert_array_equal(one[0], other[0])
                np.testing.assert_array_equal(one[1], other[1])
