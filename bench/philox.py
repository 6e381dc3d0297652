"""Counter-based noise beside torch's generator."""

from __future__ import annotations

__all__ = ["cases"]

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from iiae_fast import kernels
from iiae_fast.bench.ops import Operation, contestants, noise_problem, wrong
from iiae_fast.bench.registry import Case, Settings, Work
from iiae_fast.kernels import reference


def cases(settings: Settings) -> Iterator[Case]:
    """fp32 normals."""
    for elements in (1 << 16,) if settings.quick else (1 << 16, 1 << 22):
        yield _case(settings, elements)


def _case(settings: Settings, elements: int) -> Case:
    seed = torch.tensor([settings.seed], dtype=torch.int64, device=settings.device)
    operation = Operation(
        lambda backend: (kernels.philox_normal((elements,), seed, 0, backend=backend),),
        lambda: (torch.randn(elements, device=settings.device),),
    )

    def check(found: tuple[Tensor, ...]) -> str:
        return noise_problem(found)

    def same_draws(found: tuple[Tensor, ...]) -> str:
        expected = reference.philox_normal((elements,), seed.cpu(), 0)
        return wrong([found[0].cpu()], [expected], ["noise"], torch.float32)

    # Ten rounds of two 64-bit products and six xors and additions, then log, root, cosine and two products.
    work = Work(4 * elements, 100 * elements, elements, "normals")
    entrants = [
        dataclasses.replace(entrant, check=same_draws if entrant.ours else None)
        for entrant in contestants(operation, settings, compile=False)
    ]
    return Case(f"{elements:,} normals, fp32", entrants, check, work, {"elements": elements})
