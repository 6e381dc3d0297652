"""The next batches, rendered and moved to the device by one background thread while the current step runs."""

from __future__ import annotations

__all__ = ["DeviceBatch", "prefetch"]

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from iiae_fast.data.types import PairedDataset

Entry = tuple[np.ndarray, "int | None"]  # indices and epoch, as PairedDataset.batch takes them


class DeviceBatch(NamedTuple):
    """B pairs on the device.

    Attributes:
        x: uint8 ``(B, C, H, W)`` in channels_last order, or float32 ``(B, F)``.
        y: Alike.
        labels: int64 ``(B,)`` or None.
    """

    x: Tensor
    y: Tensor
    labels: Tensor | None


Moved = tuple[DeviceBatch, "torch.cuda.Event | None"]  # the event says when the copies are done


def prefetch(
    dataset: PairedDataset, plan: Iterable[Entry], device: torch.device, depth: int = 2
) -> Generator[DeviceBatch, None, None]:
    """Batches in the order of ``plan``; which thread made them, and when, changes nothing in them.

    Args:
        dataset: Where pairs come from; only the background thread touches it.
        plan: Indices and epoch of each batch; also consumed in the background.
        device: Where batches go. To a CUDA device they travel from pinned memory on a stream of their own.
        depth: Batches that are ready or being made while the caller works.

    Yields:
        Batches. Close the generator (``contextlib.closing``) to end the thread early. An error in ``dataset`` is raised where
        its batch was due.
    """
    entries = iter(plan)
    mover = _Mover(device)

    def load() -> Moved | None:
        entry = next(entries, None)
        return None if entry is None else mover.move(dataset, *entry)

    with ThreadPoolExecutor(1, thread_name_prefix="iiae-prefetch") as executor:
        waiting = deque(executor.submit(load) for _ in range(depth))
        try:
            while (loaded := waiting.popleft().result()) is not None:
                waiting.append(executor.submit(load))
                batch, ready = loaded
                if ready is not None:
                    _hand_over(batch, ready)
                yield batch
        finally:
            executor.shutdown(cancel_futures=True)


def _hand_over(batch: DeviceBatch, ready: torch.cuda.Event) -> None:
    """Let the current stream wait for the copies (the host does not), and keep their memory until it is done with them."""
    stream = torch.cuda.current_stream(batch.x.device)
    stream.wait_event(ready)
    for tensor in batch:
        if tensor is not None:
            tensor.record_stream(stream)


class _Mover:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def move(self, dataset: PairedDataset, indices: np.ndarray, epoch: int | None) -> Moved:
        x, y, labels = dataset.batch(indices, epoch)
        host = DeviceBatch(self._host(x), self._host(y), None if labels is None else self._host(labels))
        if self._stream is None:
            return host, None
        with torch.cuda.stream(self._stream):
            moved = [None if tensor is None else tensor.to(self._device, non_blocking=True) for tensor in host]
            return DeviceBatch._make(moved), self._stream.record_event()

    def _host(self, array: np.ndarray) -> Tensor:
        """A copy in torch's own memory, images in channels_last order.

        Torch aligns to 64 bytes in every run, numpy does not, and vector code may round by alignment. numpy makes the copy:
        torch would wake a second pool of OpenMP threads for it.
        """
        image = array.ndim == 4
        source = array.transpose(0, 2, 3, 1) if image else array
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        tensor = torch.empty(source.shape, dtype=dtype, pin_memory=self._stream is not None)
        np.copyto(tensor.numpy(), source)
        return tensor.permute(0, 3, 1, 2) if image else tensor
