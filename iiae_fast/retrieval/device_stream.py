"""Rows of host memory or of a file, brought to the device block by block while the block before is worked on.

There are two places for a block on the device, and two in pinned host memory. A stream of its own copies block i into place
i % 2 once all work on block i - 2 is done (an event of the caller's stream), and the caller's stream starts on block i once it
has come (an event of the copying stream). Meanwhile the host reads the next block from the file.
"""

from __future__ import annotations

__all__ = ["HostRows"]

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iiae_fast.errors import InputError
from iiae_fast.retrieval.database import Block, Database, forget_pages
from iiae_fast.retrieval.device_rows import DeviceRows, lift
from iiae_fast.retrieval.inputs import Rows, check_values, engine_dtype
from iiae_fast.retrieval.runtime import Runtime

_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_TORCH_DTYPES |= {"uint8": torch.uint8, "int8": torch.int8}


class HostRows:
    """A database that stays in host memory.

    Args:
        rows: As ``as_rows`` gives them. A ``np.memmap`` is never held as a whole.
        pinned: The tensor that they are, if it is in pinned memory: it is copied from directly.
        metric: Decides what is checked and lifted.
        threads: For lifting.
        block_limit: Bytes that one block may take on the device; there are two of them.
        runtime: Where they go.
    """

    def __init__(
        self, rows: Rows, pinned: Tensor | None, metric: str, threads: int, block_limit: int, runtime: Runtime
    ) -> None:
        if len(rows) == 0:
            raise InputError(f"database has shape {tuple(rows.array.shape)}; accepted is at least one row")
        self.dtype, self.dim, self.metric = rows.dtype, rows.dim, metric
        self._rows, self._threads, self._limit, self._runtime = rows, threads, block_limit, runtime
        self._pinned = pinned.detach() if pinned is not None and pinned.is_contiguous() and not self._lifts else None
        self.columns = rows.dim // 2 * 3 if metric == "gaussian_kl" else rows.dim
        self._kept_dtype = _TORCH_DTYPES[engine_dtype(metric, rows.dtype)]
        self._row_bytes = self.columns * self._kept_dtype.itemsize
        self.step = min(len(rows), max(1, block_limit // self._row_bytes))
        self._staging: list[Tensor] = []
        self._stream: Any = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _lifts(self) -> bool:
        return self.metric.startswith("gaussian")

    @property
    def device_bytes(self) -> int:
        """What ``on_device`` takes of the device."""
        return min(2, -(-len(self) // self.step)) * self.step * self._row_bytes

    def blocks(self, threads: int) -> Iterator[Block]:
        """All rows in order, checked, in host memory."""
        yield from Database(self._rows, self.metric, threads, copy=False, memory_limit=self._limit).blocks(threads)

    def check(self, bad: int) -> None:
        """Raise ``InputError`` for a row that the engine refused."""
        one = np.require(self._rows.array[bad : bad + 1], requirements=["C", "A"])
        check_values(one, self.dtype, self.metric, "database", bad, self._threads)

    def on_device(self, first_bad: Tensor | None) -> Generator[tuple[int, DeviceRows], None, None]:
        """All rows in order: the index of the first one of a block, and the block. It is valid until the next one is asked for.

        Args:
            first_bad: ``(1,)`` int64 on the device, which is lowered to the index of the first row that the engine refuses;
                None if they have been looked at before. (Rows that are lifted are checked on the way.)
        """
        runtime, count = self._runtime, len(self)
        blocks = -(-count // self.step)
        if self._stream is None:
            self._stream = runtime.new_stream()
        current = runtime.current_stream()
        memory = runtime.allocate(self.device_bytes, "streamed blocks of the database", "lower memory_limit")
        places = memory.view(self._kept_dtype).view(min(2, blocks), self.step, self.columns)
        done = [runtime.record(current)] * 2  # what had the memory before is done, too
        copied: list[Any] = [None, None]
        try:
            for number in range(blocks):
                slot, start = number % 2, number * self.step
                stop = min(start + self.step, count)
                place = places[slot, : stop - start]
                values = self._staged(start, stop, slot, copied[slot])
                self._stream.wait_event(done[slot])
                runtime.copy(place, values, self._stream)
                copied[slot] = runtime.record(self._stream)
                current.wait_event(copied[slot])
                rows = DeviceRows(place, engine_dtype(self.metric, self.dtype))
                if first_bad is not None and not self._lifts:
                    runtime.engine.validate(self.metric, rows.argument(), start, first_bad.data_ptr(), current.cuda_stream)
                yield start, rows
                done[slot] = runtime.record(current)
        finally:
            # Nobody else gets the device's memory, nor is pinned memory filled again, before the copies are done.
            for event in copied:
                if event is not None:
                    current.wait_event(event)
                    event.synchronize()

    def _staged(self, start: int, stop: int, slot: int, copied: Any) -> Tensor:
        """Rows in pinned memory, in the form that the engine takes."""
        if self._pinned is not None:
            return self._pinned[start:stop]
        if not self._staging:
            self._staging = [self._runtime.pinned(self.step * self._row_bytes) for _ in range(2)]
        if copied is not None:
            copied.synchronize()  # the copy before the last has read this place
        array = np.require(self._rows.array[start:stop], requirements=["C", "A"])
        if self._lifts:
            array = lift(array, self.dtype, self.metric, "database", start, self._threads)
        staged = self._staging[slot].view(self._kept_dtype).view(self.step, self.columns)[: stop - start]
        kept = staged.view(torch.uint16) if self.dtype == "bfloat16" and not self._lifts else staged
        np.copyto(kept.numpy(), array)
        if isinstance(self._rows.array, np.memmap):
            del array
            forget_pages(self._rows.array)
        return staged
