"""Search in device memory: the CUDA twin of the CPU engine, with the same results bit for bit.

Tensors on the device are read where they lie, on the caller's current stream. Only Gaussian rows are not: their exp() must be
the CPU's, so they are lifted there. A search of an index allocates its results and nothing else on the device, once it was
searched with as many queries and as large a k on the same stream: packed rows and a workspace are kept. To capture one in a
CUDA graph, search once before, then:

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hits = index.search(queries, k)   # queries: a CUDA tensor, overwritten before every graph.replay()

While it is captured, values of the queries are not checked. The index must live as long as the graph, and not be added to.
"""

from __future__ import annotations

__all__ = ["DeviceDatabase", "find_device"]

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiae_fast.errors import DeviceMemoryError, InputError
from iiae_fast.retrieval import device_paths, inputs
from iiae_fast.retrieval.database import Block, Database
from iiae_fast.retrieval.device_rows import (
    HOST_ADVICE,
    DeviceRows,
    as_device_mask,
    as_device_row_ids,
    as_device_rows,
    checked,
    download,
    upload,
)
from iiae_fast.retrieval.device_stream import HostRows
from iiae_fast.retrieval.inputs import ArrayLike, as_rows, check_added, engine_dtype
from iiae_fast.retrieval.runtime import Runtime, runtime_of

_PIECE_ROWS = 1 << 16  # a piece that is smaller is merged with what is added after it
_LEAST_ROWS = 256  # that are searched at a time where memory is short
_MOST_QUERIES = 1 << 16  # evaluated at a time
_STREAMED_SHARE = 4  # of the workspace limit, for one of the two blocks of a streamed database
_KEPT_SHARE = 8  # of it that packed rows leave to searches


@dataclass
class Piece:
    """Consecutive rows on the device; the first one has index ``start``. ``packed`` is what scans read, if it is kept."""

    start: int
    rows: DeviceRows
    packed: Tensor | None = None

    def parts(self, step: int) -> Iterator[Piece]:
        """Pieces of at most that many rows."""
        for first in range(0, len(self.rows), step):
            yield Piece(self.start + first, self.rows[first : first + step])


class DeviceDatabase:
    """Checked rows under a metric, in device memory, or streamed to it from the host block by block.

    Args:
        values: As ``FlatIndex`` takes them. A ``np.memmap``, a path or a tensor in pinned host memory is streamed and never
            held as a whole.
        metric: Decides what is checked and lifted.
        threads: For work on the CPU.
        runtime: Of the device where to search.
        copy: Keep an own copy, so that the caller may change theirs.
        memory_limit: Bytes that one streamed block may take.
        workspace_limit: Bytes of the device that everything may take beside the rows, the results, and copies of arguments that
            were not on the device as they are needed: packed rows, blocks of a streamed database, and a stream's workspace.
        stream: Stream all rows in host memory.

    Attributes:
        statistics: None, or an int64 tensor ``(2,)`` on the device, to which searches add how many candidates they measured,
            and how many queries they measured against all rows because a scan could not tell enough of them apart. Evaluations
            add how many pairs they measured after a scan.

    Raises:
        ValueError: As ``Database``; tensors on another device.
    """

    _host: HostRows | None
    statistics: Tensor | None

    def __init__(
        self,
        values: object,
        metric: str,
        threads: int,
        runtime: Runtime,
        *,
        copy: bool,
        memory_limit: int,
        workspace_limit: int,
        stream: bool = False,
    ) -> None:
        self._set(metric, runtime, workspace_limit, keeps=copy)
        pinned = values if isinstance(values, Tensor) and runtime.is_pinned(values) else None
        if pinned is not None or not isinstance(values, Tensor):
            rows = as_rows(values, "database", metric)
            if stream or pinned is not None or isinstance(rows.array, np.memmap):
                block = max(1, min(memory_limit, workspace_limit // _STREAMED_SHARE))
                self._host = HostRows(rows, pinned, metric, threads, block, runtime)
                self.dtype, self.dim, self._count = rows.dtype, rows.dim, len(rows)
                return
        with runtime.use():
            given, was_tensor = as_device_rows(values, "database", metric, runtime)
            if len(given) == 0:
                raise InputError(f"database has shape {tuple(given.tensor.shape)}; accepted is at least one row")
            self.dtype, self.dim = given.dtype, given.dim
            self._append(given, threads, copy and was_tensor)

    @classmethod
    def restore(cls, host: Database, threads: int, runtime: Runtime, workspace_limit: int) -> DeviceDatabase:
        """Take a database that was loaded into host memory to the device."""
        database = cls.__new__(cls)
        database._set(host.metric, runtime, workspace_limit, keeps=True)
        database.dtype, database.dim, database._count = host.dtype, host.dim, len(host)
        with runtime.use():
            for block in host.blocks(threads):
                database._pieces.append(Piece(block.start, upload(block.array, block.dtype, runtime)))
            database._ready = runtime.record(runtime.current_stream())
        return database

    def _set(self, metric: str, runtime: Runtime, workspace_limit: int, keeps: bool) -> None:
        self.metric, self.workspace_limit = metric, workspace_limit
        self.statistics = None
        self.dtype, self.dim, self._count = "", 0, 0
        self._runtime, self._keeps = runtime, keeps
        self._pieces: list[Piece] = []
        self._host = None
        self._ready: Any = None  # an event behind the last change of the pieces
        self._workspaces: dict[int, Tensor] = {}  # by stream
        self._first_bad: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def engine_dtype(self) -> str:
        """Dtype of the rows that ``blocks`` yields."""
        return engine_dtype(self.metric, self.dtype)

    def append(self, values: ArrayLike, threads: int) -> None:
        """Add a copy of rows at the end."""
        if self._host is not None:
            raise InputError("a database on disk cannot be added to; load it into memory first, e.g. np.load(path)")
        with self._in_order():
            rows, was_tensor = as_device_rows(values, "rows to add", self.metric, self._runtime)
            check_added(rows.dim, rows.dtype, self.dim, self.dtype)
            if len(rows):
                self._append(rows, threads, copy=was_tensor)

    def _append(self, rows: DeviceRows, threads: int, copy: bool) -> None:
        last = self._pieces[-1] if self._pieces and len(self._pieces[-1].rows) < _PIECE_ROWS else None
        new = checked(rows, self.metric, "database", self._count, threads, self._runtime, self._bad_row())
        if last is not None or (copy and new is rows):
            count = len(new) + (0 if last is None else len(last.rows))
            size = count * new.dim * new.tensor.element_size()
            memory = self._runtime.allocate(size, "a copy of the rows", HOST_ADVICE)
            place = memory.view(new.tensor.dtype).view(-1, new.dim)
            place[-len(new) :].copy_(new.tensor)
            if last is not None:
                place[: -len(new)].copy_(last.rows.tensor.view(new.tensor.dtype))
            new = DeviceRows(place, new.dtype)
        if last is not None:
            self._pieces.pop()
        self._pieces.append(Piece(self._count if last is None else last.start, new))
        self._count += len(rows)
        self._ready = self._runtime.record(self._runtime.current_stream())

    def blocks(self, threads: int) -> Iterator[Block]:
        """All rows in order, in host memory."""
        if self._host is not None:
            yield from self._host.blocks(threads)
            return
        for piece in self._pieces:
            with self._in_order():
                array = download(piece.rows)
            yield Block(piece.start, array, piece.rows.dtype)

    @contextlib.contextmanager
    def _in_order(self) -> Iterator[None]:
        """Put work of the current stream behind what others did to the pieces, and before their memory is given away."""
        runtime = self._runtime
        with runtime.use():
            # A stream that is captured cannot wait for others. There is nothing to wait for, as capture starts idle.
            if self._ready is not None and not runtime.capturing():
                runtime.current_stream().wait_event(self._ready)
                for piece in self._pieces:
                    runtime.keep(piece.rows.tensor)
                    if piece.packed is not None:
                        runtime.keep(piece.packed)
            yield

    @contextlib.contextmanager
    def _resident(self, first_bad: Tensor | None) -> Iterator[Iterator[Piece]]:
        """All rows in order, on the device. Bad ones of a streamed database raise ``InputError`` in the end."""
        if self._host is None:
            yield iter(self._pieces)
            return
        if self._runtime.capturing():
            raise InputError("a search of a database in host memory cannot be captured in a CUDA graph")
        if first_bad is not None:
            first_bad.fill_(self._count)
        with contextlib.closing(self._host.on_device(first_bad)) as blocks:
            yield (Piece(start, rows) for start, rows in blocks)
        bad = self._count if first_bad is None else int(first_bad.item())
        if bad < self._count:
            self._host.check(bad)

    def _stream(self) -> int:
        return int(self._runtime.current_stream().cuda_stream)

    def _bad_row(self) -> Tensor:
        """Eight bytes of the current stream."""
        if (stream := self._stream()) not in self._first_bad:
            memory = self._runtime.allocate(8, "the number of a row", HOST_ADVICE)
            if self._runtime.capturing():
                return memory.view(torch.int64)
            self._first_bad[stream] = memory.view(torch.int64)
        return self._first_bad[stream]

    @property
    def _left(self) -> int:
        """Bytes of the limit that a search may take now."""
        kept = sum(piece.packed.nbytes for piece in self._pieces if piece.packed is not None)
        return self.workspace_limit - kept - (0 if self._host is None else self._host.device_bytes)

    def _workspace(self, least: int, wanted: int, what: str) -> Tensor:
        """At least `least` bytes, and `wanted` if the limit allows it."""
        if least > self._left:
            raise DeviceMemoryError(
                f"workspace_limit={self.workspace_limit:,}: {what} takes at least"
                f" {self.workspace_limit - self._left + least:,} bytes; raise the limit or lower k"
            )
        size = min(wanted, self._left)
        stream = self._stream()
        kept = self._workspaces.get(stream)
        if kept is not None and size <= kept.nbytes <= self._left:
            return kept
        self._workspaces.pop(stream, None)
        del kept
        made = self._runtime.allocate(size, what, "lower workspace_limit")
        if not self._runtime.capturing():  # what a graph's capture allocates belongs to the graph
            self._workspaces[stream] = made
        return made

    def _packed(self, piece: Piece, least: int) -> Tensor | None:
        """The whole piece's rows as scans read them, if they are kept: if the database is, and leaves a search some memory."""
        if piece.packed is not None or not self._keeps or self._host is not None or self._runtime.capturing():
            return piece.packed
        size = self._runtime.engine.packed_bytes(self.metric, piece.rows.argument())
        if size > self._left - max(least, self.workspace_limit // _KEPT_SHARE):
            return None
        packed = self._runtime.allocate(size, "packed rows", f"lower workspace_limit, or {HOST_ADVICE}")
        self._pack(piece.rows, packed)
        piece.packed = packed
        self._ready = self._runtime.record(self._runtime.current_stream())
        return packed

    def _pack(self, rows: DeviceRows, to: Tensor) -> None:
        self._runtime.engine.pack(self.metric, rows.argument(), to.data_ptr(), self._stream())

    def _step(self, rows: int, need: Callable[[int], int], room: int) -> int:
        """How many of the rows are worked on at a time: as many as there is room for, if `need` says how much some take."""
        while rows > _LEAST_ROWS and need(rows) > room:
            rows = (rows + 1) // 2
        return rows

    def search(
        self, queries: ArrayLike, k: int, allowed: ArrayLike | None, exclude: ArrayLike | str | None, threads: int
    ) -> tuple[Any, Any]:
        """(Q, k) distances and indices: tensors, or numpy arrays if the queries are."""
        if k > self._count:
            raise InputError(f"k={k}: accepted is 1 to {self._count}, the number of database rows")
        runtime = self._runtime
        with self._in_order():
            given, as_tensors = self._of_same_width(queries, "queries")
            asked = checked(given, self.metric, "queries", 0, threads, runtime, self._bad_row())
            count = len(asked)
            size = count, self._count, runtime
            permitted = as_device_mask(allowed, "allowed", *size)
            is_mask = exclude is not None and not isinstance(exclude, str) and "bool" in str(getattr(exclude, "dtype", ""))
            excluded = as_device_mask(exclude, "exclude", *size) if is_mask else None
            ids = None if exclude is None or is_mask else as_device_row_ids(exclude, "exclude", *size)
            distances = torch.empty((count, k), dtype=torch.float32, device=runtime.device)
            indices = torch.full((count, k), -1, dtype=torch.int64, device=runtime.device)  # no key yet; first holds keys
            if count:
                with self._resident(self._bad_row()) as pieces:
                    for piece in pieces:
                        self._search_piece(piece, asked, k, permitted, excluded, ids, indices)
            keys = indices.data_ptr()
            runtime.engine.write(self.metric, keys, count * k, distances.data_ptr(), keys, self._stream())
        return (distances, indices) if as_tensors else (distances.cpu().numpy(), indices.cpu().numpy())

    def _scans(self, queries: int, rows: int, k: int) -> bool:
        """Whether rows are scanned in packed form, or measured."""
        columns = self.dim // 2 * 3 if self.metric == "gaussian_kl" else self.dim
        if not self._runtime.engine.can_scan(self.metric, columns):
            return False
        return device_paths.choose(queries, rows, self.dim, k, self._runtime.capability) == "int8"

    def _search_piece(
        self,
        piece: Piece,
        queries: DeviceRows,
        k: int,
        allowed: Tensor | None,
        excluded: Tensor | None,
        ids: Tensor | None,
        best: Tensor,
    ) -> None:
        engine, count = self._runtime.engine, len(queries)
        scans = self._scans(count, len(piece.rows), k)

        def mask(values: Tensor | None, part: Piece) -> tuple[int, int, int] | None:
            if values is None:
                return None
            cut = values[..., part.start : part.start + len(part.rows)]
            return cut.data_ptr(), cut.stride(0) if cut.ndim == 2 else 0, cut.stride(-1)

        def prepare(part: Piece) -> Any:
            return engine.Search(
                self.metric,
                part.rows.argument(),
                part.start,
                scans,
                queries.argument(),
                mask(allowed, part),
                mask(excluded, part),
                0 if ids is None else ids.data_ptr(),
                k,
                best.data_ptr(),
                0 if self.statistics is None else self.statistics.data_ptr(),
            )

        def packed_bytes(part: Piece) -> int:
            return engine.packed_bytes(self.metric, part.rows.argument()) if scans and packed is None else 0

        def need(rows: int) -> int:
            part = next(piece.parts(rows))
            return packed_bytes(part) + int(prepare(part).workspace_bytes(1))

        packed = self._packed(piece, prepare(piece).workspace_bytes(1)) if scans else None
        step = self._step(len(piece.rows), need, self._left)
        largest = next(piece.parts(step))
        wanted = packed_bytes(largest) + prepare(largest).workspace_bytes(count)
        workspace = self._workspace(need(step), wanted, f"a search with k={k} in {len(piece.rows):,} rows")
        for part in piece.parts(step):
            start, own = workspace.data_ptr(), packed_bytes(part)
            if own:
                self._pack(part.rows, workspace)
            address = packed.data_ptr() if packed is not None else start if own else 0
            prepare(part).run(address, start + own, workspace.nbytes - own, self._stream())

    def evaluate(
        self,
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
        runtime, engine = self._runtime, self._runtime.engine
        with self._in_order():
            given = self.as_queries(queries, "queries")
            asked = checked(given, self.metric, "queries", 0, threads, runtime, self._bad_row())
            count, stream = len(asked), self._stream()
            per_label = np.bincount(row_codes, minlength=int(query_codes.max()) + 1)

            def put(values: Any) -> Tensor:
                return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(runtime.device)

            by_label = put(np.argsort(row_codes, kind="stable")), put(np.concatenate([[0], np.cumsum(per_label)]))
            labels, places = (put(query_codes), put(row_codes)), put(cutoffs)
            ids = None if excluded is None else put(excluded)
            measures = torch.empty((count, 3 * len(cutoffs) + 1), dtype=torch.float64, device=runtime.device)
            longest = max(len(piece.rows) for piece in self._pieces) if self._host is None else self._host.step
            width = self.dim // 2 * 3 if self.metric == "gaussian_kl" else self.dim
            scans = self._scans(count, longest, 1)

            def packed_bytes(rows: int) -> int:
                row = (0, rows, width, 8 * width, "float64")  # only its form counts
                return engine.packed_bytes(self.metric, row) if scans else 0

            def prepare(rows: int) -> Any:
                return engine.Evaluation(
                    self.metric,
                    asked.argument(),
                    *(part.data_ptr() for part in (*labels, *by_label)),
                    0 if ids is None else ids.data_ptr(),
                    int(per_label[query_codes].max()),
                    rows if scans else 0,
                    places.data_ptr(),
                    len(cutoffs),
                    measures.data_ptr(),
                    0 if self.statistics is None else self.statistics.data_ptr(),
                )

            step = self._step(longest, lambda rows: packed_bytes(rows) + prepare(rows).workspace_bytes(1), self._left // 2)
            evaluation, own = prepare(step), packed_bytes(step)
            batch = min(count, _MOST_QUERIES)
            least, wanted = own + evaluation.workspace_bytes(1), own + evaluation.workspace_bytes(batch)
            workspace = self._workspace(least, wanted, f"evaluating over {self._count:,} rows")
            while own + evaluation.workspace_bytes(batch) > workspace.nbytes:
                batch = (batch + 1) // 2
            address = workspace.data_ptr() + own
            for first in range(0, count, batch):
                size = min(batch, count - first)
                evaluation.start(first, size, address, stream)
                with self._resident(self._bad_row() if first == 0 else None) as pieces:
                    for piece in pieces:
                        evaluation.collect(piece.rows.argument(), piece.start, first, size, address, stream)
                evaluation.sort(size, address, stream)
                with self._resident(None) as pieces:
                    for part in (part for piece in pieces for part in piece.parts(step)):
                        if own:
                            self._pack(part.rows, workspace)
                        packed = workspace.data_ptr() if own else 0
                        evaluation.count(part.rows.argument(), part.start, packed, first, size, address, stream)
                evaluation.rank(first, size, address, stream)
            means: list[float] = measures.mean(0).tolist()
        return means

    def as_queries(self, values: ArrayLike, name: str) -> DeviceRows:
        """Queries on the device, of the database's width."""
        rows, _ = self._of_same_width(values, name)
        if len(rows) == 0:
            raise InputError(f"{name} has no rows; accepted is at least one")
        return rows

    def _of_same_width(self, values: object, name: str) -> tuple[DeviceRows, bool]:
        """What ``as_device_rows`` returns, if it has the database's columns."""
        rows, was_tensor = as_device_rows(values, name, self.metric, self._runtime)
        if rows.dim != self.dim:
            raise InputError(f"{name} have {rows.dim} columns; the database has {self.dim}")
        return rows, was_tensor


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
