"""Run an exported graph: what all sessions have in common, and ``load``, which opens one.

An ONNX session needs onnxruntime and numpy, not torch; it takes torch tensors all the same. An engine needs torch and a GPU.
"""

from __future__ import annotations

__all__ = ["Session", "TensorInfo", "by_name", "load"]

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from iiae_fast.errors import InputError

if TYPE_CHECKING:
    import torch

    Array: TypeAlias = "NDArray[Any] | torch.Tensor"
    Inputs: TypeAlias = "Mapping[str, Array] | Sequence[Array] | Array"

ArrayT = TypeVar("ArrayT", bound="Array")

SIDECAR = ".json"  # of an engine: the engine's name and this


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a session.

    Attributes:
        name: ``"x"``, ``"y"``, ``"z_s"``, ``"z_x"`` or ``"z_y"``.
        dtype: ``"float32"`` or ``"uint8"``.
        shape: ``(None, …)``: any batch, then what one sample is.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Session(ABC):
    """One graph, ready to run; ``load`` makes it. It may be called from several threads at once.

    Attributes:
        inputs: What it takes, in order.
        outputs: What it gives, in order.
        metadata: What ``to_onnx`` wrote into the file.
        max_batch: Largest batch of one run, or None; calls split larger ones.
        device: ``"cpu"`` or ``"cuda:0"`` and so on.
        reason: What runs it and why, in words.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    max_batch: int | None
    device: str
    reason: str

    def __repr__(self) -> str:
        facts = " ".join(self.metadata[key] for key in ("family", "graph", "precision"))
        taken, given = (", ".join(info.name for info in infos) for infos in (self.inputs, self.outputs))
        return f"<{type(self).__name__} {facts}: {taken} -> {given} on {self.device}>"

    def __call__(self, inputs: Inputs) -> Any:
        """Run the graph on a batch of any size.

        Args:
            inputs: Every input by name, or a tuple or list of them in the order of ``Session.inputs``; for a graph with one
                input also the array itself. numpy arrays or torch tensors of the dtypes and shapes that ``Session.inputs`` has.

        Returns:
            A dictionary of outputs by name for a dictionary of inputs, else the one output as an array, or a tuple of several:
            numpy for numpy; for torch, tensors on the first input's device. An empty batch gives empty outputs.

        Raises:
            InputError: An input is missing, unknown, of another dtype or shape, or batches differ.
        """
        named = self.named(inputs)
        batch = len(named[self.inputs[0].name])
        arrays = {info.name: _contiguous(named[info.name], self.device) for info in self.inputs}
        like = named[self.inputs[0].name]
        outputs = {info.name: _empty(like, (batch, *info.shape[1:]), info.dtype, self.device) for info in self.outputs}
        self._run(arrays, outputs, batch)
        results = {name: _to_device_of(like, output) for name, output in outputs.items()}
        if isinstance(inputs, Mapping):
            return results
        return tuple(results.values()) if len(results) > 1 else results[self.outputs[0].name]

    def run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Run the graph from your buffers into your buffers, without a copy.

        Args:
            inputs: Every input by name, C-contiguous, on the CPU or on the session's device.
            outputs: Every output by name, likewise; written over.

        Raises:
            InputError: As for a call; or a buffer is not contiguous, is read-only, or lies on another device.
        """
        batch = self._check("input", self.inputs, inputs)
        if self._check("output", self.outputs, outputs) != batch:
            raise InputError(f"outputs hold {len(next(iter(outputs.values())))} rows, the inputs {batch}")
        for kind, arrays in (("input", inputs), ("output", outputs)):
            for name, array in arrays.items():
                self._check_buffer(kind, name, array)
        self._run(inputs, outputs, batch)

    def named(self, inputs: Inputs) -> Mapping[str, Array]:
        """Inputs by name, checked; a tuple or list has them in order, an array is the only input.

        Raises:
            InputError: As for a call.
        """
        graph, names = self.metadata["graph"], [info.name for info in self.inputs]
        named = by_name(inputs, names, f"graph {graph}")
        self._check("input", self.inputs, named)
        return named

    def warm_up(self, *batches: int) -> None:
        """Run zeros of these batch sizes (default: 1), so that the first request does not pay for allocation and tuning."""
        for batch in batches or (1,):
            if batch < 1 or (self.max_batch is not None and batch > self.max_batch):
                raise InputError(f"warm_up({batch}): accepted are batches from 1 to {self.max_batch or 'any size'}")
            self({info.name: np.zeros((batch, *_sample(info)), info.dtype) for info in self.inputs})

    def _check(self, kind: str, infos: tuple[TensorInfo, ...], arrays: Mapping[str, Array]) -> int:
        """The batch size of valid arrays."""
        names = ", ".join(info.name for info in infos)
        for name in arrays:
            if name not in {info.name for info in infos}:
                raise InputError(f"{kind} {name!r}: graph {self.metadata['graph']} has no such {kind}; accepted are {names}")
        batches: dict[str, int] = {}
        for info in infos:
            if info.name not in arrays:
                raise InputError(f"{kind} {info.name!r} is missing: graph {self.metadata['graph']} has {names}")
            array = arrays[info.name]
            accepted = f"{info.dtype} of shape ({', '.join(['B', *map(str, info.shape[1:])])})"
            if not _is_array(array):
                given = type(array).__name__
                raise InputError(f"{kind} {info.name!r} of type {given}: accepted is an array or tensor, {accepted}")
            dtype, shape = str(array.dtype).removeprefix("torch."), tuple(array.shape)
            if dtype != info.dtype or shape[1:] != info.shape[1:] or not shape:
                raise InputError(f"{kind} {info.name!r} is {dtype} of shape {shape}: accepted is {accepted}")
            batches[info.name] = shape[0]
        if len(set(batches.values())) > 1:
            raise InputError(f"{kind}s differ in their number of rows: {', '.join(f'{n} has {b}' for n, b in batches.items())}")
        return next(iter(batches.values()))

    def _check_buffer(self, kind: str, name: str, array: Array) -> None:
        if isinstance(array, np.ndarray):
            contiguous, device, writable = array.flags.c_contiguous, "cpu", array.flags.writeable
        else:
            contiguous, device, writable = array.is_contiguous(), _device_name(array), not array.requires_grad
        if not contiguous:
            raise InputError(
                f"{kind} {name!r} is not contiguous: run_into needs C-contiguous buffers; call the session instead"
            )
        if device not in ("cpu", self.device):
            raise InputError(f"{kind} {name!r} lies on {device}: accepted are the CPU and the session's device, {self.device}")
        if kind == "output" and not writable:
            raise InputError(f"output {name!r} cannot be written to: it is read-only or requires a gradient")

    @abstractmethod
    def _run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], batch: int) -> None:
        """Checked, contiguous buffers, in parts of at most ``max_batch``."""


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    threads: int | None = None,
    max_batch: int | None = None,
    cuda_graph: bool = False,
) -> Session:
    """Open an exported graph or an engine.

    Args:
        path: What ``to_onnx``, ``quantize`` or ``build_tensorrt`` wrote, or what the last returned.
        device: Of ONNX graphs ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …, ``"tensorrt"`` (ONNX Runtime's TensorRT provider), or
            ``"auto"``: CUDA where this onnxruntime has it and it starts, else the CPU. Of engines ``"auto"``, ``"cuda"``,
            ``"cuda:1"``, …. ``Session.reason`` says what was chosen and why.
        threads: CPU threads for one run; None leaves it to ONNX Runtime (one per physical core). Not of engines.
        max_batch: Split batches at this size, where the file sets no lower limit of its own: it bounds memory.
        cuda_graph: On a GPU, capture runs in CUDA graphs and replay them from then on, without the launches' cost. An ONNX
            session captures its first run, and every run must then be a ``run_into`` of the same buffers on the device: ONNX
            Runtime replays into their addresses. An engine captures the first run of every batch size, on buffers of its own.

    Raises:
        CheckpointError: The file is missing, neither ONNX nor an engine, truncated, altered, or not written by this package.
        InputError: An argument is not accepted, the device is not there, or the engine is for another version or GPU.
        MissingExtraError: ``onnxruntime``, or the engine's flavor of TensorRT, is not installed; or ``onnx`` is not and a bf16
            graph is to run on the CPU.
    """
    for name, value in (("threads", threads), ("max_batch", max_batch)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"{name}={value!r}: accepted is a whole number of at least 1, or None")
    path = Path(path)
    session: Session
    if is_engine(path):
        from iiae_fast.export.engine_session import open_engine

        if threads is not None:
            raise InputError(f"threads={threads}: an engine runs on a GPU; accepted is None")
        session = open_engine(path, device, cuda_graph)
    else:
        from iiae_fast.export.onnx_session import open_onnx

        session = open_onnx(path, device, threads, cuda_graph)
    if max_batch is not None:
        session.max_batch = min(max_batch, session.max_batch or max_batch)
    return session


def is_engine(path: Path) -> bool:
    """Whether a file claims to be an engine: by its sidecar, or by the name that engines commonly have."""
    return path.suffix in (".plan", ".engine", ".trt") or (path.suffix != ".onnx" and os.path.exists(f"{path}{SIDECAR}"))


def by_name(inputs: Inputs, names: Sequence[str], taker: str) -> Mapping[str, Array]:
    """Inputs as a dictionary, however they were given; ``taker`` is what wants those ``names``.

    Raises:
        InputError: A tuple or list of another length, or one array for several names.
    """
    if isinstance(inputs, Mapping):
        return inputs
    wanted = f"{taker} takes {', '.join(names)}"
    if isinstance(inputs, tuple) or (isinstance(inputs, list) and all(map(_is_array, inputs))):
        if len(inputs) != len(names):
            raise InputError(f"{wanted}: a {type(inputs).__name__} of {len(inputs)} was given")
        return dict(zip(names, inputs))
    if len(names) != 1:
        raise InputError(f"{wanted}: give a dictionary of them, or a tuple in this order, not one {type(inputs).__name__}")
    return {names[0]: inputs}  # type: ignore[dict-item]  # whatever it is: checked by who takes it


def _sample(info: TensorInfo) -> tuple[int, ...]:
    return tuple(dim for dim in info.shape if dim is not None)


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or _is_tensor(value)


def _is_tensor(array: object) -> bool:
    torch = sys.modules.get("torch")  # a tensor exists only where torch was imported, and not by us
    return torch is not None and isinstance(array, torch.Tensor)


def _device_name(tensor: torch.Tensor) -> str:
    return tensor.device.type if tensor.device.index is None else f"{tensor.device.type}:{tensor.device.index}"


def _contiguous(array: Array, device: str) -> Array:
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array)
    tensor = array.detach()
    return (tensor if _device_name(tensor) in ("cpu", device) else tensor.cpu()).contiguous()


def _empty(like: Array, shape: tuple[int | None, ...], dtype: str, device: str) -> Array:
    """An output beside the input it comes from: on its device where the session can write there."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype)  # type: ignore[arg-type]
    torch_module = sys.modules["torch"]
    where = like.device if _device_name(like) in ("cpu", device) else "cpu"
    tensor: torch.Tensor = torch_module.empty(shape, dtype=getattr(torch_module, dtype), device=where)
    return tensor


def _to_device_of(like: Array, output: Array) -> Array:
    return output if isinstance(output, np.ndarray) or isinstance(like, np.ndarray) else output.to(like.device)
