"""Random search problems that reach the corners of the exactness contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from iiae_fast.retrieval import METRICS

if TYPE_CHECKING:
    from hypothesis import strategies as st

DTYPES = ("float32", "float16", "bfloat16", "float64", "uint8", "int8")


@dataclass(frozen=True)
class Case:
    """Queries and rows as given (arrays, or tensors for bfloat16), and as exact float arrays for the oracle."""

    queries: object
    rows: object
    exact_queries: np.ndarray
    exact_rows: np.ndarray
    metric: str
    k: int
    permitted: np.ndarray | None
    threads: int


def _round_to(values: np.ndarray, dtype: str) -> tuple[object, np.ndarray]:
    """Values in a dtype, and the same values for the oracle, which has no bfloat16."""
    if dtype == "bfloat16":
        tensor = torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16)
        return tensor, tensor.float().numpy()
    if dtype in {"uint8", "int8"}:
        limits = np.iinfo(dtype)
        result = np.clip(np.rint(values * 40), limits.min, limits.max).astype(dtype)
    else:
        limit = np.finfo(dtype).max
        result = np.clip(values, -limit, limit).astype(dtype)
    return result, result


def make_case(seed: int, metric: str, dtypes: tuple[str, str], shape: tuple[int, int, int], threads: int) -> Case:
    """One problem, a function of its arguments."""
    rng = np.random.default_rng(seed)
    count, queries, dim = shape
    gaussian = metric.startswith("gaussian")
    if gaussian:
        dim += dim % 2
    style = rng.choice(["normal", "lattice", "clusters", "offset", "sparse", "mirrored"])
    rows = rng.normal(size=(count, dim))
    asked = rng.normal(size=(queries, dim))
    if style == "lattice":  # many exact ties
        rows, asked = np.rint(rows), np.rint(asked)
    elif style == "clusters":  # near ties, and queries that are rows
        rows = rows[rng.integers(0, min(count, 4), count)] * (1 + 1e-7 * rng.normal(size=(count, 1)))
        asked = rows[rng.integers(0, count, queries)].copy()
    elif style == "offset":  # cancellation: far from the origin, close to each other
        offset = rng.normal(size=dim) * 1e3
        rows, asked = rows * 1e-2 + offset, asked * 1e-2 + offset
    elif style == "sparse":
        rows, asked = rows * (rng.random(rows.shape) < 0.2), asked * (rng.random(asked.shape) < 0.2)
    elif style == "mirrored":  # about a centre of zero, with rows so near to it that their squares underflow
        rows[1::2] = -rows[: len(rows) - 1 : 2]
        rows[rng.integers(0, count, 1 + count // 10)] *= 10.0 ** -rng.uniform(100, 300)
    if rng.random() < 0.3:  # exact duplicates
        rows[rng.integers(0, count, count // 2)] = rows[rng.integers(0, count)]
    if rng.random() < 0.2:
        rows[rng.integers(0, count)] = 0
        asked[rng.integers(0, queries)] = 0
    # Below the largest squared norm that is accepted: 1e32 of the mean for gaussian_kl, 8e37 for the others.
    limit = (9e15 if metric == "gaussian_kl" else 1e18) / np.sqrt(dim)
    scale = 10.0 ** rng.uniform(-20, 20) if rng.random() < 0.4 else 1.0
    row_scale = scale * (10.0 ** rng.uniform(-6, 6, (count, 1)) if rng.random() < 0.2 else 1.0)
    wide = metric == "cosine"  # the only metric without a limit on norms
    with np.errstate(over="ignore"):
        rows = rows * row_scale if wide else np.clip(rows * row_scale, -limit, limit)
        asked = asked * scale if wide else np.clip(asked * scale, -limit, limit)
    if gaussian:
        for part in (rows, asked):
            part[:, dim // 2 :] = rng.normal(size=(len(part), dim // 2)) * rng.choice([0.5, 8.0])
    given_queries, exact_queries = _round_to(asked, dtypes[0])
    given_rows, exact_rows = _round_to(rows, dtypes[1])
    permitted = None
    if rng.random() < 0.3:
        permitted = rng.random((queries, count)) < rng.choice([0.1, 0.5, 0.95])
    k = int(rng.choice([1, min(count, 3), rng.integers(1, count + 1), count]))
    return Case(given_queries, given_rows, exact_queries, exact_rows, metric, k, permitted, threads)


def cases(max_rows: int = 80, max_dim: int = 70, min_rows: int = 1) -> st.SearchStrategy[Case]:
    """Problems over shapes, dtypes, metrics, masks, scales and threads."""
    from hypothesis import strategies as st

    return st.builds(
        make_case,
        seed=st.integers(0, 2**32 - 1),
        metric=st.sampled_from(METRICS),
        dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
        shape=st.tuples(st.integers(min_rows, max_rows), st.integers(1, 12), st.integers(1, max_dim)),
        threads=st.sampled_from([1, 2, 5]),
    )


def random_case(seed: int, max_rows: int = 80, max_dim: int = 70, min_rows: int = 1) -> Case:
    """One of them, where hypothesis may be missing."""
    rng = np.random.default_rng(seed)
    metric = METRICS[seed % len(METRICS)]
    first, second = rng.choice(DTYPES, 2)
    shape = int(rng.integers(min_rows, max_rows + 1)), int(rng.integers(1, 13)), int(rng.integers(1, max_dim + 1))
    return make_case(seed, metric, (first, second), shape, 1)
