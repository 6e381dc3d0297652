"""Activation checkpointing: towers and decoders keep their inputs alone, and compute the rest again in the backward pass."""

from __future__ import annotations

__all__ = ["recompute_activations"]

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from iiae_fast.model import IIAE


def recompute_activations(model: IIAE) -> None:
    """Let every tower and decoder of a model forget its activations, in training mode.

    Values and gradients stay as they are, random numbers included. BatchNorm's moving statistics take in each batch once: the
    second computation leaves them alone.
    """
    parts = (
        model.exclusive_x,
        model.exclusive_y,
        model.shared_x,
        model.shared_y,
        model.joint,
        model.decoder_x,
        model.decoder_y,
    )
    for part in parts:
        part.forward = partial(_forgetful, part, part.forward)  # type: ignore[method-assign]


def _forgetful(part: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not part.training:
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_stay(part)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_stay(part: nn.Module) -> Iterator[None]:
    norms = [module for module in part.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]  # type: ignore[union-attr]
    for norm in norms:
        norm.momentum = 0.0  # new = old + 0 · (batch − old)
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
