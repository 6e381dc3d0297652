"""The networks' layers, with another way through bf16 on a CPU: oneDNN reaches its peak there, ATen around it does not.

Under ``torch.autocast("cpu", torch.bfloat16)`` these layers compute what their parents do, but

- the bias gradient is a sum of its own (oneDNN's takes up to 40 % of a transposed convolution's backward pass);
- the gradient of weights between small maps is one matrix product (a fifth faster; larger maps would need too much memory);
- a transposed convolution to few channels, which oneDNN runs at a sixth of its peak, is a 3×3 convolution to four times as many
  channels, whose outputs are then interleaved;
- dropout takes eight decisions from each 64-bit draw (ATen's Bernoulli draws one by one);
- the gradient that comes back through a flattened map is put into the map's own order (ATen's next two steps, on two orders at
  once, take five times as long as the copy).

Everywhere else they are their parents, bit for bit.
"""

from __future__ import annotations

__all__ = ["Conv2d", "ConvTranspose2d", "Dropout", "flatten"]

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STRIDE, _PADDING, _DILATION = [2, 2], [1, 1], [1, 1]
_FEW = 4  # output channels of a transposed convolution up to which it is done as a 3×3 convolution


def _fast(x: Tensor) -> bool:
    """Whether a layer goes the other way: bf16 autocast on a CPU, where a backward pass will follow."""
    return (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def _published(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Whether a layer is of the one kind that the published networks have."""
    kind = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    return kind == ((4, 4), (2, 2), (1, 1), (1, 1), 1) and layer.bias is not None


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``; see the module's text."""

    def forward(self, input: Tensor) -> Tensor:
        if _fast(input) and _published(self):
            return _convolve(input, self.weight, self.bias, False)
        return super().forward(input)


class ConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d``; see the module's text."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is None and _fast(input) and _published(self):
            return _convolve(input, self.weight, self.bias, True)
        return super().forward(input, output_size)


class Dropout(nn.Dropout):
    """``nn.Dropout``; see the module's text. Under the compiler it is its parent, which the compiler fuses."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.p > 0 and _fast(input) and not torch.compiler.is_compiling():
            dropped: Tensor = _Dropout.apply(input, self.p)  # type: ignore[no-untyped-call]
            return dropped
        return super().forward(input)


def flatten(x: Tensor) -> Tensor:
    """``torch.flatten(x, 1)``; see the module's text."""
    if x.dim() == 4 and _fast(x) and not torch.compiler.is_compiling():
        flat: Tensor = _Flatten.apply(x)  # type: ignore[no-untyped-call]
        return flat
    return torch.flatten(x, 1)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    out: Tensor = _Convolution.apply(x, weight, bias, transposed)  # type: ignore[no-untyped-call]
    return out


class _Convolution(torch.autograd.Function):
    """A 4×4 convolution of stride 2, or its transpose, in bf16; the gradients of fp32 weights are fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, transposed: bool) -> Tensor:
        x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        low, low_bias = weight.to(torch.bfloat16), bias.to(torch.bfloat16)
        ctx.save_for_backward(x, low)
        ctx.transposed, ctx.dtype = transposed, weight.dtype
        if transposed and weight.shape[1] <= _FEW:
            return _interleaved(x, low, low_bias)
        out: Tensor = torch.ops.aten.convolution(x, low, low_bias, _STRIDE, _PADDING, _DILATION, transposed, [0, 0], 1)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        small, large = (x, gradient) if ctx.transposed else (gradient, x)
        multiplied = _gains_by_product(small, large)
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight,
            [gradient.shape[1]],
            _STRIDE,
            _PADDING,
            _DILATION,
            ctx.transposed,
            [0, 0],
            1,
            [ctx.needs_input_grad[0], not multiplied, False],
        )
        if multiplied:
            dweight = _weight_gradient(small, large)
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, gradient.shape[1])  # summed over one axis; over three it is slower
        return dx, dweight.to(ctx.dtype), rows.sum(0).to(ctx.dtype), None


def _gains_by_product(small: Tensor, large: Tensor) -> bool:
    """Whether one matrix product makes the gradient of the weights between two maps faster than oneDNN does."""
    return small.shape[2] * small.shape[3] <= 64 and large.shape[1] >= 16


def _weight_gradient(small: Tensor, large: Tensor) -> Tensor:
    """``(C, K, 4, 4)`` from maps ``(B, C, H, W)`` and ``(B, K, 2H, 2W)`` in channels_last order; the one is a convolution's
    gradient and the other its input, or the other way round for a transposed one."""
    padded = F.pad(large.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    (batch, rows, columns, channels), strides = padded.shape, padded.stride()
    shape = (batch, rows // 2 - 1, columns // 2 - 1, 4, 4 * channels)  # four rows of four pixels under each pixel of the other
    windows = padded.as_strided(shape, (strides[0], 2 * strides[1], 2 * strides[2], strides[1], 1))
    product = small.permute(0, 2, 3, 1).flatten(0, 2).t() @ windows.reshape(-1, 16 * channels)
    return product.view(-1, 4, 4, channels).permute(0, 3, 1, 2)


def _interleaved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A transposed convolution as a 3×3 convolution to the four pixels that lie in one of the input's.

    Args:
        x: ``(B, C, H, W)``.
        weight: ``(C, K, 4, 4)``.
        bias: ``(K,)``.

    Returns:
        ``(B, K, 2H, 2W)`` in channels_last order.
    """
    inputs, outputs = weight.shape[:2]
    # Output 2i + a takes input i + d through row 1 - 2d + a of the kernel: with a row of zeros at each end, through row
    # 2 (1 - d) + a, of pairs counted from the last.
    pairs = F.pad(weight, (1, 1, 1, 1)).reshape(inputs, outputs, 3, 2, 3, 2).flip(2, 4)
    kernels = pairs.permute(3, 5, 1, 0, 2, 4).reshape(4 * outputs, inputs, 3, 3).contiguous(memory_format=torch.channels_last)
    pixels = torch.ops.aten.convolution(x, kernels, bias.repeat(4), [1, 1], _PADDING, _DILATION, False, [0, 0], 1)
    batch, _, height, width = pixels.shape
    rows = pixels.permute(0, 2, 3, 1).reshape(batch, height, width, 2, 2 * outputs)  # (B, H, W, a, (c, K))
    image: Tensor = rows.transpose(2, 3).reshape(batch, 2 * height, 2 * width, outputs).permute(0, 3, 1, 2)
    return image


class _Flatten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return torch.flatten(x, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.reshape(ctx.shape).contiguous(memory_format=torch.channels_last)


class _Dropout(torch.autograd.Function):
    """Zero with probability p, to the next of 65,536 steps, and scale what is left. Draws from torch's generator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)
        count, steps = x.numel(), min(round(p * 65536), 65535)
        if 256 * p == int(256 * p):  # a byte decides as well
            bits, low = 8, -128
        else:
            bits, low = 16, -32768
        drawn = torch.empty(-(-count * bits // 64), dtype=torch.int64).random_(-(2**63), None)
        words = drawn.view(torch.int8 if bits == 8 else torch.int16)[:count]
        keep = (words >= low + (steps >> (16 - bits))).as_strided(x.shape, x.stride())
        ctx.save_for_backward(keep)
        ctx.scale = 65536 / (65536 - steps)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None
