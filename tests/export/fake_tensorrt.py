"""TensorRT's runtime on the CPU: engines that compute with ONNX Runtime, at the addresses that they are given.

Every class has the methods of TensorRT's class of the same name that this package calls, and no others, so that a call of
anything else fails; ``test_flavors.py`` compares them with the real module's. A plan is an ONNX file.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import torch

DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        if plan.startswith(b"broken"):
            self.logger.log(
                ILogger.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: no good (In f at /_src/runtime/x.cpp:1)"
            )
            return None
        return ICudaEngine(plan)


class ICudaEngine:
    def __init__(self, plan: bytes) -> None:
        self._session = onnxruntime.InferenceSession(plan)
        self.contexts: list[IExecutionContext] = []

    def create_execution_context(self) -> IExecutionContext:
        self.contexts.append(IExecutionContext(self._session))
        return self.contexts[-1]


class IExecutionContext:
    runs: ClassVar[list[tuple[int, int, dict[str, tuple[int, ...]]]]] = []
    """Of all contexts: profile, stream, shapes."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = {value.name: DTYPES[value.type] for value in session.get_inputs()}
        self._outputs = {value.name: value for value in session.get_outputs()}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._profile = -1

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        return profile < 2  # as many as the engines of the tests have

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return name in self._inputs

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self._addresses[name] = address
        return name in self._inputs or name in self._outputs

    def execute_async_v3(self, stream: int) -> bool:
        given = {name: array_at(self._addresses[name], self._shapes[name], dtype) for name, dtype in self._inputs.items()}
        for name, values in zip(self._outputs, self._session.run(list(self._outputs), given)):
            array_at(self._addresses[name], values.shape, np.float32)[...] = values
        IExecutionContext.runs.append((self._profile, stream, dict(self._shapes)))
        return True


class ILogger:
    INTERNAL_ERROR, ERROR = 0, 1

    def __init__(self) -> None:
        pass


__version__ = "11.4.0.106"


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)


class FakeCuda:
    """What ``engine_session.Cuda`` offers, with tensors of the CPU marked as the device's by where their memory comes from."""

    name = "cuda:0"

    def __init__(self, capability: str = "SM89") -> None:
        self._capability = capability
        self.allocated: list[torch.Tensor] = []
        self.captures = 0
        self.replays = 0
        self.waits = 0
        self.current = 7

    def capability(self) -> str:
        return self._capability

    def stream(self) -> int:
        return self.current

    def holds(self, tensor: torch.Tensor) -> bool:
        return any(one.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for one in self.allocated)

    def empty(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        kind = getattr(torch, dtype)
        memory = torch.full((math.prod(shape) * kind.itemsize + 256,), 77, dtype=torch.uint8)  # no run may show this
        first = -memory.data_ptr() % 256
        tensor = memory[first : first + math.prod(shape) * kind.itemsize].view(kind).view(shape)
        self.allocated.append(tensor)
        return tensor

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def wait(self) -> None:
        self.waits += 1

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            enqueue()

        return replay
