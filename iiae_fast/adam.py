"""Adam on a CPU as one call, where PyTorch's fused step makes one for every parameter and copies channels_last gradients."""

from __future__ import annotations

__all__ = ["Adam"]

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from iiae_fast import _C
from iiae_fast.errors import InputError
from iiae_fast.openmp import define_op, team


class Adam(torch.optim.Adam):
    """``torch.optim.Adam`` for fp32 parameters on a CPU, to the rounding of single operations.

    Kingma and Ba: Adam: A Method for Stochastic Optimization, ICLR 2015. State and its names are those of the parent, so that
    either can go on where the other stopped.

    Args:
        parameters: fp32, on the CPU, contiguous or in channels_last order.
        lr, betas, eps: See ``torch.optim.Adam``.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: Computes the gradients first, and the loss, which is returned.

        Raises:
            InputError: A parameter or its gradient is of another dtype, on another device, or in another order of memory.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lists: tuple[list[Tensor], ...] = ([], [], [], [], [])
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                found = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["step"])
                for tensors, tensor in zip(lists, found):
                    tensors.append(tensor)
            if lists[0]:
                torch.ops.iiae_fast.adam_(*lists, float(group["lr"]), *group["betas"], group["eps"])
        return loss


def _update(
    parameters: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    gradients = [
        gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    addresses = []
    for parameter, gradient, mean, square, step in zip(parameters, gradients, means, squares, steps, strict=True):
        if not (_whole(parameter) and step.dtype == torch.float32):
            raise InputError(f"{_said(parameter)}: accepted is torch.float32, contiguous or in channels_last order")
        for other in (gradient, mean, square):
            if other.dtype != torch.float32 or other.shape != parameter.shape or other.stride() != parameter.stride():
                raise InputError(f"gradient or moment {_said(other)}: accepted is what the parameter is, {_said(parameter)}")
        places = (parameter.data_ptr(), gradient.data_ptr(), mean.data_ptr(), square.data_ptr(), step.data_ptr())
        addresses.append((*places, parameter.numel()))
    _C.adam.update(addresses, lr, beta1, beta2, eps, *team())


def _whole(parameter: Tensor) -> bool:
    """Whether its numbers lie one after the other."""
    if parameter.dtype != torch.float32:
        return False
    return parameter.is_contiguous() or (parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last))


def _said(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} with strides {tensor.stride()}"


define_op(
    "adam_",
    "(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] means, Tensor(c!)[] squares, Tensor(d!)[] steps, float lr, "
    "float beta1, float beta2, float eps) -> ()",
    _update,
    lambda *_: None,
)
