"""The HSIC penalty between two codes, with its gradients, beside the usual code that centres B × B kernel matrices."""

from __future__ import annotations

__all__ = ["cases"]

from collections.abc import Iterator

import torch
from torch import Tensor

from iiae_fast import kernels
from iiae_fast.bench.ops import Operation, contestants, wrong
from iiae_fast.bench.registry import Case, Settings, Work

_BANDWIDTH = 4.0


def cases(settings: Settings) -> Iterator[Case]:
    """Forward with backward."""
    for batch in (128,) if settings.quick else (128, 1024):
        yield _case(settings, batch)


def plain(a: Tensor, b: Tensor) -> tuple[Tensor]:
    """tr(K H L H) / (n − 1)² as the definition says it."""
    n = len(a)
    centring = torch.eye(n, dtype=a.dtype, device=a.device) - 1 / n
    k, l = ((-0.5 * _square_distances(points) / _BANDWIDTH**2).exp() for points in (a, b))
    return (torch.trace(k @ centring @ l @ centring) / (n - 1) ** 2,)


def _square_distances(points: Tensor) -> Tensor:
    return ((points[:, None] - points) ** 2).sum(2)


def _case(settings: Settings, batch: int) -> Case:
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    a, b = (torch.randn(batch, size, generator=generator, device=settings.device).requires_grad_() for size in (8, 64))
    operation = Operation(
        lambda backend: (kernels.hsic(a, b, bandwidth=_BANDWIDTH),),
        lambda: plain(a, b),
        (a, b),
        (torch.ones((), device=settings.device),),
    )

    def check(found: tuple[Tensor, ...]) -> str:
        exact = [code.detach().double().requires_grad_() for code in (a, b)]
        value = plain(*exact)
        expected = (value[0].detach(), *torch.autograd.grad(value, exact))
        # The estimate is a small difference of large sums: in fp32 the plain formula loses digits of it.
        return wrong(found, expected, ("HSIC", "gradient of a", "gradient of b"), torch.float32, factor=10)

    numbers = sum(code.numel() for code in (a, b))
    work = Work(8 * numbers, 9 * batch * batch * (8 + 64) + 30 * batch * batch, batch, "samples")
    entrants = [one for one in contestants(operation, settings, settings.device == "cuda") if one.name != "triton"]
    return Case(f"forward + backward, fp32, batch {batch}, 8 and 64 dimensions", entrants, check, work, {"batch": batch})
