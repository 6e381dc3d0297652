"""Rows, masks and row numbers as the CUDA engine takes them: checked, and in device memory."""

from __future__ import annotations

__all__ = ["DeviceRows", "as_device_mask", "as_device_row_ids", "as_device_rows", "checked", "download", "lift", "upload"]

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiae_fast import _C
from iiae_fast.errors import InputError
from iiae_fast.retrieval.inputs import as_mask, as_row_ids, as_rows, check_form, check_values
from iiae_fast.retrieval.runtime import Runtime

HOST_ADVICE = "keep the database on the host (a .npy path, a np.memmap or a pinned tensor), to be streamed"


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

    def __getitem__(self, part: slice) -> DeviceRows:
        return DeviceRows(self.tensor[part], self.dtype)

    @property
    def dim(self) -> int:
        """Columns; of lifted rows, after lifting."""
        return int(self.tensor.shape[1])

    def argument(self) -> tuple[int, int, int, int, str]:
        """What the engine takes."""
        tensor = self.tensor
        return tensor.data_ptr(), len(tensor), self.dim, tensor.stride(0) * tensor.element_size(), self.dtype


def as_device_rows(values: object, name: str, metric: str, runtime: Runtime) -> tuple[DeviceRows, bool]:
    """Rows as given, on the device, and whether they were a tensor. Values are checked by ``checked``."""
    if not isinstance(values, Tensor):
        refuse_capture(name, runtime)
        rows = as_rows(values, name, metric)
        return upload(rows.array, rows.dtype, runtime), False
    check_device(values, name, runtime)
    tensor = values.detach()
    dtype = str(tensor.dtype).removeprefix("torch.")
    check_form(tuple(tensor.shape), dtype, name, metric)
    dense = tensor.stride(1) == 1 and tensor.stride(0) >= tensor.shape[1]
    return DeviceRows(tensor if dense else tensor.contiguous(), dtype), True


def check_device(values: Tensor, name: str, runtime: Runtime) -> None:
    """Refuse a tensor that lies elsewhere."""
    if values.device != runtime.device:
        raise InputError(f"{name} is on {values.device}; accepted is {runtime.device}, like the database, or a numpy array")


def refuse_capture(name: str, runtime: Runtime) -> None:
    """Refuse what lies in host memory while a graph is captured: a replay would not copy it."""
    if runtime.capturing():
        raise InputError(f"{name} is in host memory; accepted is a tensor on {runtime.device} while a CUDA graph is captured")


def upload(array: np.ndarray[Any, Any], dtype: str, runtime: Runtime) -> DeviceRows:
    """Rows of host memory on the device."""
    tensor = torch.from_numpy(np.require(array, requirements=["C", "A", "W"]))
    place = runtime.allocate(tensor.nbytes, "rows of the database or queries", HOST_ADVICE)
    return DeviceRows(place.view(tensor.dtype).view(tensor.shape).copy_(tensor), dtype)


def download(rows: DeviceRows) -> np.ndarray[Any, Any]:
    """Rows in host memory; bfloat16 as uint16."""
    tensor = rows.tensor
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def lift(array: np.ndarray[Any, Any], dtype: str, metric: str, name: str, start: int, threads: int) -> np.ndarray[Any, Any]:
    """Check and lift Gaussian rows, in host memory: their exp() must be the CPU's."""
    check_values(array, dtype, metric, name, start, threads)
    return _C.lift(array, dtype, metric, threads)


def checked(
    rows: DeviceRows, metric: str, name: str, start: int, threads: int, runtime: Runtime, first_bad: Tensor
) -> DeviceRows:
    """Refuse bad values, and lift Gaussian rows. Values go unchecked while a graph is captured: nothing can be looked at.

    Args:
        rows: As given.
        metric: Decides what is checked and lifted.
        name: What the error message calls the rows.
        start: What it calls the first of them.
        threads: For work on the CPU.
        runtime: Of the rows' device.
        first_bad: ``(1,)`` int64 on it, overwritten.
    """
    if metric.startswith("gaussian"):
        if runtime.capturing():
            raise InputError(f"{metric} cannot be captured in a CUDA graph: its rows are lifted on the CPU")
        return upload(lift(download(rows), rows.dtype, metric, name, start, threads), "float64", runtime)
    if len(rows) and not runtime.capturing():
        first_bad.fill_(len(rows))
        runtime.engine.validate(metric, rows.argument(), 0, first_bad.data_ptr(), runtime.current_stream().cuda_stream)
        bad = int(first_bad.item())
        if bad < len(rows):
            check_values(
                download(DeviceRows(rows.tensor[bad : bad + 1].contiguous(), rows.dtype)),
                rows.dtype,
                metric,
                name,
                start + bad,
                threads,
            )
    return rows


def as_device_mask(values: Any, name: str, queries: int, rows: int, runtime: Runtime) -> Tensor | None:
    """A bool mask on the device, any strides."""
    if values is None:
        return None
    if not isinstance(values, Tensor):
        refuse_capture(name, runtime)
        return torch.from_numpy(np.ascontiguousarray(as_mask(values, name, queries, rows))).to(runtime.device)
    check_device(values, name, runtime)
    if values.dtype != torch.bool or tuple(values.shape) not in {(rows,), (queries, rows)}:
        accepted = f"bool of shape ({rows},) or ({queries}, {rows})"
        raise InputError(f"{name} has shape {tuple(values.shape)} and dtype {values.dtype}; accepted is {accepted}")
    return values


def as_device_row_ids(values: Any, name: str, queries: int, rows: int, runtime: Runtime) -> Tensor:
    """One database row for every query, on the device."""
    if isinstance(values, Tensor):
        check_device(values, name, runtime)
        if runtime.capturing():
            return values.to(torch.int64).contiguous()  # its values can't be looked at
    elif isinstance(values, str):
        as_row_ids(values, name, queries, rows)
        return torch.arange(queries, device=runtime.device)
    else:
        refuse_capture(name, runtime)
    return torch.from_numpy(as_row_ids(values, name, queries, rows)).to(runtime.device)
