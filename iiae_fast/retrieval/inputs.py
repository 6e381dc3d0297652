"""What callers hand over, checked and brought into the engine's form."""

from __future__ import annotations

__all__ = [
    "METRICS",
    "ArrayLike",
    "Metric",
    "Rows",
    "as_count",
    "as_labels",
    "as_mask",
    "as_row_ids",
    "as_rows",
    "as_threads",
    "check_added",
    "check_form",
    "check_metric",
    "check_values",
    "engine_dtype",
    "has_device_tensors",
    "like_queries",
]

import operator
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from iiae_fast import _C
from iiae_fast.errors import DataError, InputError

if TYPE_CHECKING:
    import torch

    ArrayLike = NDArray[Any] | torch.Tensor
else:
    ArrayLike = Any  # torch is never imported here

Metric = Literal["sqeuclidean", "euclidean", "cosine", "inner_product", "gaussian_kl", "gaussian_w2"]
METRICS: tuple[str, ...] = get_args(Metric)
_DTYPES = ("float32", "float16", "bfloat16", "float64", "uint8", "int8")
MAX_THREADS = 4096
device_type = "cuda"  # of tensors that are searched where they lie; others are copied to the CPU (see runtime.replace)


@dataclass(frozen=True)
class Rows:
    """A checked matrix.

    Attributes:
        array: ``(count, dim)`` in native byte order; bfloat16 is viewed as uint16. A ``np.memmap`` stays one.
        dtype: Its true dtype, one of the accepted names.
        device: Where results go: a ``torch.device``, or None for numpy.
    """

    array: NDArray[Any]
    dtype: str
    device: Any = None

    def __len__(self) -> int:
        return len(self.array)

    @property
    def dim(self) -> int:
        """Columns as given; a packed Gaussian counts mean and log-variance."""
        return int(self.array.shape[1])


def check_metric(metric: str) -> None:
    """Raise ``ValueError`` for an unknown metric."""
    if metric not in METRICS:
        raise InputError(f"metric={metric!r}: accepted is one of {', '.join(METRICS)}")


def _to_numpy(values: object, name: str) -> tuple[NDArray[Any], str, Any]:
    """The array, its dtype's name and the torch device it came from."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        device = values.device
        tensor = values.detach().cpu()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype == "bfloat16":
            tensor = tensor.view(torch.uint16)
        return tensor.numpy(), dtype, device
    if isinstance(values, np.ndarray):
        if values.dtype.name == "bfloat16":  # from ml_dtypes
            return values.view(np.uint16), "bfloat16", None
        return values, values.dtype.name, None
    raise InputError(f"{name} is of type {type(values).__name__}; accepted are numpy arrays and torch tensors")


def check_form(shape: tuple[int, ...], dtype: str, name: str, metric: str) -> None:
    """Raise ``ValueError`` unless this is the shape and dtype of a matrix of rows."""
    if len(shape) != 2:
        raise InputError(f"{name} has shape {shape}; accepted is (rows, dim)")
    if dtype not in _DTYPES:
        raise InputError(f"{name} has dtype {dtype}; accepted are {', '.join(_DTYPES)}")
    if shape[1] == 0:
        raise InputError(f"{name} has shape {shape}; accepted is at least one column")
    if metric.startswith("gaussian") and shape[1] % 2:
        raise InputError(f"{name} has {shape[1]} columns; {metric} takes packed [mean | logvar], an even number")


def as_rows(values: object, name: str, metric: str) -> Rows:
    """Check shape and dtype of a matrix of rows. Values are checked by ``check_values``.

    Args:
        values: ``(count, dim)`` array or tensor of fp32, fp16, bf16, fp64, uint8 or int8, or the path of a ``.npy`` file.
        name: What error messages call it.
        metric: Gaussian metrics need an even ``dim``: [mean | logvar].

    Raises:
        ValueError: Another type, rank or dtype, no columns, or an odd number of them under a Gaussian metric.
    """
    if isinstance(values, (str, os.PathLike)):
        path = os.fspath(values)
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{name} {path!r} cannot be read as a .npy file: {error}") from error
        if not isinstance(values, np.ndarray):
            raise DataError(f"{name} {path!r} is not a .npy file of one array")
    array, dtype, device = _to_numpy(values, name)
    check_form(tuple(array.shape), dtype, name, metric)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return Rows(array, dtype, device)


def check_values(array: NDArray[Any], dtype: str, metric: str, name: str, start: int, threads: int) -> None:
    """Refuse rows that have no distances: NaN, infinity, or too large a norm.

    Args:
        array: ``(count, dim)``, contiguous in its last dimension; bfloat16 as uint16.
        dtype: Its true dtype.
        metric: Decides which norms are too large (see ``FlatIndex``).
        name: What the error message calls the array.
        start: What it calls the first row.
        threads: At most this many are used.

    Raises:
        InputError: Naming the first bad row, what is wrong with it and what is accepted.
    """
    try:
        _C.validate(array, dtype, metric, name, start, threads)
    except ValueError as error:
        raise InputError(str(error)) from None


def engine_dtype(metric: str, dtype: str) -> str:
    """Dtype of rows in the engine's form, given that of the caller's: Gaussian ones are lifted."""
    return "float64" if metric.startswith("gaussian") else dtype


def check_added(dim: int, dtype: str, index_dim: int, index_dtype: str) -> None:
    """Refuse rows to add that are unlike those of an index."""
    if dim != index_dim:
        raise InputError(f"rows to add have {dim} columns; the index has {index_dim}")
    if dtype != index_dtype:
        raise InputError(f"rows to add have dtype {dtype}; the index holds {index_dtype}")


def as_count(value: object, name: str) -> int:
    """A whole number of at least 1."""
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise InputError(f"{name}={value!r}: accepted is a whole number of at least 1")
    return count


def as_threads(threads: int | None) -> int:
    """The given number, else ``IIAE_NUM_THREADS``, else the number of cores this process may run on; at most 4,096."""
    accepted = f"accepted is a whole number from 1 to {MAX_THREADS:,}"
    if threads is not None:
        if not 1 <= as_count(threads, "threads") <= MAX_THREADS:
            raise InputError(f"threads={threads}: {accepted}")
        return int(threads)
    text = os.environ.get("IIAE_NUM_THREADS")
    if text is not None:
        if not text.strip().isdecimal() or not 1 <= int(text) <= MAX_THREADS:
            raise InputError(f"IIAE_NUM_THREADS={text!r}: {accepted}")
        return int(text)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def as_mask(values: object, name: str, queries: int, rows: int) -> NDArray[np.bool_]:
    """A bool mask ``(rows,)`` or ``(queries, rows)``."""
    array, dtype, _ = _to_numpy(values, name)
    if dtype != "bool" or array.shape not in {(rows,), (queries, rows)}:
        accepted = f"bool of shape ({rows},) or ({queries}, {rows})"
        raise InputError(f"{name} has shape {tuple(array.shape)} and dtype {dtype}; accepted is {accepted}")
    return array


def as_row_ids(values: object, name: str, queries: int, rows: int) -> NDArray[np.int64]:
    """One database row for every query: ``(queries,)`` integers, -1 for none, or ``"self"``: row i for query i."""
    if isinstance(values, str):
        if values != "self":
            raise InputError(f"{name}={values!r}: the only accepted word is 'self'")
        if queries != rows:
            raise InputError(f"{name}='self' needs the queries to be the database; there are {queries} queries and {rows} rows")
        return np.arange(queries, dtype=np.int64)
    array, dtype, _ = _to_numpy(values, name)
    if array.shape != (queries,) or array.dtype.kind not in "iu" or dtype == "bfloat16":
        raise InputError(
            f"{name} has shape {tuple(array.shape)} and dtype {dtype}; accepted are integers of shape ({queries},)"
        )
    wrong = np.flatnonzero((array >= rows) | (array < -1))
    if wrong.size:
        raise InputError(f"{name}[{wrong[0]}] is {array[wrong[0]]}; accepted are rows 0 to {rows - 1}, or -1 for none")
    return np.ascontiguousarray(array, dtype=np.int64)


def as_labels(values: object, name: str, count: int) -> NDArray[Any]:
    """One label for every row: ``(count,)`` integers, bools or strings."""
    array, dtype, _ = _to_numpy(np.asarray(values) if isinstance(values, (list, tuple)) else values, name)
    if array.shape != (count,) or array.dtype.kind not in "iubUS" or dtype == "bfloat16":
        raise InputError(
            f"{name} has shape {tuple(array.shape)} and dtype {dtype}; accepted are integers or strings of shape ({count},)"
        )
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise InputError(f"{name} holds {array.max()}; accepted are labels that fit int64")
    return array if array.dtype.kind in "US" else array.astype(np.int64)


def has_device_tensors(*values: object) -> bool:
    """Whether any value is a tensor in the memory of a device that has an engine here."""
    torch = sys.modules.get("torch")
    if torch is None or (device_type == "cuda" and not hasattr(_C, "cuda")):
        return False
    return any(isinstance(value, torch.Tensor) and value.device.type == device_type for value in values)


def like_queries(queries: Rows, *arrays: NDArray[Any]) -> tuple[Any, ...]:
    """Results in the queries' own kind: numpy arrays, or tensors on the queries' device."""
    if queries.device is None:
        return arrays
    torch = sys.modules["torch"]
    return tuple(torch.from_numpy(array).to(queries.device) for array in arrays)
