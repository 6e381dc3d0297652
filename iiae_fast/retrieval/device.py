"""Search in device memory: the CUDA twin of the CPU engine, with the same results bit for bit.

Tensors on the device are read where they lie, on the caller's current stream. Only Gaussian rows are not: their exp() must be
the CPU's, so they are lifted there. A search allocates its results, and a workspace that it keeps for the next one on that
stream.
"""

from __future__ import annotations

__all__ = ["DeviceDatabase", "engine", "find_device", "resolve", "select_method"]

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiae_fast import _C
from iiae_fast.errors import DeviceMemoryError, InputError
from iiae_fast.retrieval.database import Block, Database
from iiae_fast.retrieval.inputs import (
    ArrayLike,
    as_mask,
    as_row_ids,
    as_rows,
    check_added,
    check_form,
    check_values,
    engine_dtype,
)

_ENGINE: Any = getattr(_C, "cuda", None)
_PIECE_ROWS = 1 << 16  # a piece that is smaller is merged with what is added after it
_MOST_QUERIES = 1 << 16  # evaluated at a time
_method = "auto"


def engine() -> Any:
    """The CUDA functions of the extension.

    Raises:
        InputError: It was built without them.
    """
    if _ENGINE is None:
        raise InputError(
            "iiae_fast was built without its CUDA engine; accepted are device='cpu' and CPU tensors. To build it, put nvcc on"
            " PATH and run: IIAE_CUDA=1 pip install --no-build-isolation ."
        )
    return _ENGINE


def select_method(name: str) -> None:
    """How searches are done: ``"auto"``, ``"brute_force"`` or ``"int8"``. It changes the time they take and nothing else."""
    global _method
    if name not in ("auto", "brute_force", "int8"):
        raise InputError(f"method {name!r}: accepted are auto, brute_force, int8")
    _method = name


def resolve(device: object) -> torch.device:
    """A CUDA device with its index.

    Raises:
        InputError: No CUDA device, or none of that number.
    """
    try:
        found = torch.device(str(device))
    except RuntimeError:
        found = None
    if found is None or found.type != "cuda":
        raise InputError(f"device={str(device)!r}: accepted are 'cpu' and 'cuda' (or 'cuda:0', ...)")
    engine()
    count = torch.cuda.device_count()
    index = found.index if found.index is not None else torch.cuda.current_device() if count else 0
    if index >= count:
        raise InputError(
            f"device={str(device)!r}: this machine has {count} CUDA devices that torch {torch.__version__} can use"
        )
    return torch.device("cuda", index)


@dataclass(frozen=True)
class DeviceRows:
    """A matrix in device memory, contiguous in its last dimension.

    Attributes:
        tensor: ``(count, dim)``; bfloat16 may be viewed as any type of two bytes.
        dtype: Its true dtype, one of the accepted names.
    """

    tensor: Tensor
    dtype: str

    def __len__(self) -> int:
        return len(self.tensor)

    def argument(self) -> tuple[int, int, int, int, str]:
        """What the engine takes."""
        tensor = self.tensor
        return tensor.data_ptr(), len(tensor), tensor.shape[1], tensor.stride(0) * tensor.element_size(), self.dtype


def _device_rows(values: object, name: str, metric: str, device: torch.device) -> tuple[DeviceRows, bool]:
    """Rows as given, on the device, and whether they were a tensor. Values are checked by ``_checked``."""
    if not isinstance(values, Tensor):
        rows = as_rows(values, name, metric)
        return _upload(rows.array, rows.dtype, device), False
    if values.device != device:
        raise InputError(f"{name} is on {values.device}; accepted is {device}, like the database, or a numpy array")
    tensor = values.detach()
    dtype = str(tensor.dtype).removeprefix("torch.")
    check_form(tuple(tensor.shape), dtype, name, metric)
    dense = tensor.stride(1) == 1 and tensor.stride(0) >= tensor.shape[1]
    return DeviceRows(tensor if dense else tensor.contiguous(), dtype), True


def _upload(array: np.ndarray[Any, Any], dtype: str, device: torch.device) -> DeviceRows:
    tensor = torch.from_numpy(np.require(array, requirements=["C", "A", "W"]))
    return DeviceRows(_allocating(lambda: tensor.to(device), tensor.nbytes, "rows of the database or queries", None), dtype)


def _download(rows: DeviceRows) -> np.ndarray[Any, Any]:
    tensor = rows.tensor
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def _allocating(make: Any, size: int, what: str, limit: str | None) -> Any:
    """Run what allocates; if the device has not enough memory, say how much was needed and what to lower."""
    try:
        return make()
    except torch.OutOfMemoryError as error:
        advice = f"; lower {limit}" if limit else "; keep the database on the host (a numpy array or .npy path), to be streamed"
        raise DeviceMemoryError(f"out of device memory: {size:,} bytes were needed for {what}{advice}") from error


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _checked(rows: DeviceRows, metric: str, name: str, start: int, threads: int) -> DeviceRows:
    """Refuse bad values, and lift Gaussian rows. Values go unchecked while a graph is captured: nothing can be looked at."""
    device = rows.tensor.device
    if metric.startswith("gaussian"):
        if _capturing(device):
            raise InputError(f"{metric} cannot be captured in a CUDA graph: its rows are lifted on the CPU")
        array = _download(rows)
        check_values(array, rows.dtype, metric, name, start, threads)
        return _upload(_C.lift(array, rows.dtype, metric, threads), "float64", device)
    if len(rows) and not _capturing(device):
        first_bad = torch.full((1,), len(rows), dtype=torch.int64, device=device)
        with _on(device):
            engine().validate(metric, rows.argument(), first_bad.data_ptr(), _stream(device))
        bad = int(first_bad.item())
        if bad < len(rows):
            one = DeviceRows(rows.tensor[bad : bad + 1].contiguous(), rows.dtype)
            check_values(_download(one), rows.dtype, metric, name, start + bad, threads)
    return rows


@dataclass
class _Piece:
    start: int
    rows: DeviceRows
    packed: Tensor | None = None


class DeviceDatabase:
    """Checked rows under a metric, in device memory, or streamed to it from the host block by block.

    Args:
        values: As ``FlatIndex`` takes them. A ``np.memmap`` or a path is streamed and never held as a whole.
        metric: Decides what is checked and lifted.
        threads: For work on the CPU.
        device: Where to search.
        copy: Keep an own copy, so that the caller may change theirs.
        memory_limit: Bytes that one streamed block may take.
        workspace_limit: Bytes that a search may take beside the rows and its results.
        stream: Stream rows in host memory too.

    Attributes:
        statistics: None, or an int64 tensor ``(2,)`` on the device, to which searches add how many candidates they measured,
            and how many queries they measured against all rows because a scan could not tell enough of them apart.

    Raises:
        ValueError: As ``Database``; tensors on another device.
    """

    def __init__(
        self,
        values: object,
        metric: str,
        threads: int,
        device: torch.device,
        *,
        copy: bool,
        memory_limit: int,
        workspace_limit: int,
        stream: bool = False,
    ) -> None:
        self.metric = metric
        self.device = device
        self.workspace_limit = workspace_limit
        self._pieces: list[_Piece] = []
        self._workspaces: dict[int, Tensor] = {}
        self._host: Database | None = None
        self.statistics: Tensor | None = None
        self._recurs = copy
        self._count = 0
        if not isinstance(values, Tensor):
            rows = as_rows(values, "database", metric)
            if stream or isinstance(rows.array, np.memmap):
                self._host = Database(rows, metric, threads, copy=False, memory_limit=memory_limit)
                self.dtype, self.dim, self._count = rows.dtype, rows.dim, len(rows)
                return
        given, was_tensor = _device_rows(values, "database", metric, device)
        if len(given) == 0:
            raise InputError(f"database has shape {tuple(given.tensor.shape)}; accepted is at least one row")
        self.dtype, self.dim = given.dtype, int(given.tensor.shape[1])
        self._append(given, threads, copy and was_tensor)

    @classmethod
    def restore(cls, host: Database, threads: int, device: torch.device, workspace_limit: int) -> DeviceDatabase:
        """Take a database that was loaded into host memory to the device."""
        database = cls.__new__(cls)
        database.metric, database.device, database.workspace_limit = host.metric, device, workspace_limit
        database._workspaces, database._host, database._recurs, database._count = {}, None, True, len(host)
        database.statistics = None
        database.dtype, database.dim = host.dtype, host.dim
        database._pieces = [_Piece(block.start, _upload(block.array, block.dtype, device)) for block in host.blocks(threads)]
        return database

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
        rows, was_tensor = _device_rows(values, "rows to add", self.metric, self.device)
        check_added(int(rows.tensor.shape[1]), rows.dtype, self.dim, self.dtype)
        if len(rows):
            self._append(rows, threads, copy=was_tensor)

    def _append(self, rows: DeviceRows, threads: int, copy: bool) -> None:
        count = len(rows)
        checked = _checked(rows, self.metric, "database", self._count, threads)
        tensor = checked.tensor
        if self._pieces and len(self._pieces[-1].rows) < _PIECE_ROWS:
            last = self._pieces.pop()
            both = _allocating(
                lambda: torch.cat([last.rows.tensor.view(tensor.dtype), tensor]), tensor.nbytes, "added rows", None
            )
            self._pieces.append(_Piece(last.start, DeviceRows(both, checked.dtype)))
        else:
            if copy and tensor.data_ptr() == rows.tensor.data_ptr():
                tensor = _allocating(tensor.clone, tensor.nbytes, "a copy of the rows", None)
            self._pieces.append(_Piece(self._count, DeviceRows(tensor, checked.dtype)))
        self._count += count

    def blocks(self, threads: int) -> Iterator[Block]:
        """All rows in order, in host memory."""
        if self._host is not None:
            yield from self._host.blocks(threads)
            return
        for piece in self._pieces:
            yield Block(piece.start, _download(piece.rows), piece.rows.dtype)

    def _resident(self, threads: int) -> Iterator[_Piece]:
        """All rows in order, on the device."""
        if self._host is None:
            yield from self._pieces
            return
        for block in self._host.blocks(threads):
            yield _Piece(block.start, _upload(block.array, block.dtype, self.device))

    def _pack(self, piece: _Piece) -> Tensor:
        """The piece's rows in the form that a scan reads; kept if the database is."""
        if piece.packed is not None:
            return piece.packed
        argument = piece.rows.argument()
        size = engine().packed_bytes(self.metric, argument)
        packed: Tensor = _allocating(
            lambda: torch.empty(size, dtype=torch.uint8, device=self.device), size, "packed rows", None
        )
        engine().pack(self.metric, argument, packed.data_ptr(), _stream(self.device))
        if self._recurs and self._host is None:
            piece.packed = packed
        return packed

    def _workspace(self, least: int, wanted: int, what: str) -> Tensor:
        """At least `least` bytes, and `wanted` if the limit allows it."""
        if least > self.workspace_limit:
            raise DeviceMemoryError(
                f"workspace_limit={self.workspace_limit:,}: {what} takes at least {least:,} bytes; raise the limit or lower k"
            )
        size = min(wanted, self.workspace_limit)
        stream = _stream(self.device)
        kept = self._workspaces.get(stream)
        if kept is not None and kept.nbytes >= size:
            return kept
        self._workspaces.pop(stream, None)
        del kept
        made: Tensor = _allocating(
            lambda: torch.empty(size, dtype=torch.uint8, device=self.device), size, what, "workspace_limit"
        )
        if not _capturing(self.device):  # what a graph's capture allocates belongs to the graph
            self._workspaces[stream] = made
        return made

    def search(
        self, queries: ArrayLike, k: int, allowed: ArrayLike | None, exclude: ArrayLike | str | None, threads: int
    ) -> tuple[Any, Any]:
        """(Q, k) distances and indices: tensors, or numpy arrays if the queries are."""
        if k > self._count:
            raise InputError(f"k={k}: accepted is 1 to {self._count}, the number of database rows")
        given, as_tensors = self._of_same_width(queries, "queries")
        with _on(self.device):
            asked = _checked(given, self.metric, "queries", 0, threads)
            count = len(asked)
            permitted = self._mask(allowed, "allowed", count)
            is_mask = exclude is not None and not isinstance(exclude, str) and "bool" in str(getattr(exclude, "dtype", ""))
            excluded = self._mask(exclude, "exclude", count) if is_mask else None
            ids = None if exclude is None or is_mask else self._row_ids(exclude, count)
            best = torch.full((count, k), -1, dtype=torch.int64, device=self.device)  # no key yet
            for piece in self._resident(threads) if count else ():
                self._search_piece(piece, asked, k, permitted, excluded, ids, best)
            distances = torch.empty((count, k), dtype=torch.float32, device=self.device)
            indices = torch.empty((count, k), dtype=torch.int64, device=self.device)
            engine().write(
                self.metric, best.data_ptr(), count * k, distances.data_ptr(), indices.data_ptr(), _stream(self.device)
            )
        return (distances, indices) if as_tensors else (distances.cpu().numpy(), indices.cpu().numpy())

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
            query_codes: ``(Q,)`` int64, the queries' labels.
            row_codes: ``(N,)`` int64, the rows'.
            excluded: ``(Q,)`` int64 row ids, -1 for none.
            cutoffs: The k.
            threads: For work on the CPU.
        """
        given = self.as_queries(queries, "queries")
        with _on(self.device):
            asked = _checked(given, self.metric, "queries", 0, threads)
            count, width = len(asked), 3 * len(cutoffs) + 1
            relevant = int(np.bincount(row_codes, minlength=int(query_codes.max()) + 1)[query_codes].max())
            labels = torch.from_numpy(query_codes).to(self.device), torch.from_numpy(row_codes).to(self.device)
            ids = None if excluded is None else torch.from_numpy(excluded).to(self.device)
            places = torch.tensor(cutoffs, dtype=torch.int64, device=self.device)
            measures = torch.empty((count, width), dtype=torch.float64, device=self.device)
            evaluation = engine().Evaluation(
                self.metric,
                asked.argument(),
                self._count,
                *(part.data_ptr() for part in labels),
                0 if ids is None else ids.data_ptr(),
                relevant,
                places.data_ptr(),
                len(cutoffs),
                measures.data_ptr(),
            )
            least = evaluation.workspace_bytes(1)
            batch = max(1, min(count, self.workspace_limit // least, _MOST_QUERIES))
            workspace = self._workspace(least, evaluation.workspace_bytes(batch), f"evaluating over {self._count:,} rows")
            while evaluation.workspace_bytes(batch) > workspace.nbytes:
                batch = (batch + 1) // 2
            for first in range(0, count, batch):
                size = min(batch, count - first)
                for piece in self._resident(threads):
                    rows = piece.rows.argument()
                    evaluation.measure(rows, piece.start, first, size, workspace.data_ptr(), _stream(self.device))
                evaluation.rank(first, size, workspace.data_ptr(), _stream(self.device))
            means: list[float] = measures.mean(0).tolist()
        return means

    def as_queries(self, values: ArrayLike, name: str) -> DeviceRows:
        """Queries on the device, of the database's width."""
        rows, _ = self._of_same_width(values, name)
        if len(rows) == 0:
            raise InputError(f"{name} has no rows; accepted is at least one")
        return rows

    def _of_same_width(self, values: object, name: str) -> tuple[DeviceRows, bool]:
        """What ``_device_rows`` returns, if it has the database's columns."""
        rows, was_tensor = _device_rows(values, name, self.metric, self.device)
        if rows.tensor.shape[1] != self.dim:
            raise InputError(f"{name} have {rows.tensor.shape[1]} columns; the database has {self.dim}")
        return rows, was_tensor

    def _search_piece(
        self,
        piece: _Piece,
        queries: DeviceRows,
        k: int,
        allowed: Tensor | None,
        excluded: Tensor | None,
        ids: Tensor | None,
        best: Tensor,
    ) -> None:
        rows = piece.rows.argument()
        scans = engine().scans(_method, self.metric, len(queries), rows, k)
        packed = self._pack(piece) if scans else None

        def mask(values: Tensor | None) -> tuple[int, int, int] | None:
            if values is None:
                return None
            part = values[..., piece.start : piece.start + len(piece.rows)]
            return part.data_ptr(), part.stride(0) if part.ndim == 2 else 0, part.stride(-1)

        search = engine().Search(
            self.metric,
            rows,
            piece.start,
            0 if packed is None else packed.data_ptr(),
            queries.argument(),
            mask(allowed),
            mask(excluded),
            0 if ids is None else ids.data_ptr(),
            k,
            best.data_ptr(),
            0 if self.statistics is None else self.statistics.data_ptr(),
        )
        what = f"a search with k={k} in {len(piece.rows):,} rows"
        workspace = self._workspace(search.workspace_bytes(1), search.workspace_bytes(len(queries)), what)
        search.run(workspace.data_ptr(), workspace.nbytes, _stream(self.device))

    def _mask(self, values: Any, name: str, queries: int) -> Tensor | None:
        """A bool mask on the device, any strides."""
        if values is None:
            return None
        if not isinstance(values, Tensor):
            return torch.from_numpy(np.ascontiguousarray(as_mask(values, name, queries, self._count))).to(self.device)
        if values.device != self.device:
            raise InputError(f"{name} is on {values.device}; accepted is {self.device}, like the database, or a numpy array")
        if values.dtype != torch.bool or tuple(values.shape) not in {(self._count,), (queries, self._count)}:
            accepted = f"bool of shape ({self._count},) or ({queries}, {self._count})"
            raise InputError(f"{name} has shape {tuple(values.shape)} and dtype {values.dtype}; accepted is {accepted}")
        return values

    def _row_ids(self, values: Any, queries: int) -> Tensor:
        """One database row for every query, on the device."""
        if isinstance(values, Tensor) and values.device != self.device:
            raise InputError(f"exclude is on {values.device}; accepted is {self.device}, like the database, or a numpy array")
        if isinstance(values, Tensor) and _capturing(self.device):
            return values.to(torch.int64).contiguous()  # its values can't be looked at
        return torch.from_numpy(as_row_ids(values, "exclude", queries, self._count)).to(self.device)


def find_device(*values: object) -> torch.device:
    """The device of the tensors among the values, at least one of which is there.

    Raises:
        InputError: They are on different devices, or the extension has no engine for it.
    """
    devices = {value.device for value in values if isinstance(value, Tensor)}
    engine()
    if len(devices) > 1:
        names = ", ".join(sorted(str(device) for device in devices))
        raise InputError(f"the tensors are on different devices ({names}); accepted is one device for all of them")
    return devices.pop()
