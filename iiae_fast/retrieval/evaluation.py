"""Retrieval measures, exact and streaming: no Q×N matrix, no sort of the whole database."""

from __future__ import annotations

__all__ = ["evaluate", "paired_recall"]

import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from iiae_fast import _C
from iiae_fast.errors import InputError
from iiae_fast.retrieval.database import DEFAULT_MEMORY_LIMIT, Database
from iiae_fast.retrieval.index import DEFAULT_WORKSPACE_LIMIT, engine_queries
from iiae_fast.retrieval.inputs import (
    ArrayLike,
    Rows,
    as_count,
    as_labels,
    as_row_ids,
    as_rows,
    as_threads,
    check_metric,
    has_device_tensors,
)

_PAIRS_PER_BATCH = 1 << 22  # (query, relevant row) pairs held at once, 16 bytes each


def evaluate(
    queries: ArrayLike,
    database: ArrayLike | str | os.PathLike[str],
    query_labels: ArrayLike | Sequence[int] | Sequence[str],
    database_labels: ArrayLike | Sequence[int] | Sequence[str],
    metric: str = "sqeuclidean",
    ks: Sequence[int] = (1, 5, 100),
    *,
    exclude: ArrayLike | str | None = None,
    threads: int | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    workspace_limit: int = DEFAULT_WORKSPACE_LIMIT,
) -> dict[str, float]:
    """Recall, precision and mean average precision of ranking the database for every query.

    A row is relevant to a query if their labels are equal; for pairs, give both sides the same ``arange``. The ranking is that
    of ``FlatIndex.search`` with k = N: by canonical distance, ties to the lowest index. With R relevant rows, and rel(i) = 1 if
    the row at rank i is relevant, the means over all queries of:

    - ``recall@k``: 1 if any rel(1..k), else 0. (Recall@K of metric learning; ranx and torchmetrics call it hit rate.)
    - ``precision@k``: Σ_{i≤k} rel(i) / k, as ranx, torchmetrics and trec_eval; ranks past the end of the database count as not
      relevant.
    - ``map@k``: Σ_{i≤k} rel(i)·precision@i / min(k, R), as the Kaggle and ml_metrics definition. ranx and trec_eval divide by
      R (equal while R ≤ k), torchmetrics by the number of relevant rows among the k.
    - ``map@all``: Σ_i rel(i)·precision@i / R, as ranx and torchmetrics and, for distances without ties,
      scikit-learn's ``average_precision_score``.

    A query without any relevant row counts as 0 in each, as in ranx and with torchmetrics' default.

    CUDA tensors are ranked on their device; measures may then differ from the CPU's in the last bits of float64, as sums are
    taken in another order.

    Args:
        queries: ``(Q, D)``.
        database: ``(N, D)`` or a ``.npy`` path.
        query_labels: ``(Q,)`` integers or strings.
        database_labels: ``(N,)``, of the same kind.
        metric: As in ``FlatIndex``.
        ks: Cut-offs of at least 1.
        exclude: ``(Q,)`` integers, one row for every query that its ranking leaves out (-1 for none), or ``"self"``.
        threads: As in ``FlatIndex``.
        memory_limit: As in ``FlatIndex``.
        workspace_limit: As in ``FlatIndex``; one query takes an eighth of a byte for every row, and 36 bytes for every one
            relevant to it.

    Returns:
        ``"recall@k"``, ``"precision@k"``, ``"map@k"`` for every k, and ``"map@all"``, as fractions.

    Raises:
        ValueError: Wrong shapes, dtypes or values, or no queries.
    """
    check_metric(metric)
    workers = as_threads(threads)
    cutoffs = sorted({as_count(k, "k in ks") for k in ks})
    limits = as_count(memory_limit, "memory_limit"), as_count(workspace_limit, "workspace_limit")
    if has_device_tensors(queries, database):
        return _evaluate_on_device(queries, database, query_labels, database_labels, metric, cutoffs, exclude, workers, *limits)
    query_rows = as_rows(queries, "queries", metric)
    rows = as_rows(database, "database", metric)
    base = Database(rows, metric, workers, copy=False, memory_limit=limits[0])
    codes = _shared_codes(
        as_labels(query_labels, "query_labels", len(query_rows)), as_labels(database_labels, "database_labels", len(base))
    )
    excluded = None if exclude is None else as_row_ids(exclude, "exclude", len(query_rows), len(base))
    totals: dict[str, list[float]] = {}
    for ranks, offsets in _ranks(query_rows, base, *codes, excluded, workers):
        for name, value in _sums(ranks, offsets, cutoffs).items():
            totals.setdefault(name, []).append(value)
    return {name: float(np.sum(values) / len(query_rows)) for name, values in totals.items()}


def _evaluate_on_device(
    queries: ArrayLike,
    database: ArrayLike | str | os.PathLike[str],
    query_labels: ArrayLike | Sequence[int] | Sequence[str],
    database_labels: ArrayLike | Sequence[int] | Sequence[str],
    metric: str,
    cutoffs: list[int],
    exclude: ArrayLike | str | None,
    threads: int,
    memory_limit: int,
    workspace_limit: int,
) -> dict[str, float]:
    from iiae_fast.retrieval import device
    from iiae_fast.retrieval.device_database import DeviceDatabase

    base = DeviceDatabase(
        database,
        metric,
        threads,
        device.find_device(queries, database),
        copy=False,
        memory_limit=memory_limit,
        workspace_limit=workspace_limit,
        stream=True,
    )
    count = len(base.as_queries(queries, "queries"))
    codes = _shared_codes(
        as_labels(query_labels, "query_labels", count), as_labels(database_labels, "database_labels", len(base))
    )
    excluded = None if exclude is None else as_row_ids(exclude, "exclude", count, len(base))
    names = [f"{measure}@{k}" for k in cutoffs for measure in ("recall", "precision", "map")] + ["map@all"]
    return dict(zip(names, device.evaluate(base, queries, *codes, excluded, cutoffs, threads)))


def paired_recall(
    x_codes: ArrayLike, y_codes: ArrayLike, k: int = 1, metric: str = "sqeuclidean", *, threads: int | None = None
) -> dict[str, float]:
    """Recall@k in both directions where row i of one side belongs to row i of the other.

    Args:
        x_codes: ``(N, D)``.
        y_codes: ``(N, D)``.
        k: From 1 to N.
        metric: As in ``FlatIndex``. ``gaussian_kl`` has the query first in either direction.
        threads: As in ``FlatIndex``.

    Returns:
        ``{"x_to_y": r, "y_to_x": r}``: the share of queries whose own partner is among their k nearest.

    Raises:
        ValueError: The sides differ in length or width, or anything that ``FlatIndex.search`` refuses.
    """
    check_metric(metric)
    count = as_count(k, "k")
    workers = as_threads(threads)
    if has_device_tensors(x_codes, y_codes):
        return _paired_recall_on_device(x_codes, y_codes, count, metric, workers)
    x, y = as_rows(x_codes, "x_codes", metric), as_rows(y_codes, "y_codes", metric)
    _check_pairs(len(x), len(y), count)
    pairs = np.arange(len(x), dtype=np.int64)

    def recall(queries: Rows, rows: Rows) -> float:
        base = Database(rows, metric, workers, copy=False)
        hits = sum(int((ranks <= count).sum()) for ranks, _ in _ranks(queries, base, pairs, pairs, None, workers))
        return hits / len(queries)

    return {"x_to_y": recall(x, y), "y_to_x": recall(y, x)}


def _check_pairs(x: int, y: int, k: int) -> None:
    if x != y:
        raise InputError(f"x_codes has {x} rows and y_codes {y}; row i of one must belong to row i of the other")
    if k > x:
        raise InputError(f"k={k}: accepted is 1 to {x}, the number of pairs")


def _paired_recall_on_device(x: ArrayLike, y: ArrayLike, k: int, metric: str, threads: int) -> dict[str, float]:
    from iiae_fast.retrieval import device
    from iiae_fast.retrieval.device_database import DeviceDatabase

    runtime = device.find_device(x, y)
    _check_pairs(len(x), len(y), k)
    pairs = np.arange(len(x), dtype=np.int64)

    def recall(queries: ArrayLike, rows: ArrayLike) -> float:
        base = DeviceDatabase(
            rows,
            metric,
            threads,
            runtime,
            copy=False,
            memory_limit=DEFAULT_MEMORY_LIMIT,
            workspace_limit=DEFAULT_WORKSPACE_LIMIT,
        )
        return device.evaluate(base, queries, pairs, pairs, None, [k], threads)[0]

    return {"x_to_y": recall(x, y), "y_to_x": recall(y, x)}


def _shared_codes(
    query_labels: NDArray[np.generic], row_labels: NDArray[np.generic]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both sides' labels as integers that are equal where the labels are."""
    if (query_labels.dtype.kind in "US") != (row_labels.dtype.kind in "US"):
        raise InputError(f"query_labels are {query_labels.dtype}, database_labels {row_labels.dtype}; accepted is one kind")
    _, codes = np.unique(np.concatenate([query_labels, row_labels]), return_inverse=True)
    codes = codes.astype(np.int64)
    return codes[: len(query_labels)], codes[len(query_labels) :]


def _ranks(
    queries: Rows,
    database: Database,
    query_codes: NDArray[np.int64],
    row_codes: NDArray[np.int64],
    excluded: NDArray[np.int64] | None,
    threads: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Ranks of the relevant rows, by batches of queries: flat ranks, and the offsets of each query's own in them."""
    if len(queries) == 0:
        raise InputError("queries has no rows; accepted is at least one")
    array, dtype = engine_queries(queries, database, threads)
    relevant = np.bincount(row_codes, minlength=int(query_codes.max()) + 1)[query_codes]
    batch_of = (np.cumsum(relevant) - relevant) // _PAIRS_PER_BATCH
    bounds = [0, *(np.flatnonzero(np.diff(batch_of)) + 1).tolist(), len(queries)]
    for first, last in itertools.pairwise(bounds):
        part = slice(first, last)
        ranking = _C.Ranking(
            array[part], dtype, database.metric, query_codes[part], None if excluded is None else excluded[part], threads
        )
        for visit in (ranking.collect, ranking.count):
            for block in database.blocks(threads):
                visit(block.array, block.dtype, block.start, row_codes[block.start : block.start + len(block.array)])
        offsets, ranks = ranking.ranks()
        yield ranks, offsets


def _sums(ranks: NDArray[np.int64], offsets: NDArray[np.int64], cutoffs: list[int]) -> dict[str, float]:
    """Every measure, summed over the queries of a batch."""
    counts = np.diff(offsets)
    owner = np.repeat(np.arange(len(counts)), counts)
    position = np.arange(len(ranks)) - offsets[owner] + 1  # 1 for the best relevant row of a query
    precision = position / ranks
    first = np.full(len(counts), np.iinfo(np.int64).max)
    first[counts > 0] = ranks[offsets[:-1][counts > 0]]
    divisor = np.maximum(counts, 1)
    sums = {}
    for k in cutoffs:
        within = ranks <= k
        sums[f"recall@{k}"] = float((first <= k).sum())
        sums[f"precision@{k}"] = float(within.sum() / k)
        average = np.bincount(owner, precision * within, minlength=len(counts)) / np.minimum(divisor, k)
        sums[f"map@{k}"] = float(average.sum())
    sums["map@all"] = float((np.bincount(owner, precision, minlength=len(counts)) / divisor).sum())
    return sums
