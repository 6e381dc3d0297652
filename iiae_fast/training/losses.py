"""Loss terms of the last steps, kept on the device so that no step waits for the host."""

from __future__ import annotations

__all__ = ["LossBuffer", "first_non_finite"]

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


class LossBuffer:
    """Rows of loss terms since the last log line, one per step.

    Args:
        capacity: Steps between two log lines.
        names: Terms of ``rows``, in order.
        rows: ``(n, terms)`` fp32 of an interval that a checkpoint broke off.
    """

    def __init__(self, capacity: int, names: Sequence[str] = (), rows: Tensor | None = None) -> None:
        self.names = list(names)
        self._rows = torch.empty(0, len(self.names)) if rows is None else rows
        self._count = len(self._rows)
        self._capacity = capacity + self._count  # the resumed run may log at other steps

    def append(self, named: Mapping[str, Tensor]) -> None:
        """Add one step's terms, without synchronizing."""
        if self._count == len(self._rows):
            self._grow(named)
        with torch.no_grad():
            torch.stack([named[name].float() for name in self.names], out=self._rows[self._count])
        self._count += 1

    def rows(self) -> Tensor:
        """``(n, terms)`` fp32 on the CPU; on a GPU this waits for the steps."""
        return self._rows[: self._count].cpu()

    def means(self) -> dict[str, float]:
        """Every term's mean over the rows, taken in float64."""
        return dict(zip(self.names, self.rows().double().mean(dim=0).tolist()))

    def clear(self) -> None:
        """Start the next interval."""
        self._count = 0

    def first_non_finite(self) -> tuple[str, float, int] | None:
        """Name and value of the first term that is not finite, and how many steps ago that was (0: the last step)."""
        rows = self.rows().numpy()
        bad = ~np.isfinite(rows)
        if not bad.any():
            return None
        row = int(bad.any(axis=1).argmax())
        # The total is bad whenever another term is: name it only when it stands alone.
        column = min(np.flatnonzero(bad[row]), key=lambda index: self.names[index] == "total")
        return self.names[column], float(rows[row, column]), len(rows) - 1 - row

    def _grow(self, named: Mapping[str, Tensor]) -> None:
        """Allocate on the device of the first step's terms, once."""
        self.names = self.names or list(named)
        rows = torch.zeros(self._capacity, len(self.names), device=named["total"].device)
        if self._count:
            rows[: self._count] = self._rows[: self._count]
        self._rows = rows


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity, if any."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None
