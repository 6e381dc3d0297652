"""The three codes and five KL terms of IIAE's loss, encoder heads to codes, KL and the heads' gradients."""

from __future__ import annotations

__all__ = ["cases"]

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from iiae_fast import kernels
from iiae_fast.bench.ops import Operation, contestants, dtype_name, noise_problem, wrong
from iiae_fast.bench.registry import Case, Settings, Work

# Published: the spatial family's 128 channels of 8 × 8 (8,192 numbers) and 8 exclusive ones, batch 8; the feature family's 64
# and 64, batch 100.
_SPATIAL = ((256, 8, 8), (16,))
_FEATURE = ((128,), (128,))
_SIZES = (("spatial", *_SPATIAL, 8), ("spatial", *_SPATIAL, 128), ("feature", *_FEATURE, 100))
_DTYPES = (torch.bfloat16, torch.float32)
_NAMES = ("z_x", "z_s", "z_y", "kl", *(f"gradient of {head}" for head in ("q_x", "q_s", "q_y", "r_x", "r_y")))

Heads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def cases(settings: Settings) -> Iterator[Case]:
    """Forward with backward, then forward alone."""
    for family, shared, exclusive, batch in _SIZES[::2] if settings.quick else _SIZES:
        for dtype in _DTYPES:
            for backward in (True,) if settings.quick else (True, False):
                yield _case(settings, family, shared, exclusive, batch, dtype, backward)


def plain(heads: Heads, noise: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As one would write it; the noise from torch's generator unless given."""
    q_x, q_s, q_y, r_x, r_y = (_split(head) for head in heads)
    codes = []
    for index, (mean, logvar) in enumerate((q_x, q_s, q_y)):
        draw = torch.randn_like(mean) if noise is None else noise[index]
        codes.append((mean + (0.5 * logvar).exp() * draw).to(heads[0].dtype))
    kl = torch.stack([_kl(q_x), _kl(q_y), _kl(q_s), _kl(q_s, r_x), _kl(q_s, r_y)])
    return codes[0], codes[1], codes[2], kl


def _split(head: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = (head if head.dtype == torch.float64 else head.float()).chunk(2, dim=1)
    return mean, logvar.clamp(-14.0, 9.21035)


def _kl(q: tuple[Tensor, Tensor], r: tuple[Tensor, Tensor] | None = None) -> Tensor:
    (mean, logvar) = q
    if r is None:
        terms = logvar.exp() + mean**2 - logvar - 1
    else:
        terms = (logvar.exp() + (mean - r[0]) ** 2) / r[1].exp() + r[1] - logvar - 1
    return 0.5 * terms.flatten(1).sum(1)


def _case(
    settings: Settings,
    family: str,
    shared: tuple[int, ...],
    exclusive: tuple[int, ...],
    batch: int,
    dtype: torch.dtype,
    backward: bool,
) -> Case:
    generator = torch.Generator(settings.device).manual_seed(settings.seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=settings.device).to(dtype)

    shapes = (exclusive, shared, exclusive, shared, shared)
    heads: Heads = tuple(random(batch, *shape).requires_grad_(backward) for shape in shapes)  # type: ignore[assignment]
    seed = torch.tensor([settings.seed], dtype=torch.int64, device=settings.device)
    codes = [random(batch, shape[0] // 2, *shape[1:]) for shape in (exclusive, shared, exclusive)]
    gradients = (*codes, torch.rand(5, batch, generator=generator, device=settings.device)) if backward else ()
    operation = Operation(
        lambda backend: tuple(kernels.iiae_latents(*heads, seed=seed, backend=backend)), lambda: plain(heads), heads, gradients
    )

    def check(found: tuple[Tensor, ...]) -> str:
        exact: Heads = tuple(head.detach().double().requires_grad_(backward) for head in heads)  # type: ignore[assignment]
        # Everyone draws noise of their own: it is read off the codes, has to be standard normal, and explains the gradients.
        noise = []
        for head, code in zip(exact[:3], found):
            mean, logvar = _split(head.detach())
            noise.append((code.double() - mean) / (0.5 * logvar).exp())
        problem = noise_problem(noise)
        expected: tuple[Tensor, ...] = plain(exact, noise)
        if not problem and backward:
            expected += torch.autograd.grad(expected, exact, [gradient.double() for gradient in gradients])
        problem = problem or wrong(found[3:4], expected[3:4], _NAMES[3:], torch.float32)
        return problem or wrong(found[4:], expected[4:], _NAMES[4:], dtype)

    size = heads[0].element_size()
    numbers = sum(head.numel() for head in heads)
    written = sum(code.numel() for code in codes)
    moved = size * (numbers + written) + 20 * batch
    flops = 30 * heads[1].numel() // 2 + 8 * heads[0].numel()
    if backward:  # heads and the codes' gradients in, the heads' gradients out
        moved += size * (2 * numbers + written) + 20 * batch
        flops += 45 * heads[1].numel() // 2 + 10 * heads[0].numel()
    direction = "forward + backward" if backward else "forward"
    name = f"{family} {direction}, {dtype_name(dtype)}, batch {batch}"
    parameters = {"batch": batch, "shared": list(shared), "exclusive": list(exclusive), "dtype": dtype_name(dtype)}
    compile = backward and (settings.device == "cuda" or (family == "spatial" and dtype == torch.float32))
    entrants = contestants(operation, settings, compile)
    return Case(name, entrants, check, Work(moved, flops, batch, "pairs"), parameters)
