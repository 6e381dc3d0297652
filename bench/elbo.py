"""The end of the loss: means of every term over the batch and their weighted total, forward and backward."""

from __future__ import annotations

__all__ = ["STEPS", "WEIGHTS", "cases", "plain"]

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from iiae_fast import kernels
from iiae_fast.bench.ops import Operation, contestants, wrong
from iiae_fast.bench.registry import Case, Settings, Work

WEIGHTS = kernels.ElboWeights(1.2, 1.2, 0.2, 1.0)
STEPS = 25000.0


def cases(settings: Settings) -> Iterator[Case]:
    """The published batch, and a large one."""
    for batch in (8,) if settings.quick else (8, 512):
        yield _case(settings, batch)


def plain(loss_x: Tensor, loss_y: Tensor, kl: Tensor, step: Tensor) -> Tensor:
    """As one would write it: every term, then the total that is differentiated."""
    rec_x, rec_y = loss_x.sum() / WEIGHTS.reconstruction, loss_y.sum() / WEIGHTS.reconstruction
    kl_x, kl_y, kl_s, kl_s_rx, kl_s_ry = kl.mean(dim=1)
    annealing = 1 - torch.exp(-step / STEPS)
    total: Tensor = WEIGHTS.reconstruction * (rec_x + rec_y) + annealing * WEIGHTS.kl_exclusive * (kl_x + kl_y)
    total += annealing * WEIGHTS.kl_shared * kl_s + WEIGHTS.kl_cross * (kl_s_rx + kl_s_ry)
    return total


def _case(settings: Settings, batch: int) -> Case:
    generator = torch.Generator(settings.device).manual_seed(settings.seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=settings.device).requires_grad_()

    loss_x, loss_y, kl = terms = random(batch), random(batch), random(5, batch)
    step = torch.tensor(1000, device=settings.device)
    one = torch.ones((), device=settings.device)
    operation = Operation(
        lambda backend: (kernels.elbo(loss_x, loss_y, kl, WEIGHTS, step=step, annealing_steps=STEPS, backend=backend).total,),
        lambda: (plain(loss_x, loss_y, kl, step),),
        terms,
        (one,),
    )

    def check(found: tuple[Tensor, ...]) -> str:
        exact = [term.detach().double().requires_grad_() for term in terms]
        annealing = 1 - math.exp(-1000 / STEPS)
        kl_weights = [annealing * WEIGHTS.kl_exclusive] * 2 + [annealing * WEIGHTS.kl_shared] + [WEIGHTS.kl_cross] * 2
        total = exact[0].sum() + exact[1].sum() + sum(weight * row.mean() for weight, row in zip(kl_weights, exact[2]))
        gradients = torch.autograd.grad(total, exact)
        names = ("total", "gradient of loss_x", "gradient of loss_y", "gradient of kl")
        return wrong(found, (total, *gradients), names, torch.float32)

    work = Work(4 * (7 * batch * 2 + 9), 8 * batch, batch, "pairs")
    name = f"elbo, forward + backward, fp32, batch {batch}"
    return Case(name, contestants(operation, settings, settings.device == "cuda"), check, work, {"batch": batch})
