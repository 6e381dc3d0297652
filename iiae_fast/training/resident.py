"""Training pairs that stay on the device: batches are gathered, mirrored and shifted there."""

from __future__ import annotations

__all__ = ["ResidentPairs", "make_resident"]

from collections.abc import Generator, Iterable

import numpy as np
import torch
from torch import Tensor

from iiae_fast.data.types import PairedDataset, ResidentArrays
from iiae_fast.errors import ConfigError
from iiae_fast.training.prefetch import DeviceBatch

HOST_BOUND = 2**29
"""Bytes of pairs that ``"auto"`` keeps in the memory of a CPU (512 MiB); on a GPU it is half of what is free."""


def make_resident(dataset: PairedDataset, device: torch.device, mode: str) -> ResidentPairs | None:
    """The pairs on the device, or None where they stream.

    Args:
        dataset: Training pairs.
        device: Of the model.
        mode: ``"auto"``, ``"on"`` or ``"off"``; see ``TrainingOptions``.

    Raises:
        ConfigError: They shall be resident, and are made anew in every epoch.
    """
    fetch = getattr(dataset, "resident", None)
    if mode == "off" or (fetch is None and mode == "auto"):
        return None
    limit = None if mode == "on" else HOST_BOUND
    if limit is not None and device.type == "cuda":
        limit = torch.cuda.mem_get_info(device)[0] // 2
    arrays = None if fetch is None else fetch(limit)
    if arrays is None:
        if mode == "on":
            raise ConfigError("resident='on': these pairs are drawn anew in every epoch; accepted are 'auto' and 'off'")
        return None
    return ResidentPairs(arrays, device)


class ResidentPairs:
    """N pairs on a device.

    Args:
        arrays: The pairs.
        device: Where to put them.
    """

    def __init__(self, arrays: ResidentArrays, device: torch.device) -> None:
        self._device, self._draw = device, arrays.draw
        self._images = arrays.x.ndim == 4
        self._x, self._y = (self._stored(values) for values in (arrays.x, arrays.y))
        self._labels = None if arrays.labels is None else torch.from_numpy(arrays.labels).to(device)

    def batches(self, plan: Iterable[tuple[np.ndarray, int | None]]) -> Generator[DeviceBatch, None, None]:
        """Batches in the order of ``plan``, the very ones that streaming gives."""
        for indices, epoch in plan:
            yield self.batch(indices, epoch)

    def batch(self, indices: np.ndarray, epoch: int | None) -> DeviceBatch:
        """One batch; nothing waits for the device."""
        rows = self._moved(indices)
        labels = None if self._labels is None else self._labels.index_select(0, rows)
        drawn = None if self._draw is None or epoch is None else self._draw(indices, epoch)
        if drawn is None:
            x, y = (self._shown(values.index_select(0, rows)) for values in (self._x, self._y))
            return DeviceBatch(x, y, labels)
        flip, shift = (self._moved(values) for values in drawn)
        height, width = self._x.shape[1:3]
        down = _reflected(height, shift[:, 0])
        right = _reflected(width, shift[:, 1])
        right = torch.where(flip[:, None], right.flip(1), right)
        at = (rows[:, None, None], down[:, :, None], right[:, None, :])
        x, y = (self._shown(values[at]) for values in (self._x, self._y))
        return DeviceBatch(x, y, labels)

    def _stored(self, values: np.ndarray) -> Tensor:
        """Images as (N, H, W, C), so that a gathered batch is in channels_last order."""
        if self._images:
            values = values.transpose(0, 2, 3, 1)
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def _shown(self, values: Tensor) -> Tensor:
        return values.permute(0, 3, 1, 2) if self._images else values

    def _moved(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor if self._device.type == "cpu" else tensor.pin_memory().to(self._device, non_blocking=True)


def _reflected(size: int, shift: Tensor) -> Tensor:
    """Positions shift … shift + size − 1 of an axis continued by reflection at both ends: (B, size)."""
    last = size - 1
    return last - (last - (torch.arange(size, device=shift.device) + shift[:, None]).abs()).abs()
