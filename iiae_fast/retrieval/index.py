"""The flat index: exact search under one contract.

The canonical distance of a query and a row is computed in float64 from the inputs as given, by the direct form, and rounded to
fp32 (csrc/canonical.h has every formula and the order of every sum). The result of a search is the k smallest by (canonical
distance, index), ascending; for ``inner_product`` the k largest, descending. So ties go to the lowest index, and results are
the same for every number of threads, instruction set and block size.
"""

from __future__ import annotations

__all__ = ["FlatIndex", "Hits", "search"]

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from iiae_fast import _C
from iiae_fast.errors import InputError
from iiae_fast.retrieval import storage
from iiae_fast.retrieval.database import DEFAULT_MEMORY_LIMIT, Database
from iiae_fast.retrieval.inputs import (
    ArrayLike,
    Rows,
    as_count,
    as_mask,
    as_row_ids,
    as_rows,
    as_threads,
    check_metric,
    check_values,
    has_device_tensors,
    like_queries,
)

if TYPE_CHECKING:
    from iiae_fast.retrieval.device_database import DeviceDatabase

DEFAULT_WORKSPACE_LIMIT = 1 << 30


class Hits(NamedTuple):
    """Nearest rows of every query, best first.

    Attributes:
        distances: ``(Q, k)`` fp32. Places that no permitted row was left for hold infinity (-infinity for inner_product).
        indices: ``(Q, k)`` int64. Such places hold -1.
    """

    distances: Any
    indices: Any


class FlatIndex:
    """Exact nearest-neighbour search over the rows of a matrix.

    Several threads may search one index at a time, also while another adds rows to it: on the CPU a search covers the rows that
    were there when it began. Rows are added by one thread at a time.

    Args:
        database: ``(N, D)`` numpy array or torch tensor of fp32, fp16, bf16, fp64, uint8 or int8, any strides; it is copied. A
            ``.npy`` path or a ``np.memmap`` is not: it is streamed from disk in every search; nor, on a CUDA device, is a
            tensor in pinned host memory.
        metric: ``"sqeuclidean"``, ``"euclidean"``, ``"cosine"`` (1 - cos; a zero vector has distance 1 to everything),
            ``"inner_product"`` (largest first), or, over packed posteriors ``[mean | logvar]``, ``"gaussian_kl"``
            (KL(query ‖ row) in nats) and ``"gaussian_w2"`` (squared 2-Wasserstein distance). Log-variances are clamped to
            [-14, 9.21035], as everywhere in this package.
        device: ``"cpu"`` (tensors on another device are copied to it) or ``"cuda"``, ``"cuda:1"``, ...: rows and search live in
            device memory, results are the same. Tensors given to it must be on that device; numpy arrays are copied there.
        threads: Default number of threads; None means ``IIAE_NUM_THREADS`` or all cores this process may use.
        memory_limit: Bytes that one block of a streamed database may take.
        workspace_limit: Bytes of device memory that everything may take beside the rows, the results, and copies of arguments
            that are not on the device: the rows packed for scans (a byte for every value, in steps of 64 values, and 24 bytes a
            row), the blocks of a streamed database, and a workspace for each stream that searches. With less, a search takes
            fewer queries or rows at a time, and packs the rows anew every time if they take more than 7/8 of it.

    Raises:
        ValueError: Empty database, unknown metric, wrong dtype or shape, NaN or infinity (naming the first bad row), or a row
            with a squared norm above 8e37, which would overflow fp32 distances (1e32 of the mean for gaussian_kl; no limit for
            cosine).
    """

    def __init__(
        self,
        database: ArrayLike | str | os.PathLike[str],
        metric: str = "sqeuclidean",
        device: str = "cpu",
        *,
        threads: int | None = None,
        memory_limit: int = DEFAULT_MEMORY_LIMIT,
        workspace_limit: int = DEFAULT_WORKSPACE_LIMIT,
    ) -> None:
        check_metric(metric)
        self._threads = threads
        self._database: Database | DeviceDatabase
        limit, room = as_count(memory_limit, "memory_limit"), as_count(workspace_limit, "workspace_limit")
        workers = as_threads(threads)
        if str(device) == "cpu":
            rows = as_rows(database, "database", metric)
            self._database = Database(rows, metric, workers, copy=True, memory_limit=limit)
            return
        from iiae_fast.retrieval.device_database import DeviceDatabase
        from iiae_fast.retrieval.runtime import resolve

        self._database = DeviceDatabase(
            database, metric, workers, resolve(device), copy=True, memory_limit=limit, workspace_limit=room
        )

    def __len__(self) -> int:
        return len(self._database)

    @property
    def metric(self) -> str:
        """The metric that was chosen."""
        return self._database.metric

    @property
    def dim(self) -> int:
        """Columns of a row; a packed Gaussian counts mean and log-variance."""
        return self._database.dim

    @property
    def dtype(self) -> str:
        """Dtype of the rows as given."""
        return self._database.dtype

    def __repr__(self) -> str:
        return f"FlatIndex({len(self)} rows, dim {self.dim}, {self.dtype}, {self.metric})"

    def add(self, rows: ArrayLike) -> None:
        """Append rows of the same width and dtype; they get the next indices.

        Raises:
            ValueError: Another width or dtype, bad values, or a database on disk.
        """
        if isinstance(self._database, Database):
            self._database = self._database.added(as_rows(rows, "rows to add", self.metric), as_threads(self._threads))
        else:
            self._database.append(rows, as_threads(self._threads))

    def search(
        self,
        queries: ArrayLike,
        k: int,
        allowed: ArrayLike | None = None,
        exclude: ArrayLike | str | None = None,
        *,
        threads: int | None = None,
    ) -> Hits:
        """The k nearest rows of every query.

        Args:
            queries: ``(Q, D)``, any accepted dtype (not necessarily the database's).
            k: From 1 to N.
            allowed: Bool mask ``(N,)`` or ``(Q, N)``: only rows where it is true may be given.
            exclude: Bool mask ``(N,)`` or ``(Q, N)`` of rows that may not; or ``(Q,)`` integers, one row for every query (-1
                for none); or ``"self"``: the queries are the database, and query i must not get row i.
            threads: Overrides the index's own number.

        Returns:
            Distances and indices, numpy or torch like the queries. Where masks leave fewer than k rows, the rest is index -1
            and distance infinity.

        Raises:
            ValueError: Wrong shape, dtype or width, NaN or infinity in the queries (naming the first bad row), k < 1, k > N.
        """
        workers = as_threads(self._threads if threads is None else threads)
        if not isinstance(self._database, Database):
            from iiae_fast.retrieval import device

            return Hits(*device.search(self._database, queries, as_count(k, "k"), allowed, exclude, workers))
        return _search(self._database, as_rows(queries, "queries", self.metric), k, allowed, exclude, workers)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to one file, atomically (see ``retrieval.storage`` for the format)."""
        storage.save(self._database, path, as_threads(self._threads))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str = "cpu",
        *,
        threads: int | None = None,
        workspace_limit: int = DEFAULT_WORKSPACE_LIMIT,
    ) -> FlatIndex:
        """Read a saved index; files are the same for all devices. Other arguments as in ``FlatIndex``.

        Raises:
            CheckpointError: The file is missing, truncated, altered or of another form; the message names it and says why.
        """
        index = cls.__new__(cls)
        index._threads = threads
        room = as_count(workspace_limit, "workspace_limit")
        workers = as_threads(threads)
        if str(device) == "cpu":
            index._database = storage.load(path, workers)
        else:
            from iiae_fast.retrieval.device_database import DeviceDatabase
            from iiae_fast.retrieval.runtime import resolve

            found = resolve(device)
            index._database = DeviceDatabase.restore(storage.load(path, workers), workers, found, room)
        return index


def search(
    queries: ArrayLike,
    database: ArrayLike | str | os.PathLike[str],
    k: int,
    metric: str = "sqeuclidean",
    allowed: ArrayLike | None = None,
    exclude: ArrayLike | str | None = None,
    *,
    threads: int | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    workspace_limit: int = DEFAULT_WORKSPACE_LIMIT,
) -> Hits:
    """One search without keeping an index, and without copying the database. Arguments as in ``FlatIndex``.

    CUDA tensors are searched on their device, on the current stream (copied to the CPU and back, where the extension was built
    without its CUDA engine). A database in host memory (a numpy array or a ``.npy`` path) is then streamed to the queries'
    device block by block, so it may be larger than device memory.
    """
    check_metric(metric)
    workers = as_threads(threads)
    limit, room = as_count(memory_limit, "memory_limit"), as_count(workspace_limit, "workspace_limit")
    if has_device_tensors(queries, database):
        from iiae_fast.retrieval import device
        from iiae_fast.retrieval.device_database import DeviceDatabase

        runtime = device.find_device(queries, database)
        base = DeviceDatabase(
            database, metric, workers, runtime, copy=False, memory_limit=limit, workspace_limit=room, stream=True
        )
        return Hits(*device.search(base, queries, as_count(k, "k"), allowed, exclude, workers))
    rows = as_rows(database, "database", metric)
    query_rows = as_rows(queries, "queries", metric)
    return _search(Database(rows, metric, workers, copy=False, memory_limit=limit), query_rows, k, allowed, exclude, workers)


def engine_queries(queries: Rows, database: Database, threads: int) -> tuple[NDArray[Any], str]:
    """Check queries against the database and bring them into the engine's form: the array and its dtype."""
    if queries.dim != database.dim:
        raise InputError(f"queries have {queries.dim} columns; the database has {database.dim}")
    array = np.require(queries.array, requirements=["C", "A"])
    check_values(array, queries.dtype, database.metric, "queries", 0, threads)
    if database.metric.startswith("gaussian"):
        return _C.lift(array, queries.dtype, database.metric, threads), "float64"
    return array, queries.dtype


def _search(
    database: Database,
    queries: Rows,
    k: int,
    allowed: ArrayLike | None,
    exclude: ArrayLike | str | None,
    threads: int,
) -> Hits:
    k = as_count(k, "k")
    if k > len(database):
        raise InputError(f"k={k}: accepted is 1 to {len(database)}, the number of database rows")
    array, dtype = engine_queries(queries, database, threads)
    size = (len(queries), len(database))
    allowed_mask = None if allowed is None else as_mask(allowed, "allowed", *size)
    excluded_mask = excluded_ids = None
    if isinstance(exclude, str) or (exclude is not None and "bool" not in str(getattr(exclude, "dtype", ""))):
        excluded_ids = as_row_ids(exclude, "exclude", *size)
    elif exclude is not None:
        excluded_mask = as_mask(exclude, "exclude", *size)
    database.expect(len(queries), threads)
    searcher = _C.Searcher(array, dtype, database.metric, k, threads)
    for block in database.blocks(threads):
        part = slice(block.start, block.start + len(block.array))
        searcher.scan(
            block.array,
            block.dtype,
            block.start,
            None if allowed_mask is None else allowed_mask[..., part],
            None if excluded_mask is None else excluded_mask[..., part],
            excluded_ids,
            block.packed,
        )
    return Hits(*like_queries(queries, *searcher.result()))
