"""The total-correlation penalty of β-TCVAE, with its gradients, beside the usual code that holds a B × B × D tensor."""

from __future__ import annotations

__all__ = ["cases"]

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from iiae_fast import kernels
from iiae_fast.bench.ops import Operation, contestants, wrong
from iiae_fast.bench.registry import Case, Settings, Work

_DATASET = 60_000


def cases(settings: Settings) -> Iterator[Case]:
    """Forward with backward."""
    for batch, size in ((128, 64),) if settings.quick else ((128, 64), (512, 128)):
        yield _case(settings, batch, size)


def plain(z: Tensor, head: Tensor) -> tuple[Tensor]:
    """As it is usually written (disentanglement libraries): one B × B × D tensor of log-densities."""
    mean, logvar = head.chunk(2, dim=1)
    logvar = logvar.clamp(-14.0, 9.21035)
    density = -0.5 * (math.log(2 * math.pi) + logvar + (z[:, None] - mean) ** 2 / logvar.exp())  # (B, B, D)
    joint = density.sum(2).logsumexp(1) - math.log(len(z) * _DATASET)
    marginals = (density.logsumexp(1) - math.log(len(z) * _DATASET)).sum(1)
    return ((joint - marginals).mean(),)


def _case(settings: Settings, batch: int, size: int) -> Case:
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    head = torch.randn(batch, 2 * size, generator=generator, device=settings.device).requires_grad_()
    z = torch.randn(batch, size, generator=generator, device=settings.device).requires_grad_()
    operation = Operation(
        lambda backend: (kernels.total_correlation(z, head, _DATASET),),
        lambda: plain(z, head),
        (z, head),
        (torch.ones((), device=settings.device),),
    )

    def check(found: tuple[Tensor, ...]) -> str:
        exact = [one.detach().double().requires_grad_() for one in (z, head)]
        value = plain(*exact)
        expected = (value[0].detach(), *torch.autograd.grad(value, exact))
        return wrong(found, expected, ("total correlation", "gradient of z", "gradient of the head"), torch.float32)

    pairs = batch * batch * size
    work = Work(4 * (2 * z.numel() + 2 * head.numel()), 30 * pairs, batch, "samples")
    entrants = [one for one in contestants(operation, settings, settings.device == "cuda") if one.name != "triton"]
    name = f"forward + backward, fp32, batch {batch}, {size} dimensions"
    return Case(name, entrants, check, work, {"batch": batch, "dim": size})
