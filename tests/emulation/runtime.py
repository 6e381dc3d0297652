"""A device that is host memory: the emulated engine, with streams that tell whether work was put in order.

Kernels run when they are called. A copy runs as late as it may: when a stream or the host waits for an event behind it. So
whoever reads what was copied without waiting reads old values; and a copy into memory that a kernel uses, on another stream
that did not wait for it, is an error. So is to copy from memory again before the host waited for the copy before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from emulation.build import build, load
from torch import Tensor

from iiae_fast.retrieval.device_paths import select_method
from iiae_fast.retrieval.runtime import Runtime, replace


@contextlib.contextmanager
def emulate() -> Iterator[Emulated]:
    """Put such a device into the place of a CUDA device; skips the test where there is no compiler for it."""
    path = build(sanitize=os.environ.get("IIAE_EMULATION_SANITIZE") == "1")
    if path is None:
        pytest.skip("no C++ compiler to build the emulated CUDA engine with")
    emulated = Emulated(load(path))
    try:
        with replace(emulated):
            yield emulated
    finally:
        select_method("auto")


@dataclass
class Copy:
    to: Tensor
    values: Tensor
    done: bool = False
    known: bool = False  # to the host

    def run(self) -> None:
        if not self.done:
            self.to.copy_(self.values)
        self.done = True


@dataclass
class Event:
    clock: dict[int, int]
    copies: list[Copy]

    def synchronize(self) -> None:
        for copy in self.copies:
            copy.run()
            copy.known = True


@dataclass
class Stream:
    """``clock`` says how much of every stream, by its number, comes before what is queued next."""

    cuda_stream: int
    clock: dict[int, int] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)

    def tick(self) -> int:
        self.clock[self.cuda_stream] = self.clock.get(self.cuda_stream, 0) + 1
        return self.clock[self.cuda_stream]

    def wait_event(self, event: Event) -> None:
        for copy in event.copies:
            copy.run()
        for stream, time in event.clock.items():
            self.clock[stream] = max(time, self.clock.get(stream, 0))

    def comes_after(self, event: Event) -> bool:
        return all(self.clock.get(stream, 0) >= time for stream, time in event.clock.items())


class Watched:
    """The emulated engine; every piece of rows that a kernel reads is told to the runtime."""

    def __init__(self, functions: Any, runtime: Emulated) -> None:
        self._functions, self._runtime = functions, runtime

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._functions, name)

        def call(*arguments: Any) -> Any:
            rows = arguments[1] if name in ("validate", "pack", "Search") else None
            if name in ("validate", "pack"):
                self._runtime.use_rows(rows)
            made = function(*arguments)
            return Bound(made, rows, self._runtime) if name in ("Search", "Evaluation") else made

        return call


class Bound:
    def __init__(self, made: Any, rows: Any, runtime: Emulated) -> None:
        self._made, self._rows, self._runtime = made, rows, runtime

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._made, name)

        def call(*arguments: Any) -> Any:
            if name in ("run", "collect", "count"):
                self._runtime.use_rows(self._rows or arguments[0])
            return method(*arguments)

        return call


class Emulated(Runtime):
    """See above.

    Attributes:
        sizes: Of all allocations through ``allocate``.
        stream: The current one.
        captures: Whether it is being captured.
        pins: Tensors that count as pinned.
        full: Whether the device has no memory left.
    """

    def __init__(self, functions: Any) -> None:
        super().__init__(torch.device("cpu"), None)
        self.engine = Watched(functions, self)
        self.sizes: list[int] = []
        self.stream = Stream(1)
        self.captures = self.full = False
        self.pins: list[Tensor] = []
        self.kept: list[int] = []
        self._uses: list[tuple[int, int, Stream, int]] = []
        self._streams = 1

    @property
    def capability(self) -> str:
        return "0.0"

    def use(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def current_stream(self) -> Stream:
        return self.stream

    def new_stream(self) -> Stream:
        self._streams += 1
        return Stream(100 + self._streams)

    def record(self, stream: Stream) -> Event:
        stream.tick()
        return Event(dict(stream.clock), list(stream.copies))

    def capturing(self) -> bool:
        return self.captures

    def _empty(self, size: int) -> Tensor:
        if self.full and size > 8:
            raise torch.OutOfMemoryError("the device is full")
        self.sizes.append(size)
        return torch.full((size,), 0xFF, dtype=torch.uint8)  # NaN as floats, no key as keys

    def pinned(self, size: int) -> Tensor:
        return torch.full((size,), 0xFF, dtype=torch.uint8)

    def is_pinned(self, tensor: Tensor) -> bool:
        return any(tensor is one for one in self.pins)

    def use_rows(self, rows: tuple[int, int, int, int, str]) -> None:
        address, count, _, stride, _ = rows
        self._uses.append((address, address + count * stride, self.stream, self.stream.tick()))

    def copy(self, to: Tensor, values: Tensor, stream: Stream) -> None:
        begin, end = to.data_ptr(), to.data_ptr() + to.nbytes
        for first, last, user, time in self._uses:
            if first < end and begin < last:
                assert stream.clock.get(user.cuda_stream, 0) >= time, "a block is overwritten while it is searched"
        first, last = values.data_ptr(), values.data_ptr() + values.nbytes
        for copy in stream.copies:
            overlaps = copy.values.data_ptr() < last and first < copy.values.data_ptr() + copy.values.nbytes
            assert copy.known or not overlaps, "pinned memory is filled again before the host knows that it was copied"
        stream.tick()
        stream.copies.append(Copy(to, values))

    def keep(self, tensor: Tensor) -> None:
        self.kept.append(tensor.data_ptr())
