"""What searches need of a device beside their kernels: the engine, streams, events and memory."""

from __future__ import annotations

__all__ = ["Runtime", "engine", "replace", "resolve", "runtime_of"]

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from iiae_fast import _C
from iiae_fast.errors import DeviceMemoryError, InputError
from iiae_fast.retrieval import inputs

_replaced: Runtime | None = None


def engine() -> Any:
    """The CUDA functions of the extension.

    Raises:
        InputError: It was built without them.
    """
    found = getattr(_C, "cuda", None)
    if found is None:
        raise InputError(
            "iiae_fast was built without its CUDA engine; accepted are device='cpu' and CPU tensors. To build it, put nvcc on"
            " PATH and run: IIAE_CUDA=1 pip install --no-build-isolation ."
        )
    return found


class Runtime:
    """One CUDA device. Tests have one of the same form whose device is host memory (see ``replace``).

    Attributes:
        device: It, with its index.
        engine: The functions of csrc/cuda/bindings.cpp.
    """

    def __init__(self, device: torch.device, engine: Any) -> None:
        self.device = device
        self.engine = engine

    @property
    def capability(self) -> str:
        """Its compute capability, e.g. ``"9.0"``."""
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"{major}.{minor}"

    def use(self) -> contextlib.AbstractContextManager[Any]:
        """Make the device the current one."""
        return torch.cuda.device(self.device)

    def current_stream(self) -> Any:
        """The caller's stream; ``cuda_stream`` is its handle, ``wait_event`` makes it wait."""
        return torch.cuda.current_stream(self.device)

    def new_stream(self) -> Any:
        """A stream for copies."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def record(self, stream: Any) -> Any:
        """An event behind all that was queued on a stream so far."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def capturing(self) -> bool:
        """Whether the current stream is being captured in a graph: then no value can be looked at."""
        return bool(torch.cuda.is_current_stream_capturing())

    def allocate(self, size: int, what: str, advice: str) -> Tensor:
        """Bytes on the device.

        Raises:
            DeviceMemoryError: There are not so many; the message says what they were for, and gives the advice.
        """
        try:
            return self._empty(size)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(f"out of device memory: {size:,} bytes were needed for {what}; {advice}") from error

    def _empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def pinned(self, size: int) -> Tensor:
        """Bytes of host memory that a device can copy from while the host goes on."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in such memory."""
        return tensor.device.type == "cpu" and tensor.is_pinned()

    def copy(self, to: Tensor, values: Tensor, stream: Any) -> None:
        """Queue a copy from pinned memory to the device."""
        with torch.cuda.stream(stream):
            to.copy_(values, non_blocking=True)

    def keep(self, tensor: Tensor) -> None:
        """Don't give the tensor's memory to others before the current stream is done with it, even if it dies before."""
        tensor.record_stream(self.current_stream())


@contextlib.contextmanager
def replace(runtime: Runtime) -> Iterator[None]:
    """Let another runtime stand in for the CUDA device: tensors of its device are then searched where they lie."""
    global _replaced
    before = _replaced, inputs.device_type
    _replaced, inputs.device_type = runtime, runtime.device.type
    try:
        yield
    finally:
        _replaced, inputs.device_type = before


def runtime_of(device: torch.device) -> Runtime:
    """The runtime of a device that tensors lie on."""
    return _replaced if _replaced is not None else Runtime(device, engine())


def resolve(device: object) -> Runtime:
    """The runtime of a CUDA device, given as ``"cuda"``, ``"cuda:1"``, ...

    Raises:
        InputError: No CUDA device, or none of that number.
    """
    try:
        found = torch.device(str(device))
    except RuntimeError:
        found = None
    if found is None or found.type != "cuda":
        raise InputError(f"device={str(device)!r}: accepted are 'cpu' and 'cuda' (or 'cuda:0', ...)")
    if _replaced is not None:
        return _replaced
    functions = engine()
    count = torch.cuda.device_count()
    index = found.index if found.index is not None else torch.cuda.current_device() if count else 0
    if index >= count:
        raise InputError(
            f"device={str(device)!r}: this machine has {count} CUDA devices that torch {torch.__version__} can use"
        )
    return Runtime(torch.device("cuda", index), functions)
