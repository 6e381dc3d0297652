"""Database rows as the engine visits them: pieces in memory, or blocks streamed from a memory-mapped file."""

from __future__ import annotations

__all__ = ["DEFAULT_MEMORY_LIMIT", "Block", "Database", "forget_pages"]

import mmap
from collections.abc import Iterator
from copy import copy as copy_object
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_fast import _C
from iiae_fast.errors import InputError
from iiae_fast.retrieval.inputs import Rows, check_added, check_values, engine_dtype

DEFAULT_MEMORY_LIMIT = 128 << 20
_PIECE_ROWS = 1 << 16  # a piece that is smaller is merged with what is added after it


# Searches of few queries wait for memory, and read int8 rows instead once they recur: packing costs what a few queries cost.
_FEW_QUERIES = 32
_PACKED_AFTER = 8
_PACKED_VALUES = 1 << 20  # smaller pieces stay in the caches anyway
_PACKED_DIM = 60000  # beyond it int8 sums could overflow
_LOGVAR = (-14.0, 9.21035)  # to which log-variances are clamped


@dataclass(frozen=True)
class Block:
    """Consecutive rows in the engine's form; the first one has index ``start``."""

    start: int
    array: NDArray[Any]
    dtype: str
    packed: _C.PackedRows | None = None


class Database:
    """Checked rows under a metric. Gaussian rows are kept lifted, in float64 (see csrc/canonical.h).

    Args:
        rows: The rows; a ``np.memmap`` is streamed and never held in memory as a whole.
        metric: Decides what is checked and lifted.
        threads: For checking and lifting.
        copy: Keep an own copy (of rows in memory), so that the caller may change theirs.
        memory_limit: Bytes that one streamed block may take.

    Raises:
        ValueError: No rows, or rows in memory that hold NaN, infinity or too large a norm. Streamed rows are checked as they
            are read.
    """

    def __init__(self, rows: Rows, metric: str, threads: int, *, copy: bool, memory_limit: int = DEFAULT_MEMORY_LIMIT) -> None:
        if len(rows) == 0:
            raise InputError(f"database has shape {tuple(rows.array.shape)}; accepted is at least one row")
        self.metric = metric
        self.dtype = rows.dtype
        self.dim = rows.dim
        self._memory_limit = memory_limit
        self._mapped = rows.array if isinstance(rows.array, np.memmap) else None
        self._pieces: list[NDArray[Any]] = []
        self._packed: list[_C.PackedRows | None] = []
        self._recurs = copy
        self._few_queries = 0
        self._count = 0
        if self._mapped is not None:
            self._count = len(rows)
        else:
            self._append(rows, threads, copy)

    @classmethod
    def restore(cls, rows: Rows, metric: str, dim: int, threads: int) -> Database:
        """Rows that ``blocks`` once yielded, become a database again; they are checked but not copied.

        Args:
            rows: The rows, lifted if the metric is Gaussian; ``rows.dtype`` is the dtype before lifting.
            metric: Their metric.
            dim: Columns before lifting.
            threads: For checking.
        """
        database = cls.__new__(cls)
        database.metric, database.dtype, database.dim = metric, rows.dtype, dim
        database._memory_limit, database._mapped = DEFAULT_MEMORY_LIMIT, None
        database._pieces, database._count = [rows.array], len(rows)
        database._packed, database._recurs, database._few_queries = [None], True, 0
        if metric.startswith("gaussian"):
            _check_lifted(rows.array, metric, threads)
        else:
            check_values(rows.array, rows.dtype, metric, "database", 0, threads)
        return database

    def __len__(self) -> int:
        return self._count

    @property
    def engine_dtype(self) -> str:
        """Dtype of the rows that ``blocks`` yields."""
        return engine_dtype(self.metric, self.dtype)

    def added(self, rows: Rows, threads: int) -> Database:
        """This database with a copy of more rows in memory at its end. This one stays as it is, for searches under way."""
        if self._mapped is not None:
            raise InputError("a database on disk cannot be added to; load it into memory first, e.g. np.load(path)")
        check_added(rows.dim, rows.dtype, self.dim, self.dtype)
        database = copy_object(self)
        database._pieces, database._packed = list(self._pieces), list(self._packed)
        if len(rows):
            database._append(rows, threads, copy=True)
        return database

    def _append(self, rows: Rows, threads: int, copy: bool) -> None:
        array = np.require(rows.array, requirements=["C", "A"])
        check_values(array, rows.dtype, self.metric, "database", self._count, threads)
        if self.metric.startswith("gaussian"):
            array = _C.lift(array, rows.dtype, self.metric, threads)
        elif copy and np.may_share_memory(array, rows.array):
            array = array.copy()
        if self._pieces and len(self._pieces[-1]) < _PIECE_ROWS:
            self._pieces[-1], self._packed[-1] = np.concatenate([self._pieces[-1], array]), None
        else:
            self._pieces.append(array)
            self._packed.append(None)
        self._count += len(rows)

    def expect(self, queries: int, threads: int) -> None:
        """Get ready for a search of that many queries."""
        if not self._recurs or self._mapped is not None or queries > _FEW_QUERIES:
            return
        self._few_queries += queries
        if self._few_queries <= _PACKED_AFTER:
            return
        for i, piece in enumerate(self._pieces):
            if self._packed[i] is None and piece.size >= _PACKED_VALUES and piece.shape[1] <= _PACKED_DIM:
                self._packed[i] = _C.PackedRows(piece, self.engine_dtype, self.metric, threads)

    def blocks(self, threads: int) -> Iterator[Block]:
        """All rows in order."""
        if self._mapped is not None:
            yield from self._stream(self._mapped, threads)
            return
        start = 0
        for piece, packed in zip(self._pieces, self._packed):
            yield Block(start, piece, self.engine_dtype, packed)
            start += len(piece)

    def _stream(self, mapped: NDArray[Any], threads: int) -> Iterator[Block]:
        # A Gaussian row is held both packed and lifted to at most 1.5 times as many float64.
        bytes_per_row = self.dim * (mapped.itemsize + (12 if self.metric.startswith("gaussian") else 0))
        step = max(1, self._memory_limit // bytes_per_row)
        for start in range(0, self._count, step):
            array = np.require(mapped[start : start + step], requirements=["C", "A"])
            check_values(array, self.dtype, self.metric, "database", start, threads)
            if self.metric.startswith("gaussian"):
                array = _C.lift(array, self.dtype, self.metric, threads)
            yield Block(start, array, self.engine_dtype)
            del array
            forget_pages(mapped)


def _check_lifted(array: NDArray[Any], metric: str, threads: int) -> None:
    """Refuse rows that lifting does not make (see csrc/canonical.h)."""
    half = array.shape[1] // (3 if metric == "gaussian_kl" else 2)
    for start in range(0, len(array), _PIECE_ROWS):
        block = array[start : start + _PIECE_ROWS]
        if metric == "gaussian_kl":
            logvar = block[:, half : 2 * half]
            bad = ~np.isclose(block[:, 2 * half :], np.exp(logvar), rtol=1e-12, atol=0.0).all(axis=1)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                logvar = 2.0 * np.log(block[:, half:])
            bad = np.zeros(len(block), bool)
        with np.errstate(invalid="ignore"):
            bad |= ~((logvar >= _LOGVAR[0] - 1e-9) & (logvar <= _LOGVAR[1] + 1e-9)).all(axis=1)
        if bad.any():
            raise InputError(f"database row {start + int(bad.argmax())} is not a lifted Gaussian of {metric}")
    # [mean | log-variance] of gaussian_kl and [mean | deviation] of gaussian_w2 have the form of rows that are not lifted.
    check_values(array[:, : 2 * half], "float64", metric, "database", 0, threads)


def forget_pages(mapped: Any) -> None:
    """Take a mapped file's pages out of this process again; they are read anew if they are touched."""
    mapping = getattr(mapped, "_mmap", None)
    # Pages of a private mapping (mode "c") may hold the caller's changes, which this would discard.
    if isinstance(mapping, mmap.mmap) and getattr(mapped, "mode", None) in {"r", "r+", "w+"} and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)
