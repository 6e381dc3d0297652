"""Philox on a CPU as one op: as PyTorch's operators it is two hundred calls on 64-bit numbers."""

from __future__ import annotations

__all__ = ["uniforms"]

from collections.abc import Sequence

import torch
from torch import Tensor

from iiae_fast import _C
from iiae_fast.openmp import define_op, team


def uniforms(seed: Tensor, streams: Sequence[int], sizes: Sequence[int], least: float) -> Tensor:
    """``(2, sum of sizes)`` fp32: the uniform numbers of Box–Muller, of one stream after the other (``reference.uniforms``).

    Args:
        seed: int64, one element, on the CPU.
        streams, sizes: Of each stream its number and how many elements, from 0 on.
        least: The first of the two numbers is at least that.
    """
    found: Tensor = torch.ops.iiae_fast.philox_uniforms(seed, streams, sizes, least)
    return found


def _uniforms(seed: Tensor, streams: Sequence[int], sizes: Sequence[int], least: float) -> Tensor:
    out = torch.empty(2, sum(sizes), dtype=torch.float32, device=seed.device)
    start = 0
    for stream, size in zip(streams, sizes, strict=True):
        first, second = (row.data_ptr() + start * out.element_size() for row in out)
        _C.philox.uniforms(seed.data_ptr(), stream, size, least, first, second, *team())
        start += size
    return out


define_op(
    "philox_uniforms",
    "(Tensor seed, SymInt[] streams, SymInt[] sizes, float least) -> Tensor",
    _uniforms,
    lambda seed, streams, sizes, least: torch.empty(2, sum(sizes), dtype=torch.float32, device=seed.device),
)
