"""Reconstruction losses of bf16 predictions on a CPU: loss and gradient in one pass, where PyTorch's operators make a dozen."""

from __future__ import annotations

__all__ = ["fits", "reconstruction"]

from typing import Any

import torch
from torch import Tensor

from iiae_fast import _C
from iiae_fast.autograd import once_differentiable
from iiae_fast.openmp import define_op, team


def fits(prediction: Tensor, target: Tensor, likelihood: str, activation: str | None) -> bool:
    """Whether these operands are of the kind that training on a CPU has: bf16 against fp32 or bytes, alike in memory."""
    if prediction.device.type != "cpu" or prediction.dtype != torch.bfloat16 or prediction.numel() == 0:
        return False
    if target.dtype not in (torch.float32, torch.uint8) or likelihood == "bernoulli" or activation == "sigmoid":
        return False
    whole = prediction.is_contiguous() or (
        prediction.dim() == 4 and prediction.is_contiguous(memory_format=torch.channels_last)
    )
    return whole and prediction.stride() == target.stride()


def reconstruction(prediction: Tensor, target: Tensor, likelihood: str, activation: str | None, weight: float) -> Tensor:
    """As ``reference.reconstruction``, to the rounding of single operations; operands that ``fits`` accepts.

    It can be differentiated once.
    """
    options = (likelihood == "gaussian", activation == "tanh", weight)
    if not (torch.is_grad_enabled() and prediction.requires_grad):
        return _compute(prediction, target, *options, False)[0]
    loss: Tensor = _Reconstruction.apply(prediction, target, *options)  # type: ignore[no-untyped-call]
    return loss


class _Reconstruction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, gaussian: bool, tanh: bool, weight: float) -> Tensor:
        loss, gradient = _compute(prediction, target, gaussian, tanh, weight, True)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return torch.ops.iiae_fast.reconstruction_cpu_scaled(gradient, dloss), None, None, None, None


def _compute(
    prediction: Tensor, target: Tensor, gaussian: bool, tanh: bool, weight: float, write: bool
) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = torch.ops.iiae_fast.reconstruction_cpu(prediction, target, gaussian, tanh, weight, write)
    return found


def _losses(
    prediction: Tensor, target: Tensor, gaussian: bool, tanh: bool, weight: float, write: bool
) -> tuple[Tensor, Tensor]:
    loss, gradient = _empty(prediction, target, gaussian, tanh, weight, write)
    samples = len(prediction)
    _C.reconstruction.compute(
        samples,
        prediction.numel() // samples,
        gaussian,
        tanh,
        weight,
        prediction.data_ptr(),
        target.data_ptr(),
        target.dtype == torch.uint8,
        loss.data_ptr(),
        gradient.data_ptr() if write else 0,
        *team(),
    )
    return loss, gradient


def _empty(prediction: Tensor, target: Tensor, gaussian: bool, tanh: bool, weight: float, write: bool) -> tuple[Tensor, Tensor]:
    gradient = torch.empty_like(prediction) if write else prediction.new_empty(0)
    return prediction.new_empty(len(prediction), dtype=torch.float32), gradient


def _scaled(gradient: Tensor, dloss: Tensor) -> Tensor:
    """The gradient times what comes back for each sample: a new tensor, as a retained graph needs the old one again."""
    out, scales = gradient.clone(), dloss.contiguous()
    samples = len(gradient)
    _C.reconstruction.scale(samples, gradient.numel() // samples, scales.data_ptr(), out.data_ptr(), *team())
    return out


define_op(
    "reconstruction_cpu",
    "(Tensor prediction, Tensor target, bool gaussian, bool tanh, float weight, bool write) -> (Tensor, Tensor)",
    _losses,
    _empty,
)
define_op(
    "reconstruction_cpu_scaled",
    "(Tensor gradient, Tensor dloss) -> Tensor",
    _scaled,
    lambda gradient, dloss: torch.empty_like(gradient),
)
