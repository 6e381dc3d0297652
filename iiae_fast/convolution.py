"""The published networks' convolutions in bf16 on a CPU: 4×4, stride 2, one pixel of padding.

Such a layer connects a *large* map, twice as high and wide, with a *small* one. A convolution goes ``down`` from the large map
to the small one, and its input's gradient ``up``; a transposed convolution goes up, and its input's gradient down. One weight,
``(C_small, C_large, 4, 4)``, is what PyTorch has for either, and the gradient of weights is the same sum for both.

The kernels (``csrc/convolution``) multiply pairs of bf16 and add in fp32 (AVX-512 BF16), read neighbouring pixels where they
lie instead of copying windows, and run on PyTorch's own threads. They are ops, ``torch.ops.iiae_fast.convolution_*``, opaque to
``torch.compile``. They have no gradients of their own: a layer puts them together (``iiae_fast.layers``). Where ``available()``
is false, layers are PyTorch's.
"""

from __future__ import annotations

__all__ = ["available", "bias_gradient", "down", "fits", "up", "weight_gradient"]

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from iiae_fast import _C
from iiae_fast.errors import InputError
from iiae_fast.openmp import define_op, entry_point, team


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available() -> bool:
    """Whether layers should take these kernels: on processors with AVX-512 BF16, but for those with AMX, which oneDNN uses."""
    return _suitable() and (entry_point() != 0 or torch.get_num_threads() == 1)


def fits(map: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> bool:
    """Whether a layer's operands are of the kind that these kernels take; see ``down`` and ``up``."""
    if map.dim() != 4 or map.numel() == 0 or map.dtype not in (torch.float32, torch.bfloat16):
        return False
    if any(tensor is not None and tensor.dtype != torch.float32 for tensor in (weight, bias)) or not _near(weight):
        return False
    height, width = map.shape[2:]
    return width % 4 == 0 if transposed else height % 2 == 0 and width % 8 == 0


def down(large: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """From the large map to the small one.

    Args:
        large: ``(B, C_large, 2H, 2W)``, bf16, W a multiple of 4; in channels_last order it is not copied.
        weight: ``(C_small, C_large, 4, 4)``, fp32, rounded to bf16 on the way.
        bias: ``(C_small,)``, fp32, or None.

    Returns:
        ``(B, C_small, H, W)``, bf16, in channels_last order.

    Raises:
        InputError: Another shape or dtype.
    """
    out: Tensor = torch.ops.iiae_fast.convolution_down(large, weight, bias)
    return out


def up(small: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """From the small map to the large one: ``(B, C_small, H, W)`` to ``(B, C_large, 2H, 2W)``; otherwise as ``down``.

    To four large channels and fewer, an infinite number reaches a pixel more each way than it does by the formula.
    """
    out: Tensor = torch.ops.iiae_fast.convolution_up(small, weight, bias)
    return out


def weight_gradient(small: Tensor, large: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weight, from a layer's input and its output's gradient, in the order of their maps.

    Args:
        small: ``(B, C_small, H, W)``, bf16, W a multiple of 4.
        large: ``(B, C_large, 2H, 2W)``, bf16.
        weight: ``(C_small, C_large, 4, 4)``; only its shape and strides are looked at.

    Returns:
        fp32, with the shape and strides of ``weight``. The same, bit for bit, for the same number of threads.

    Raises:
        InputError: Another shape or dtype.
    """
    out: Tensor = torch.ops.iiae_fast.convolution_weight_gradient(small, large, weight)
    return out


def bias_gradient(gradient: Tensor) -> Tensor:
    """The sum ``(C,)``, fp32, of an output's gradient ``(B, C, H, W)``, bf16, over all pixels."""
    out: Tensor = torch.ops.iiae_fast.convolution_bias_gradient(gradient)
    return out


@cache
def _suitable() -> bool:
    return _C.convolution.instruction_sets()[0] != "scalar" and not _C.convolution.has_matrix_units()


def _near(weight: Tensor) -> bool:
    """Whether sixteen channels lie within what the processor addresses in 32 bits."""
    return max(weight.stride()) < 2**27


def _pixels(name: str, map: Tensor) -> Tensor:
    """A map as the kernels read it: (B, H, W, C) in memory."""
    if map.dim() != 4 or map.dtype != torch.bfloat16:
        raise InputError(f"{name}: {map.dtype} of shape {tuple(map.shape)}; accepted is torch.bfloat16 of shape (B, C, H, W)")
    return map.contiguous(memory_format=torch.channels_last)


def _sizes(small: Sequence[int], large: Sequence[int], weight: Tensor) -> tuple[int, int, int, int, int]:
    """Of both maps, as the kernels take them: batch, height and width of the small map, channels of either."""
    batch, channels, height, width = small
    fitting = tuple(large) == (batch, large[1], 2 * height, 2 * width) and weight.shape == (channels, large[1], 4, 4)
    if not fitting or width % 4 or 0 in (*small, *large):
        raise InputError(
            f"maps {tuple(small)} and {tuple(large)} with a weight {tuple(weight.shape)}: accepted are (B, C, H, W) and "
            f"(B, K, 2H, 2W), none of them 0, W a multiple of 4, with (C, K, 4, 4)"
        )
    return batch, height, width, channels, large[1]


def _down_shape(large: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
    return large.shape[0], weight.shape[0], large.shape[2] // 2, large.shape[3] // 2


def _up_shape(small: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
    return small.shape[0], weight.shape[1], 2 * small.shape[2], 2 * small.shape[3]


def _convolve(kernel: Any, map: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, sizes: Sequence[int]) -> Tensor:
    if weight.dtype != torch.float32 or not _near(weight):
        raise InputError(f"weight: {weight.dtype} with strides {weight.stride()}; accepted is torch.float32, below 2**27")
    if bias is not None and (bias.dtype != torch.float32 or bias.shape != out.shape[1:2]):
        raise InputError(f"bias: {bias.dtype} {tuple(bias.shape)}; accepted is torch.float32 {tuple(out.shape[1:2])}")
    bias = bias if bias is None else bias.contiguous()
    address = 0 if bias is None else bias.data_ptr()
    kernel(sizes, map.data_ptr(), weight.data_ptr(), weight.stride(), address, out.data_ptr(), *team())
    return out


def _empty_map(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=like.device, memory_format=torch.channels_last)


def _down(large: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    large, shape = _pixels("large", large), _down_shape(large, weight)
    sizes = _sizes(shape, large.shape, weight)
    return _convolve(_C.convolution.down, large, weight, bias, _empty_map(shape, large), sizes)


def _up(small: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    small, shape = _pixels("small", small), _up_shape(small, weight)
    sizes = _sizes(small.shape, shape, weight)
    return _convolve(_C.convolution.up, small, weight, bias, _empty_map(shape, small), sizes)


def _weight_gradient(small: Tensor, large: Tensor, weight: Tensor) -> Tensor:
    small, large = _pixels("small", small), _pixels("large", large)
    sizes = _sizes(small.shape, large.shape, weight)
    out = torch.empty_like(weight, dtype=torch.float32)
    _C.convolution.weight_gradient(sizes, small.data_ptr(), large.data_ptr(), out.data_ptr(), out.stride(), *team())
    return out


def _bias_gradient(gradient: Tensor) -> Tensor:
    gradient = _pixels("gradient", gradient)
    channels = gradient.shape[1]
    out = torch.empty(channels, dtype=torch.float32, device=gradient.device)
    _C.convolution.channel_sums(gradient.data_ptr(), gradient.numel() // channels, channels, out.data_ptr(), *team())
    return out


define_op(
    "convolution_down",
    "(Tensor large, Tensor weight, Tensor? bias) -> Tensor",
    _down,
    lambda large, weight, bias: _empty_map(_down_shape(large, weight), large),
)
define_op(
    "convolution_up",
    "(Tensor small, Tensor weight, Tensor? bias) -> Tensor",
    _up,
    lambda small, weight, bias: _empty_map(_up_shape(small, weight), small),
)
define_op(
    "convolution_weight_gradient",
    "(Tensor small, Tensor large, Tensor weight) -> Tensor",
    _weight_gradient,
    lambda small, large, weight: torch.empty_like(weight, dtype=torch.float32),
)
define_op(
    "convolution_bias_gradient",
    "(Tensor gradient) -> Tensor",
    _bias_gradient,
    lambda gradient: gradient.new_empty(gradient.shape[1], dtype=torch.float32),
)
