"""A database in device memory, and the memory that searches of it take."""

from __future__ import annotations

__all__ = ["PIECE_ROWS", "DeviceDatabase", "Piece"]

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiae_fast.errors import DeviceMemoryError, InputError
from iiae_fast.retrieval import device_paths
from iiae_fast.retrieval.database import Block, Database
from iiae_fast.retrieval.device_rows import HOST_ADVICE, DeviceRows, as_device_rows, checked, download, upload
from iiae_fast.retrieval.device_stream import HostRows
from iiae_fast.retrieval.inputs import ArrayLike, as_rows, check_added, engine_dtype
from iiae_fast.retrieval.runtime import Runtime

PIECE_ROWS = 1 << 16  # a piece that is smaller is merged with what is added after it
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

    dtype: str
    dim: int
    statistics: Tensor | None
    _host: HostRows | None

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
        self.statistics, self._count = None, 0
        self.runtime, self._keeps = runtime, keeps
        self._pieces: list[Piece] = []
        self._host = None
        self._lock = threading.RLock()
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
        with self.in_order():
            rows, was_tensor = as_device_rows(values, "rows to add", self.metric, self.runtime)
            check_added(rows.dim, rows.dtype, self.dim, self.dtype)
            if len(rows):
                self._append(rows, threads, copy=was_tensor)

    def _append(self, rows: DeviceRows, threads: int, copy: bool) -> None:
        last = self._pieces[-1] if self._pieces and len(self._pieces[-1].rows) < PIECE_ROWS else None
        new = checked(rows, self.metric, "database", self._count, threads, self.runtime, self.bad_row())
        if last is not None or (copy and new is rows):
            count = len(new) + (0 if last is None else len(last.rows))
            size = count * new.dim * new.tensor.element_size()
            memory = self.runtime.allocate(size, "a copy of the rows", HOST_ADVICE)
            place = memory.view(new.tensor.dtype).view(-1, new.dim)
            place[-len(new) :].copy_(new.tensor)
            if last is not None:
                place[: -len(new)].copy_(last.rows.tensor.view(new.tensor.dtype))
            new = DeviceRows(place, new.dtype)
        if last is not None:
            self._pieces.pop()
        self._pieces.append(Piece(self._count if last is None else last.start, new))
        self._count += len(rows)
        self._ready = self.runtime.record(self.runtime.current_stream())

    def blocks(self, threads: int) -> Iterator[Block]:
        """All rows in order, in host memory."""
        if self._host is not None:
            yield from self._host.blocks(threads)
            return
        for piece in self._pieces:
            with self.in_order():
                array = download(piece.rows)
            yield Block(piece.start, array, piece.rows.dtype)

    @contextlib.contextmanager
    def in_order(self) -> Iterator[None]:
        """Put work of the current stream behind what others did to the pieces, and before their memory is given away.

        One thread at a time: those of one stream share a workspace, and what they queue must not be mixed.
        """
        runtime = self.runtime
        with self._lock, runtime.use():
            # A stream that is captured cannot wait for others. There is nothing to wait for, as capture starts idle.
            if self._ready is not None and not runtime.capturing():
                runtime.current_stream().wait_event(self._ready)
                for piece in self._pieces:
                    runtime.keep(piece.rows.tensor)
                    if piece.packed is not None:
                        runtime.keep(piece.packed)
            yield

    @contextlib.contextmanager
    def resident(self, first_bad: Tensor | None) -> Iterator[Iterator[Piece]]:
        """All rows in order, on the device. Bad ones of a streamed database raise ``InputError`` in the end."""
        if self._host is None:
            yield iter(self._pieces)
            return
        if self.runtime.capturing():
            raise InputError("a search of a database in host memory cannot be captured in a CUDA graph")
        if first_bad is not None:
            first_bad.fill_(self._count)
        with contextlib.closing(self._host.on_device(first_bad)) as blocks:
            yield (Piece(start, rows) for start, rows in blocks)
        bad = self._count if first_bad is None else int(first_bad.item())
        if bad < self._count:
            self._host.check(bad)

    def stream(self) -> int:
        """The handle of the caller's stream."""
        return int(self.runtime.current_stream().cuda_stream)

    def bad_row(self) -> Tensor:
        """Eight bytes of the current stream."""
        if (stream := self.stream()) not in self._first_bad:
            memory = self.runtime.allocate(8, "the number of a row", HOST_ADVICE)
            if self.runtime.capturing():
                return memory.view(torch.int64)
            self._first_bad[stream] = memory.view(torch.int64)
        return self._first_bad[stream]

    @property
    def longest(self) -> int:
        """Rows of the longest piece that ``resident`` gives."""
        return max(len(piece.rows) for piece in self._pieces) if self._host is None else self._host.step

    @property
    def left(self) -> int:
        """Bytes of the limit that a search may take now."""
        kept = sum(piece.packed.nbytes for piece in self._pieces if piece.packed is not None)
        return self.workspace_limit - kept - (0 if self._host is None else self._host.device_bytes)

    def workspace(self, least: int, wanted: int, what: str, advice: str) -> Tensor:
        """At least `least` bytes, and `wanted` if the limit allows it; else the advice is given."""
        if least > self.left:
            raise DeviceMemoryError(
                f"workspace_limit={self.workspace_limit:,}: {what} takes at least"
                f" {self.workspace_limit - self.left + least:,} bytes; {advice}"
            )
        size = min(wanted, self.left)
        if self.runtime.capturing():  # the graph has its own: it may run beside searches of this stream, and after larger ones
            return self.runtime.allocate(size, what, "lower workspace_limit")
        stream = self.stream()
        kept = self._workspaces.get(stream)
        if kept is not None and size <= kept.nbytes <= self.left:
            return kept
        self._workspaces.pop(stream, None)
        del kept
        self._workspaces[stream] = self.runtime.allocate(size, what, "lower workspace_limit")
        return self._workspaces[stream]

    def packed(self, piece: Piece, least: int) -> Tensor | None:
        """The whole piece's rows as scans read them, if they are kept: if the database is, and leaves a search some memory."""
        if piece.packed is not None or not self._keeps or self._host is not None or self.runtime.capturing():
            return piece.packed
        size = self.runtime.engine.packed_bytes(self.metric, piece.rows.argument())
        if size > self.left - max(least, self.workspace_limit // _KEPT_SHARE):
            return None
        self._workspaces.clear()  # made when the limit left more
        packed = self.runtime.allocate(size, "packed rows", f"lower workspace_limit, or {HOST_ADVICE}")
        self.pack(piece.rows, packed)
        piece.packed = packed
        self._ready = self.runtime.record(self.runtime.current_stream())
        return packed

    def pack(self, rows: DeviceRows, to: Tensor) -> None:
        """Write rows as scans read them."""
        self.runtime.engine.pack(self.metric, rows.argument(), to.data_ptr(), self.stream())

    def scans(self, queries: int, rows: int, k: int) -> bool:
        """Whether rows are scanned in packed form, or measured."""
        columns = self.dim // 2 * 3 if self.metric == "gaussian_kl" else self.dim
        if not self.runtime.engine.can_scan(self.metric, columns):
            return False
        return device_paths.choose(queries, rows, self.dim, k, self.runtime.capability) == "int8"

    def as_queries(self, values: ArrayLike, name: str) -> DeviceRows:
        """Queries on the device, of the database's width."""
        rows, _ = self.of_same_width(values, name)
        if len(rows) == 0:
            raise InputError(f"{name} has no rows; accepted is at least one")
        return rows

    def of_same_width(self, values: object, name: str) -> tuple[DeviceRows, bool]:
        """What ``as_device_rows`` returns, if it has the database's columns."""
        rows, was_tensor = as_device_rows(values, name, self.metric, self.runtime)
        if rows.dim != self.dim:
            raise InputError(f"{name} have {rows.dim} columns; the database has {self.dim}")
        return rows, was_tensor
