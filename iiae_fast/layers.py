"""The networks' layers, with another way through bf16 on a CPU, where ATen's and oneDNN's stay far below the processor's peak.

Under ``torch.autocast("cpu", torch.bfloat16)`` these layers compute what their parents do, but

- convolutions of the published kind are kernels of our own where the processor has AVX-512 BF16 (``iiae_fast.convolution``);
- BatchNorm and the activation after it are one operation, on the same processors (``iiae_fast.batch_norm``);
- dropout takes eight decisions from each 64-bit draw (ATen's Bernoulli draws one by one);
- the gradient that comes back through a flattened map is put into the map's own order (ATen's next two steps, on two orders at
  once, take five times as long as the copy).

Everywhere else they are their parents, bit for bit.
"""

from __future__ import annotations

__all__ = ["BatchNorm2d", "Conv2d", "ConvTranspose2d", "Dropout", "flatten"]

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iiae_fast import batch_norm, convolution
from iiae_fast.autograd import once_differentiable


def _fast(x: Tensor) -> bool:
    """Whether a layer goes the other way: bf16 autocast on a CPU, where a backward pass will follow."""
    return (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def _ours(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> bool:
    """Whether a layer is of the one kind that the published networks have, and our kernels take it."""
    kind = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation)
    if kind != ((4, 4), (2, 2), (1, 1), (0, 0), (1, 1)) or (layer.groups, layer.padding_mode) != (1, "zeros"):
        return False
    if layer.bias is None:
        return False
    return convolution.available() and convolution.fits(x, layer.weight, layer.bias, isinstance(layer, nn.ConvTranspose2d))


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``; see the module's text."""

    def forward(self, input: Tensor) -> Tensor:
        if _fast(input) and _ours(self, input):
            return _convolve(input, self.weight, self.bias, False)
        return super().forward(input)


class ConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d``; see the module's text."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is None and _fast(input) and _ours(self, input):
            return _convolve(input, self.weight, self.bias, True)
        return super().forward(input, output_size)


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that can do the activation after it; see the module's text."""

    def activated(self, x: Tensor, slope: float, dropout: nn.Module | None = None) -> Tensor:
        """The leaky ReLU of the normalized map, with dropout between the two if wanted; slope 0 is the ReLU."""
        if not self._ours(x):
            x = self(x) if dropout is None else dropout(self(x))
            return F.relu(x, inplace=True) if slope == 0 else F.leaky_relu(x, slope, inplace=True)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        moved = (self.running_mean, self.running_var, self.momentum, self.eps)
        out: Tensor = _BatchNorm.apply(x, self.weight, self.bias, *moved, slope)  # type: ignore[no-untyped-call]
        if dropout is not None:
            out = dropout(out)  # what it scales keeps its sign: either may come first
        return out

    def _ours(self, x: Tensor) -> bool:
        """In training mode with all that the published networks' have."""
        if not (self.training and _fast(x) and x.dtype == torch.bfloat16 and x.dim() == 4 and x.numel() > x.shape[1]):
            return False
        kept = (self.weight, self.bias, self.running_mean, self.running_var)
        if any(tensor is None or tensor.dtype != torch.float32 or not tensor.is_contiguous() for tensor in kept):
            return False
        if self.momentum is None or self._forward_hooks or self._forward_pre_hooks:
            return False
        found: bool = convolution.available()
        return found


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
    """A 4×4 convolution of stride 2, or its transpose, in bf16; weights and their gradients are fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, transposed: bool) -> Tensor:
        x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.transposed = transposed
        return convolution.up(x, weight, bias) if transposed else convolution.down(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        small, large = (x, gradient) if ctx.transposed else (gradient, x)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = convolution.down(gradient, weight, None) if ctx.transposed else convolution.up(gradient, weight, None)
        return dx, convolution.weight_gradient(small, large, weight), convolution.bias_gradient(gradient), None


class _BatchNorm(torch.autograd.Function):
    """BatchNorm in training mode and its activation; moves the running statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *others: Any) -> Tensor:
        out, mean, inverse_deviation = batch_norm.forward(x, weight, bias, *others)
        ctx.save_for_backward(x, weight, bias, mean, inverse_deviation)
        ctx.slope = others[-1]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse_deviation = ctx.saved_tensors
        gradients = batch_norm.backward(gradient, x, weight, bias, mean, inverse_deviation, ctx.slope)
        return *gradients, None, None, None, None, None


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
        drawn = torch.empty(-(-count * bits // 64), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        words = drawn.view(torch.int8 if bits == 8 else torch.int16)[:count]
        keep = (words >= low + (steps >> (16 - bits))).as_strided(x.shape, x.stride())
        ctx.save_for_backward(keep)
        ctx.scale = 65536 / (65536 - steps)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None
