"""BatchNorm in training mode and the ReLU after it, on bf16 maps on a CPU.

n = (x − mean) / √(variance + ε) over the pixels of the batch, y = a(γ n + β) with a the (leaky) ReLU: two passes over the map
forward and two backward, in fp32 (``csrc/batch_norm``); PyTorch's operators need more, and round to bf16 in between. They are
ops, as the convolutions of ``iiae_fast.convolution`` are, and available where those are.
"""

from __future__ import annotations

__all__ = ["backward", "forward"]

import torch
from torch import Tensor

from iiae_fast import _C
from iiae_fast.errors import InputError
from iiae_fast.openmp import define_op, team


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    momentum: float,
    epsilon: float,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize by the batch's statistics, scale, activate.

    Args:
        x: ``(B, C, H, W)``, bf16, at least two pixels; in channels_last order it is not copied.
        weight, bias: γ and β, ``(C,)``, fp32.
        running_mean, running_variance: ``(C,)``, fp32, moved by ``momentum`` towards the batch's, the variance unbiased.
        momentum, epsilon: See above.
        slope: What the activation multiplies by where its input is not positive: 0 for a ReLU, 1 for none.

    Returns:
        y like x, in channels_last order; the batch's mean and 1 / √(variance + ε), ``(C,)``, fp32.

    Raises:
        InputError: Another shape or dtype.
    """
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.iiae_fast.batch_norm(
        x, weight, bias, running_mean, running_variance, momentum, epsilon, slope
    )
    return found


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse_deviation: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, like x, and of weight and bias, ``(C,)``, fp32.

    Args:
        gradient: Of y, bf16.
        x, weight, bias, slope: As in ``forward``.
        mean, inverse_deviation: What it returned.

    Raises:
        InputError: Another shape or dtype.
    """
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.iiae_fast.batch_norm_backward(
        gradient, x, weight, bias, mean, inverse_deviation, slope
    )
    return found


def _map(name: str, map: Tensor) -> Tensor:
    if map.dim() != 4 or map.dtype != torch.bfloat16 or map.numel() <= map.shape[1]:
        raise InputError(
            f"{name}: {map.dtype} of shape {tuple(map.shape)}; accepted is torch.bfloat16 of shape (B, C, H, W), two pixels "
            f"or more"
        )
    return map.contiguous(memory_format=torch.channels_last)


def _check_channels(channels: int, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.shape != (channels,) or not tensor.is_contiguous():
            raise InputError(
                f"{name}: {tensor.dtype} {tuple(tensor.shape)}; accepted is torch.float32 ({channels},), contiguous"
            )


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    momentum: float,
    epsilon: float,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    x = _map("x", x)
    channels = x.shape[1]
    _check_channels(channels, weight=weight, bias=bias, running_mean=running_mean, running_variance=running_variance)
    out, mean, inverse_deviation = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    _C.batch_norm.forward(
        x.numel() // channels,
        channels,
        x.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        mean.data_ptr(),
        inverse_deviation.data_ptr(),
        running_mean.data_ptr(),
        running_variance.data_ptr(),
        momentum,
        epsilon,
        slope,
        out.data_ptr(),
        *team(),
    )
    return out, mean, inverse_deviation


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse_deviation: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, gradient = _map("x", x), _map("gradient", gradient)
    channels = x.shape[1]
    if gradient.shape != x.shape:
        raise InputError(f"gradient: shape {tuple(gradient.shape)}; accepted is that of x, {tuple(x.shape)}")
    _check_channels(channels, weight=weight, bias=bias, mean=mean, inverse_deviation=inverse_deviation)
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
    _C.batch_norm.backward(
        x.numel() // channels,
        channels,
        x.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        mean.data_ptr(),
        inverse_deviation.data_ptr(),
        slope,
        gradient.data_ptr(),
        dx.data_ptr(),
        dweight.data_ptr(),
        dbias.data_ptr(),
        *team(),
    )
    return dx, dweight, dbias


def _fake(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A map and two numbers for each channel, which is what either op returns."""
    return torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(weight), torch.empty_like(weight)


define_op(
    "batch_norm",
    "(Tensor x, Tensor weight, Tensor bias, Tensor(a!) running_mean, Tensor(b!) running_variance, float momentum, "
    "float epsilon, float slope) -> (Tensor, Tensor, Tensor)",
    _forward,
    lambda x, weight, *others: _fake(x, weight),
)
define_op(
    "batch_norm_backward",
    "(Tensor gradient, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor inverse_deviation, float slope) "
    "-> (Tensor, Tensor, Tensor)",
    _backward,
    lambda gradient, x, weight, *others: _fake(x, weight),
)
