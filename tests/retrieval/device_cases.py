"""What tests of the CUDA engine share."""

from __future__ import annotations

import os

import numpy as np
import oracle
import pytest
import torch
from cases import Case

from iiae_fast.retrieval import FlatIndex, Hits
from iiae_fast.retrieval.device_paths import select_method

METHODS = ("brute_force", "int8", "auto")
needs_gpu = pytest.mark.skipif(os.environ.get("IIAE_TEST_GPU") != "1", reason="needs a CUDA device, and IIAE_TEST_GPU=1")
CASES = int(os.environ.get("IIAE_DEVICE_CASES", "200" if os.environ.get("IIAE_TEST_GPU") == "1" else "60"))


def put(values: object, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(values).to(device)


def numbers(size: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def assert_same(hits: Hits, expected: tuple, where: str = "") -> None:
    np.testing.assert_array_equal(torch.as_tensor(hits.indices).cpu(), torch.as_tensor(expected[1]), where)
    np.testing.assert_array_equal(torch.as_tensor(hits.distances).cpu(), torch.as_tensor(expected[0]), where)


def check(case: Case, device: torch.device, methods: tuple[str, ...] = METHODS) -> None:
    """Assert that every method returns what the oracle does."""
    index = FlatIndex(put(case.rows, device), case.metric, device="cuda")
    expected = oracle.search(case.exact_queries, case.exact_rows, case.k, case.metric, case.permitted)
    queries = put(case.queries, device)
    allowed = None if case.permitted is None else put(case.permitted, device)
    for method in methods:
        select_method(method)
        hits = index.search(queries, case.k, allowed=allowed)
        assert hits.indices.device == hits.distances.device == device
        assert_same(hits, expected, method)
