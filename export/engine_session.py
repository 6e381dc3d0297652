"""Engines in TensorRT or TensorRT-RTX, on torch's CUDA tensors and the caller's stream."""

from __future__ import annotations

__all__ = ["EngineSession", "open_engine"]

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from iiae_fast.errors import CheckpointError, InputError
from iiae_fast.export.engines import EngineInfo, read_engine
from iiae_fast.export.flavors import Context, Flavor, open_flavor
from iiae_fast.export.session import Session

if TYPE_CHECKING:
    import torch

    from iiae_fast.export.session import Array

_CAPTURED = 16  # batch sizes with a CUDA graph of their own, at most
_ALIGNMENT = 256  # bytes, of the addresses that TensorRT takes; torch allocates so, but a part of a tensor may begin anywhere


class EngineSession(Session):
    """An engine, with one execution context for each of its optimization profiles.

    Tensors on the engine's device are read and written where they lie, on the caller's current stream, without waiting for it:
    like any torch operation. Arrays on the CPU go through device buffers that are kept from call to call.

    Attributes:
        info: The engine's sidecar.
    """

    info: EngineInfo

    def __init__(self, info: EngineInfo, plan: bytes, flavor: Flavor, cuda: Cuda, cuda_graph: bool) -> None:
        self.info = info
        self.inputs, self.outputs = info.inputs, info.outputs
        self.metadata = dict(info.metadata)
        self.max_batch = info.max_batch
        self.device = cuda.name
        self.reason = f"{flavor.title} {flavor.version}: the engine's own, on {cuda.capability()}"
        self._cuda = cuda
        with cuda.turn():
            self._open = flavor.open(plan)
            self._contexts = [] if cuda_graph else [self._open(i, cuda.stream()) for i in range(len(info.profiles))]
        self._buffers: dict[str, torch.Tensor] = {}
        self._captured: dict[int, _Captured] | None = {} if cuda_graph else None
        self._lock = threading.Lock()  # contexts and buffers serve one run at a time

    def _run(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], batch: int) -> None:
        assert self.max_batch is not None
        starts = range(0, batch, self.max_batch)
        sizes = [min(self.max_batch, batch - start) for start in starts]
        for size in set(sizes):
            self._profile(size)  # refuse before anything has run
        with self._lock, self._cuda.turn():
            for start, size in zip(starts, sizes):
                part = slice(start, start + size)
                self._run_part({n: a[part] for n, a in inputs.items()}, {n: a[part] for n, a in outputs.items()}, size)

    def _run_part(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], batch: int) -> None:
        if self._captured is None:
            given = {name: self._on_device(name, array) for name, array in inputs.items()}
            targets = {name: self._target(name, array) for name, array in outputs.items()}
            self._enqueue(self._contexts[self._profile(batch)], given, targets)
        else:
            captured = self._captured.get(batch) or self._capture(batch)
            for name, array in inputs.items():
                _copy(array, captured.inputs[name])
            captured.replay()
            targets = captured.outputs
        for name, array in outputs.items():
            if targets[name] is not array:
                _copy(targets[name], array)

    def _enqueue(self, context: Context, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        given = {name: (tensor.data_ptr(), tuple(tensor.shape)) for name, tensor in inputs.items()}
        written = {name: tensor.data_ptr() for name, tensor in outputs.items()}
        context.run(given, written, self._cuda.stream())

    def _profile(self, batch: int) -> int:
        """The profile tuned for the batch most nearly, among those that take it."""
        taking = [i for i, (smallest, _, largest) in enumerate(self.info.profiles) if smallest <= batch <= largest]
        if not taking:
            ranges = ", ".join(f"{smallest} to {largest}" for smallest, _, largest in self.info.profiles)
            raise InputError(f"a run of {batch} samples: the engine's profiles take {ranges}")
        return min(taking, key=lambda i: abs(self.info.profiles[i][1] - batch))

    def _on_device(self, name: str, array: Array) -> torch.Tensor:
        if self._can_bind(array):
            return array
        buffer = self._buffer(name, array)
        _copy(array, buffer)
        return buffer

    def _target(self, name: str, array: Array) -> torch.Tensor:
        return array if self._can_bind(array) else self._buffer(name, array)

    def _can_bind(self, array: Array) -> TypeGuard[torch.Tensor]:
        """Whether the engine can read or write it where it lies."""
        return not isinstance(array, np.ndarray) and self._cuda.holds(array) and array.data_ptr() % _ALIGNMENT == 0

    def _buffer(self, name: str, array: Array) -> torch.Tensor:
        """Rows of a device buffer that is kept, for an array that lies elsewhere, or askew."""
        kept = self._buffers.get(name)
        if kept is None or len(kept) < len(array):
            kept = self._cuda.empty(tuple(array.shape), str(array.dtype).removeprefix("torch."))
            self._buffers[name] = kept
        return kept[: len(array)]

    def _capture(self, batch: int) -> _Captured:
        """A CUDA graph of a run of that size, with a context and buffers of its own: it holds their addresses."""
        assert self._captured is not None
        if len(self._captured) >= _CAPTURED:
            self._cuda.wait()  # the oldest may still be running
            del self._captured[next(iter(self._captured))]
        context = self._open(self._profile(batch), self._cuda.stream())
        inputs = {i.name: self._cuda.empty((batch, *_sample(i.shape)), i.dtype) for i in self.inputs}
        outputs = {i.name: self._cuda.empty((batch, *_sample(i.shape)), i.dtype) for i in self.outputs}

        def enqueue() -> None:
            self._enqueue(context, inputs, outputs)

        enqueue()  # what is set up or compiled at a shape's first run must not be captured
        captured = _Captured(context, inputs, outputs, self._cuda.capture(enqueue))
        self._captured[batch] = captured
        return captured


@dataclass(frozen=True)
class _Captured:
    """A CUDA graph, and what it uses."""

    context: Context
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    replay: Callable[[], None]


class Cuda:
    """What a session needs of a CUDA device, by torch.

    Args:
        index: Of the device.
    """

    def __init__(self, index: int) -> None:
        import torch

        self._torch = torch
        self._device = torch.device("cuda", index)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._last: int | None = None
        self.name = f"cuda:{index}"

    def capability(self) -> str:
        """Such as ``"SM89"``."""
        return "SM{}{}".format(*self._torch.cuda.get_device_capability(self._device))

    def stream(self) -> int:
        """Address of the caller's current stream."""
        return int(self._torch.cuda.current_stream(self._device).cuda_stream)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies on the device."""
        return tensor.device == self._device

    def empty(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """Memory on the device."""
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), device=self._device)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around a run: on another stream than the last run's, it comes after that."""
        cuda = self._torch.cuda
        with cuda.device(self._device):
            stream = cuda.current_stream()
            if self._last is not None and self._last != stream.cuda_stream:
                stream.wait_event(self._done)
            try:
                yield
            finally:
                if not cuda.is_current_stream_capturing():
                    self._done.record(stream)
                    self._last = stream.cuda_stream

    def wait(self) -> None:
        """For everything on the device."""
        self._torch.cuda.synchronize(self._device)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """A function that replays what ``enqueue`` puts on the current stream."""
        graph = self._torch.cuda.CUDAGraph()
        self.wait()
        with self._torch.cuda.graph(graph):  # on a stream of its own, which is then the current one
            enqueue()
        return graph.replay


def open_engine(path: Path, device: str, cuda_graph: bool) -> EngineSession:
    """``load`` for engines: everything that the sidecar says is checked before the engine is deserialized.

    Raises:
        CheckpointError: The engine or its sidecar is missing or altered, or another version built it.
        InputError: No such device, or the engine is for another GPU.
        MissingExtraError: The engine's flavor is not installed.
    """
    info, plan = read_engine(path)
    flavor = open_flavor(info.flavor)
    check_version(info, flavor.version)
    cuda = _cuda(device)
    check_target(info, cuda.capability())
    return EngineSession(info, plan, flavor, cuda, cuda_graph)


def check_version(info: EngineInfo, version: str) -> None:
    """Refuse an engine of another version."""
    if info.version != version:
        raise CheckpointError(
            f"{info.path}: built by {info.flavor} {info.version}, installed is {version}; engines load in the version that "
            "built them: build it again from its ONNX file, or install that version"
        )


def check_target(info: EngineInfo, capability: str) -> None:
    """Refuse an engine for other GPUs."""
    if capability not in info.targets:
        raise InputError(
            f"{info.path}: built for {', '.join(info.targets)}, and this GPU is {capability}; build it again for this one"
        )


def _cuda(device: str) -> Cuda:
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cuda") or (index and (kind == "auto" or not index.isdecimal())):
        raise InputError(f"device={device!r}: an engine runs on a GPU; accepted are 'auto', 'cuda', 'cuda:N'")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise InputError(f"device={device!r}: an engine runs on a GPU, and torch {torch.__version__} finds none here")
    if int(index or 0) >= count:
        raise InputError(f"device={device!r}: accepted are cuda:0 to cuda:{count - 1}")
    return Cuda(int(index) if index else torch.cuda.current_device())


def _copy(source: Array, target: Array) -> None:
    """Between a CPU array and device memory, or within the device; ordered on the current stream."""
    import torch

    def tensor(array: Array) -> torch.Tensor:
        # a read-only array is copied, for torch has no read-only tensors
        return torch.from_numpy(np.require(array, requirements="W")) if isinstance(array, np.ndarray) else array

    tensor(target).copy_(tensor(source))


def _sample(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(dim for dim in shape if dim is not None)
