"""Search in device memory: the CUDA twin of the CPU engine, with the same results bit for bit.

Tensors on the device are read where they lie, on the caller's current stream. Only Gaussian rows are not: their exp() must be
the CPU's, so they are lifted there. A search of an index allocates its results and nothing else on the device, once it was
searched with as many queries and as large a k on the same stream: packed rows and a workspace are kept. To capture one in a
CUDA graph, search once before, then:

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hits = index.search(queries, k)   # queries: a CUDA tensor, overwritten before every graph.replay()

While it is captured, values of the queries are not checked, and the graph gets a workspace of its own; replaying it allocates
nothing. The index must live as long as the graph, and not be added to.
"""

from __future__ import annotations

__all__ = ["evaluate", "find_device", "search"]

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiae_fast.errors import InputError
from iiae_fast.retrieval import inputs
from iiae_fast.retrieval.device_database import DeviceDatabase, Piece
from iiae_fast.retrieval.device_rows import DeviceRows, as_device_mask, as_device_row_ids, checked
from iiae_fast.retrieval.inputs import ArrayLike
from iiae_fast.retrieval.runtime import Runtime, runtime_of

_LEAST_ROWS = 256  # that are searched at a time where memory is short
_MOST_QUERIES = 1 << 16  # evaluated at a time


def search(
    database: DeviceDatabase,
    queries: ArrayLike,
    k: int,
    allowed: ArrayLike | None,
    exclude: ArrayLike | str | None,
    threads: int,
) -> tuple[Any, Any]:
    """(Q, k) distances and indices: tensors, or numpy arrays if the queries are."""
    if k > len(database):
        raise InputError(f"k={k}: accepted is 1 to {len(database)}, the number of database rows")
    runtime = database.runtime
    with database.in_order():
        given, as_tensors = database.of_same_width(queries, "queries")
        asked = checked(given, database.metric, "queries", 0, threads, runtime, database.bad_row())
        count = len(asked)
        size = count, len(database), runtime
        permitted = as_device_mask(allowed, "allowed", *size)
        is_mask = exclude is not None and not isinstance(exclude, str) and "bool" in str(getattr(exclude, "dtype", ""))
        excluded = as_device_mask(exclude, "exclude", *size) if is_mask else None
        ids = None if exclude is None or is_mask else as_device_row_ids(exclude, "exclude", *size)
        distances = torch.empty((count, k), dtype=torch.float32, device=runtime.device)
        indices = torch.full((count, k), -1, dtype=torch.int64, device=runtime.device)  # no key yet; first holds keys
        if count:
            with database.resident(database.bad_row()) as pieces:
                for piece in pieces:
                    _search_piece(database, piece, asked, k, permitted, excluded, ids, indices)
        keys = indices.data_ptr()
        runtime.engine.write(database.metric, keys, count * k, distances.data_ptr(), keys, database.stream())
    return (distances, indices) if as_tensors else (distances.cpu().numpy(), indices.cpu().numpy())


def _step(rows: int, need: Callable[[int], int], room: int) -> int:
    """How many of the rows are worked on at a time: as many as there is room for, if `need` says how much some take."""
    while rows > _LEAST_ROWS and need(rows) > room:
        rows = (rows + 1) // 2
    return rows


def _search_piece(
    database: DeviceDatabase,
    piece: Piece,
    queries: DeviceRows,
    k: int,
    allowed: Tensor | None,
    excluded: Tensor | None,
    ids: Tensor | None,
    best: Tensor,
) -> None:
    engine, count = database.runtime.engine, len(queries)
    scans = database.scans(count, len(piece.rows), k)

    def mask(values: Tensor | None, part: Piece) -> tuple[int, int, int] | None:
        if values is None:
            return None
        cut = values[..., part.start : part.start + len(part.rows)]
        return cut.data_ptr(), cut.stride(0) if cut.ndim == 2 else 0, cut.stride(-1)

    def prepare(part: Piece) -> Any:
        return engine.Search(
            database.metric,
            part.rows.argument(),
            part.start,
            scans,
            queries.argument(),
            mask(allowed, part),
            mask(excluded, part),
            0 if ids is None else ids.data_ptr(),
            k,
            best.data_ptr(),
            0 if database.statistics is None else database.statistics.data_ptr(),
        )

    def packed_bytes(part: Piece) -> int:
        return engine.packed_bytes(database.metric, part.rows.argument()) if scans and packed is None else 0

    def need(rows: int) -> int:
        part = next(piece.parts(rows))
        return packed_bytes(part) + int(prepare(part).workspace_bytes(1))

    packed = database.packed(piece, prepare(piece).workspace_bytes(1)) if scans else None
    step = _step(len(piece.rows), need, database.left)
    largest = next(piece.parts(step))
    wanted = packed_bytes(largest) + prepare(largest).workspace_bytes(count)
    workspace = database.workspace(
        need(step), wanted, f"a search with k={k} in {len(piece.rows):,} rows", "raise the limit or lower k"
    )
    for part in piece.parts(step):
        start, own = workspace.data_ptr(), packed_bytes(part)
        if own:
            database.pack(part.rows, workspace)
        address = packed.data_ptr() if packed is not None else start if own else 0
        prepare(part).run(address, start + own, workspace.nbytes - own, database.stream())


def evaluate(
    database: DeviceDatabase,
    queries: ArrayLike,
    query_codes: np.ndarray[Any, Any],
    row_codes: np.ndarray[Any, Any],
    excluded: np.ndarray[Any, Any] | None,
    cutoffs: list[int],
    threads: int,
) -> list[float]:
    """Means over the queries of recall@k, precision@k and map@k for every cut-off, then of map@all.

    Args:
        queries: ``(Q, D)``, at least one.
        query_codes: ``(Q,)`` int64, the queries' labels, numbered from 0.
        row_codes: ``(N,)`` int64, the rows'.
        excluded: ``(Q,)`` int64 row ids, -1 for none.
        cutoffs: The k.
        threads: For work on the CPU.
    """
    runtime, engine = database.runtime, database.runtime.engine
    with database.in_order():
        given = database.as_queries(queries, "queries")
        asked = checked(given, database.metric, "queries", 0, threads, runtime, database.bad_row())
        count, stream = len(asked), database.stream()
        per_label = np.bincount(row_codes, minlength=int(query_codes.max()) + 1)

        def put(values: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(runtime.device)

        by_label = put(np.argsort(row_codes, kind="stable")), put(np.concatenate([[0], np.cumsum(per_label)]))
        labels, places = (put(query_codes), put(row_codes)), put(cutoffs)
        ids = None if excluded is None else put(excluded)
        measures = torch.empty((count, 3 * len(cutoffs) + 1), dtype=torch.float64, device=runtime.device)
        longest = database.longest
        width = database.dim // 2 * 3 if database.metric == "gaussian_kl" else database.dim
        scans = database.scans(count, longest, 1)

        def packed_bytes(rows: int) -> int:
            row = (0, rows, width, 8 * width, "float64")  # only its form counts
            return engine.packed_bytes(database.metric, row) if scans else 0

        def prepare(rows: int) -> Any:
            return engine.Evaluation(
                database.metric,
                asked.argument(),
                *(part.data_ptr() for part in (*labels, *by_label)),
                0 if ids is None else ids.data_ptr(),
                int(per_label[query_codes].max()),
                rows if scans else 0,
                places.data_ptr(),
                len(cutoffs),
                measures.data_ptr(),
                0 if database.statistics is None else database.statistics.data_ptr(),
            )

        step = _step(longest, lambda rows: packed_bytes(rows) + prepare(rows).workspace_bytes(1), database.left // 2)
        evaluation, own = prepare(step), packed_bytes(step)
        batch = min(count, _MOST_QUERIES)
        least, wanted = own + evaluation.workspace_bytes(1), own + evaluation.workspace_bytes(batch)
        workspace = database.workspace(least, wanted, f"evaluating over {len(database):,} rows", "raise the limit")
        while own + evaluation.workspace_bytes(batch) > workspace.nbytes:
            batch = (batch + 1) // 2
        address = workspace.data_ptr() + own
        for first in range(0, count, batch):
            size = min(batch, count - first)
            evaluation.start(first, size, address, stream)
            with database.resident(database.bad_row() if first == 0 else None) as pieces:
                for piece in pieces:
                    evaluation.collect(piece.rows.argument(), piece.start, first, size, address, stream)
            evaluation.sort(size, address, stream)
            with database.resident(None) as pieces:
                for part in (part for piece in pieces for part in piece.parts(step)):
                    if own:
                        database.pack(part.rows, workspace)
                    packed = workspace.data_ptr() if own else 0
                    evaluation.count(part.rows.argument(), part.start, packed, first, size, address, stream)
            evaluation.rank(first, size, address, stream)
        means: list[float] = measures.mean(0).tolist()
    return means


def find_device(*values: object) -> Runtime:
    """The runtime of the device of the tensors among the values, at least one of which is there.

    Raises:
        InputError: They are on different devices (pinned host memory is none), or the extension has no engine for it.
    """
    tensors = [value for value in values if isinstance(value, Tensor)]
    runtime = next(runtime_of(tensor.device) for tensor in tensors if tensor.device.type == inputs.device_type)
    devices = {tensor.device for tensor in tensors if not runtime.is_pinned(tensor)}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise InputError(
            f"the tensors are on different devices ({names}); accepted is one device for all of them, and a database in pinned"
            " host memory (tensor.pin_memory())"
        )
    return runtime
