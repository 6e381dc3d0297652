"""Exported graphs in ONNX Runtime."""

from __future__ import annotations

__all__ = ["OnnxSession", "open_onnx"]

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iiae_fast.errors import CheckpointError, InputError, require
from iiae_fast.export.providers import choose
from iiae_fast.export.sealing import sealed
from iiae_fast.export.session import Session, TensorInfo
from iiae_fast.storage import read_whole

if TYPE_CHECKING:
    from iiae_fast.export.session import Array

_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


class OnnxSession(Session):
    """A graph in ONNX Runtime.

    Attributes:
        providers: ONNX Runtime's execution providers, in order of preference.
    """

    providers: tuple[str, ...]

    def __init__(self, runtime: Any, device: str, reason: str) -> None:
        self._runtime = runtime
        self.device = device
        self.reason = reason
        self.providers = tuple(runtime.get_providers())
        self.metadata = dict(runtime.get_modelmeta().custom_metadata_map)
        self.inputs = tuple(_describe(value) for value in runtime.get_inputs())
        self.outputs = tuple(_describe(value) for value in runtime.get_outputs())
        self.max_batch = int(self.metadata["max_batch"]) if self.metadata["max_batch"] else None

    def _run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], batch: int) -> None:
        step = self.max_batch or max(batch, 1)
        for start in range(0, batch, step):
            binding = self._runtime.io_binding()
            for arrays, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
                for name, array in arrays.items():
                    _bind(bind, name, array[start : start + step])
            _wait_for_producers(inputs)
            self._runtime.run_with_iobinding(binding)


def _onnxruntime() -> Any:
    """The module onnxruntime, without telemetry: since 1.29, official builds report every session to Microsoft and keep an
    identifier of the machine under ``~/.cache``, unless told not to before they are imported. A value that is set is kept.

    Raises:
        MissingExtraError: It is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require("onnxruntime", "onnx")


def open_onnx(path: Path, device: str, threads: int | None, cuda_graph: bool) -> OnnxSession:
    """``load`` for ONNX files, with the same arguments and errors."""
    onnxruntime = _onnxruntime()
    data = read_whole(path, "an ONNX file")
    intact = sealed(data)
    if intact is False:
        raise CheckpointError(f"{path}: altered since it was exported (checksum differs)")
    if intact is None:
        raise CheckpointError(f"{path}: {_what_is_it(onnxruntime, data)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; warnings about its own optimizations are no news to a user
    # Idle threads that spin for more work take the cores from other sessions, from torch and from retrieval in this process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    runtime, chosen, reason = choose(onnxruntime, data, options, device, cuda_graph)
    if cuda_graph and chosen == "cpu":
        raise InputError(f"cuda_graph=True needs a GPU; {reason}")
    return OnnxSession(runtime, chosen, reason)


def _what_is_it(onnxruntime: Any, data: bytes) -> str:
    """A file without our checksum, in words."""
    try:
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception:  # its exception classes have no common base
        return "truncated, or not an ONNX file"
    return "an ONNX model, but not as iiae_fast.export.to_onnx wrote it (no checksum at its end)"


def _describe(value: Any) -> TensorInfo:
    shape = tuple(dim if isinstance(dim, int) else None for dim in value.shape)
    return TensorInfo(value.name, _DTYPES[value.type], shape)


def _bind(bind: Any, name: str, array: Array) -> None:
    if isinstance(array, np.ndarray):
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    else:
        dtype = np.dtype(str(array.dtype).removeprefix("torch."))
        bind(name, array.device.type, array.device.index or 0, dtype, tuple(array.shape), array.data_ptr())


def _wait_for_producers(inputs: Mapping[str, Array]) -> None:
    """ONNX Runtime reads on a CUDA stream of its own, so what torch has queued on its stream must be done."""
    for array in inputs.values():
        if not isinstance(array, np.ndarray) and array.is_cuda:
            sys.modules["torch"].cuda.current_stream(array.device).synchronize()
