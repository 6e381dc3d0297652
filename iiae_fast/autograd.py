"""What the backward passes written here share."""

from __future__ import annotations

__all__ = ["once_differentiable"]

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable as _once_differentiable


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.autograd.function.once_differentiable``, which also refuses where the incoming gradient is a constant.

    There PyTorch's own lets the second derivative be zero, silently: that of a sum by a layer's weights, for instance.
    """
    plain = _once_differentiable(backward)

    @functools.wraps(backward)
    def wrapper(ctx: Any, *gradients: Any) -> Any:
        found = plain(ctx, *gradients)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return found
        outputs = found if isinstance(found, tuple) else (found,)
        refused = torch._C._functions.DelayedError(
            b"trying to differentiate twice a function that was marked with @once_differentiable", len(outputs)
        )
        return refused(*(one.detach().requires_grad_() if isinstance(one, Tensor) else one for one in outputs))

    return wrapper
