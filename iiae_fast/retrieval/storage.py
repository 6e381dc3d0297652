"""Index files.

Layout, all little-endian: the magic ``IIAEFLAT``; format version, u32; length of the header, u32; the header, JSON with
``metric``, ``dtype`` and ``dim`` of the rows as given, ``rows``, and ``columns`` and ``stored`` (their dtype) of the matrix as
kept; the matrix, row-major; SHA-256 of everything before it. Nothing in it is executable.
"""

from __future__ import annotations

__all__ = ["load", "save"]

import hashlib
import json
import os
import struct
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from iiae_fast.errors import CheckpointError
from iiae_fast.retrieval.database import Database
from iiae_fast.retrieval.inputs import METRICS, Rows

if TYPE_CHECKING:
    from iiae_fast.retrieval.device_database import DeviceDatabase

_MAGIC = b"IIAEFLAT"
_VERSION = 1
_PREFIX = struct.Struct("<8sII")
_MAX_HEADER = 1 << 16
_CHUNK = 1 << 24
_SIZE_LIMIT = 1 << 32  # an index holds fewer rows, and nothing else is larger
_STORED = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "float64": "<f8", "uint8": "|u1", "int8": "|i1"}


def save(database: Database | DeviceDatabase, path: str | os.PathLike[str], threads: int) -> None:
    """Write a database to a file that appears whole or not at all."""
    target = Path(path)
    columns = next(database.blocks(threads)).array.shape[1]
    header = json.dumps(
        {
            "metric": database.metric,
            "dtype": database.dtype,
            "dim": database.dim,
            "rows": len(database),
            "columns": columns,
            "stored": database.engine_dtype,
        }
    ).encode()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    digest = hashlib.sha256()
    try:
        with open(temporary, "wb") as file:

            def write(data: Any) -> None:
                digest.update(data)
                file.write(data)

            write(_PREFIX.pack(_MAGIC, _VERSION, len(header)))
            write(header)
            for block in database.blocks(threads):
                write(np.ascontiguousarray(block.array, _STORED[block.dtype]).data.cast("B"))
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], threads: int) -> Database:
    """Read a database back.

    Raises:
        CheckpointError: Missing, truncated, altered or not an index file.
    """
    try:
        with open(path, "rb") as file:
            return _read(file, path, threads)
    except OSError as error:
        raise CheckpointError(f"index file {os.fspath(path)!r} cannot be read: {error.strerror}") from error


def _read(file: IO[bytes], path: str | os.PathLike[str], threads: int) -> Database:
    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"index file {os.fspath(path)!r} is refused: {reason}")

    digest = hashlib.sha256()
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
        raise refuse("it does not start like an index")
    _, version, header_size = _PREFIX.unpack(prefix)
    if version != _VERSION:
        raise refuse(f"format version {version}; this release reads version {_VERSION}")
    if header_size > _MAX_HEADER:
        raise refuse(f"a header of {header_size} bytes; at most {_MAX_HEADER} are accepted")
    encoded = file.read(header_size)
    digest.update(prefix + encoded)
    metric, dtype, stored, dim, rows, columns = _parse(encoded, refuse)
    payload = rows * columns * np.dtype(_STORED[stored]).itemsize
    expected = _PREFIX.size + header_size + payload + digest.digest_size
    if size != expected:
        raise refuse(f"it has {size} bytes where its header announces {expected}; it is truncated or altered")
    array: NDArray[Any] = np.empty((rows, columns), _STORED[stored])
    view = array.data.cast("B")
    for start in range(0, payload, _CHUNK):
        chunk = view[start : start + _CHUNK]
        if file.readinto(chunk) != len(chunk):  # type: ignore[attr-defined]
            raise refuse("it was truncated while being read")
        digest.update(chunk)
    if file.read() != digest.digest():
        raise refuse("its checksum does not match; it was altered")
    try:
        return Database.restore(Rows(array.astype(array.dtype.newbyteorder("="), copy=False), dtype), metric, dim, threads)
    except ValueError as error:
        raise refuse(str(error)) from error


def _parse(encoded: bytes, refuse: Any) -> tuple[str, str, str, int, int, int]:
    try:
        header = json.loads(encoded)
        metric, dtype, stored = header["metric"], header["dtype"], header["stored"]
        dim, rows, columns = header["dim"], header["rows"], header["columns"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise refuse("its header cannot be read; it is truncated or altered") from error
    texts = all(isinstance(text, str) for text in (metric, dtype, stored))
    sizes = all(type(n) is int and 1 <= n < _SIZE_LIMIT for n in (dim, rows, columns))
    if not texts or not sizes or metric not in METRICS or dtype not in _STORED:
        raise refuse("its header holds a metric, dtype or size that is not accepted")
    gaussian = metric.startswith("gaussian")
    if stored != ("float64" if gaussian else dtype) or columns != (dim // 2 * 3 if metric == "gaussian_kl" else dim):
        raise refuse("its header contradicts itself")
    if gaussian and dim % 2:
        raise refuse(f"its rows have {dim} columns; {metric} takes an even number")
    return metric, dtype, stored, dim, rows, columns
