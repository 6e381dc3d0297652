"""Which path a search on a CUDA device takes: int8 tensor cores and a re-check, or float64 distances of all pairs.

Both give the same results, so this decides about time alone. ``device_paths.json`` holds what was measured, one table for every
compute capability; ``python -m iiae_fast.bench.device_paths`` measures the device at hand and writes its table there. Form:

    {"format": 1, "tables": {"9.0": {"device": "...", "entries": [
        {"queries": 1, "rows": 1000000, "dim": 64, "k": 10, "seconds": {"int8": 1e-3, "brute_force": 2e-3, "torch": 3e-3}}]}}}

with median seconds of a search in an index; ``torch`` is a matrix product and topk, for comparison. A search takes the path
that was faster in the entry nearest to it, by the ratios of its four sizes.

**No table was measured yet**, for want of a device. A device without one follows ``untabled``, which was estimated from bytes
and operations and not measured; that no search is more than 5 % slower than torch's matrix product and topk is unproven.
"""

from __future__ import annotations

__all__ = ["PATHS", "Entry", "choose", "load_tables", "select_method", "untabled"]

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iiae_fast.errors import DataError, InputError

PATHS = ("int8", "brute_force")
TABLES = Path(__file__).with_name("device_paths.json")
_FORMAT = 1
_SIZES = ("queries", "rows", "dim", "k")
_SCAN_ROWS = 1024  # fewer are not worth packing
_SCAN_SHARE = 8  # a scan pays if k is at most this share of the rows
_FUSED_K = 1024  # a scan selects more than these by one block for each query, so it takes many to keep a device busy
_MANY_QUERIES = 64

_method = "auto"


@dataclass(frozen=True)
class Entry:
    """Median seconds of every path at one size."""

    queries: int
    rows: int
    dim: int
    k: int
    seconds: dict[str, float]

    def distance(self, sizes: tuple[int, int, int, int]) -> float:
        """How far sizes are from this entry's: the sum of squared logarithms of their ratios."""
        own = (self.queries, self.rows, self.dim, self.k)
        return sum(math.log(max(1, given) / here) ** 2 for given, here in zip(sizes, own))

    @property
    def fastest(self) -> str:
        """The faster of our paths."""
        return min(PATHS, key=lambda path: self.seconds[path])


def select_method(name: str) -> None:
    """How searches are done: ``"auto"``, ``"brute_force"`` or ``"int8"``. It changes the time they take and nothing else."""
    global _method
    if name not in ("auto", *PATHS):
        raise InputError(f"method {name!r}: accepted are auto, brute_force, int8")
    _method = name


def load_tables(path: Path) -> dict[str, tuple[Entry, ...]]:
    """Tables by compute capability, e.g. ``"9.0"``.

    Raises:
        DataError: The file is missing or of another form; the message names it and says what is wrong.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table of paths: {error}") from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT or not isinstance(values.get("tables"), dict):
        raise DataError(f"{path} is refused: accepted is an object with 'format' {_FORMAT} and 'tables'")
    return {name: tuple(_entries(path, name, table)) for name, table in values["tables"].items()}


def _entries(path: Path, name: str, table: Any) -> list[Entry]:
    def refuse(reason: str) -> DataError:
        return DataError(f"{path} is refused: table {name!r} {reason}")

    if not isinstance(table, dict) or not isinstance(table.get("entries"), list) or not table["entries"]:
        raise refuse("has no 'entries'")
    found = []
    for number, entry in enumerate(table["entries"]):
        if not isinstance(entry, dict) or set(entry) != {*_SIZES, "seconds"} or not isinstance(entry["seconds"], dict):
            raise refuse(f"entry {number} has not exactly {', '.join(_SIZES)} and seconds")
        if not all(type(entry[size]) is int and entry[size] >= 1 for size in _SIZES):
            raise refuse(f"entry {number} has a size that is no whole number of at least 1")
        times = [entry["seconds"].get(which) for which in PATHS]
        if not all(isinstance(time, (int, float)) and math.isfinite(time) and time > 0 for time in times):
            raise refuse(f"entry {number} has no positive seconds for {' and '.join(PATHS)}")
        found.append(Entry(**entry))
    return found


@functools.cache
def _installed() -> dict[str, tuple[Entry, ...]]:
    return load_tables(TABLES)


def untabled(queries: int, rows: int, dim: int, k: int) -> str:
    """The path where nothing was measured: a scan, unless rows are few, or k is a large share of them."""
    few = rows < _SCAN_ROWS or k * _SCAN_SHARE > rows or (k > _FUSED_K and queries < _MANY_QUERIES)
    return "brute_force" if few else "int8"


def choose(
    queries: int, rows: int, dim: int, k: int, capability: str, tables: dict[str, tuple[Entry, ...]] | None = None
) -> str:
    """The path of a search: ``"int8"`` or ``"brute_force"``.

    Args:
        queries: How many at a time.
        rows: Of the database.
        dim: Columns of a row.
        k: Neighbours.
        capability: The device's, e.g. ``"9.0"``.
        tables: By default those that are installed.
    """
    if _method != "auto":
        return _method
    entries = (_installed() if tables is None else tables).get(capability)
    if not entries:
        return untabled(queries, rows, dim, k)
    return min(entries, key=lambda entry: entry.distance((queries, rows, dim, k))).fastest
