"""How kernels see a batch: as (B, C, P) with three strides, P being all positions of a feature map (1 for vectors)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# In which order a kernel walks a sample's elements i = 0, 1, …
CONTIGUOUS = 0  # c = i // P, p = i % P, and every tensor holds element i at address i
CHANNELS_LAST = 1  # c = i % C, p = i // C, and channels lie side by side in every tensor
STRIDED = 2  # c = i // P, p = i % P, at any address


class Planes(NamedTuple):
    """A tensor and its strides as (B, C, P), in elements."""

    tensor: Tensor
    stride_b: int
    stride_c: int
    stride_p: int

    @property
    def strides(self) -> tuple[int, int, int]:
        """As kernels take them."""
        return self[1:]


def planes(tensor: Tensor) -> Planes:
    """See ``(B, C)`` or ``(B, C, H, W)`` as (B, C, P). Copies only where a map's rows and columns do not merge."""
    if tensor.dim() == 2:
        return Planes(tensor, tensor.stride(0), tensor.stride(1), 1)
    height, width = tensor.shape[2:]
    stride_b, stride_c, stride_h, stride_w = tensor.stride()
    if width == 1:
        return Planes(tensor, stride_b, stride_c, stride_h)
    if height != 1 and stride_h != width * stride_w:
        return planes(tensor.contiguous())
    return Planes(tensor, stride_b, stride_c, stride_w)


def common_layout(*views: Planes) -> int:
    """The best order that suits all of several tensors with equal H and W."""
    positions = views[0].tensor.shape[2:].numel()

    def fits(contiguous: bool) -> bool:
        for tensor, _, stride_c, stride_p in views:
            many_channels, many_positions = tensor.shape[1] > 1, positions > 1
            if many_channels and stride_c != (positions if contiguous else 1):
                return False
            if contiguous and many_positions and stride_p != 1:
                return False
        return True

    return CONTIGUOUS if fits(True) else CHANNELS_LAST if fits(False) else STRIDED


def code_shape(head: Tensor) -> tuple[int, ...]:
    """Shape of a head's code: half its channels."""
    return (head.shape[0], head.shape[1] // 2, *head.shape[2:])


def empty_code(head: Tensor, layout: int = STRIDED) -> Tensor:
    """Room for a head's code, dense in the kernel's order."""
    order = torch.channels_last if layout == CHANNELS_LAST else torch.contiguous_format
    return torch.empty(code_shape(head), dtype=head.dtype, device=head.device, memory_format=order)


def empty_gradient(head: Tensor, needed: bool) -> Tensor:
    """Room for a head's gradient in the head's own layout; nothing when it is not needed."""
    return torch.empty_like(planes(head).tensor) if needed else head.new_empty(0)


def or_zeros(gradient: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An incoming gradient, or one broadcast zero for an output that nothing was computed from."""
    return like.new_zeros(()).expand(shape) if gradient is None else gradient
