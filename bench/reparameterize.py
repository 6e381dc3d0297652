"""One Gaussian head to its code, its KL to the standard normal or to another head, and the gradients."""

from __future__ import annotations

__all__ = ["cases"]

from collections.abc import Iterator

import torch
from torch import Tensor

from iiae_fast import kernels
from iiae_fast.bench.ops import Operation, contestants, dtype_name, noise_problem, wrong
from iiae_fast.bench.registry import Case, Settings, Work

_SHAPE = (8, 256, 8, 8)  # the spatial family's shared head at the published batch


def cases(settings: Settings) -> Iterator[Case]:
    """Forward with backward."""
    for dtype in (torch.bfloat16,) if settings.quick else (torch.bfloat16, torch.float32):
        for with_prior in (False, True):
            yield _case(settings, dtype, with_prior)


def plain(q: Tensor, prior: Tensor | None, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As one would write it; the noise from torch's generator unless given."""
    mean, logvar = _split(q)
    z = mean + (0.5 * logvar).exp() * (torch.randn_like(mean) if noise is None else noise)
    if prior is None:
        terms = logvar.exp() + mean**2 - logvar - 1
    else:
        prior_mean, prior_logvar = _split(prior)
        terms = (logvar.exp() + (mean - prior_mean) ** 2) / prior_logvar.exp() + prior_logvar - logvar - 1
    return z.to(q.dtype), 0.5 * terms.flatten(1).sum(1)


def _split(head: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = (head if head.dtype == torch.float64 else head.float()).chunk(2, dim=1)
    return mean, logvar.clamp(-14.0, 9.21035)


def _case(settings: Settings, dtype: torch.dtype, with_prior: bool) -> Case:
    generator = torch.Generator(settings.device).manual_seed(settings.seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=settings.device).to(dtype)

    q = random(*_SHAPE).requires_grad_()
    prior = random(*_SHAPE).requires_grad_() if with_prior else None
    inputs = (q,) if prior is None else (q, prior)
    seed = torch.tensor([settings.seed], dtype=torch.int64, device=settings.device)
    batch, channels = _SHAPE[0], _SHAPE[1] // 2
    gradients = (
        random(batch, channels, *_SHAPE[2:]),
        torch.rand(batch, generator=generator, device=settings.device),
    )
    operation = Operation(
        lambda backend: kernels.reparameterize(q, prior, seed=seed, backend=backend),
        lambda: plain(q, prior),
        inputs,
        gradients,
    )

    def check(found: tuple[Tensor, ...]) -> str:
        exact = [one.detach().double().requires_grad_() for one in inputs]
        mean, logvar = _split(exact[0].detach())
        noise = (found[0].double() - mean) / (0.5 * logvar).exp()
        problem = noise_problem([noise])
        expected = plain(exact[0], exact[1] if with_prior else None, noise)
        dexact = torch.autograd.grad(expected, exact, [gradient.double() for gradient in gradients])
        problem = problem or wrong(found[1:2], expected[1:2], ("kl",), torch.float32)
        return problem or wrong(found[2:], dexact, ("gradient of q", "gradient of the prior"), dtype)

    numbers = sum(one.numel() for one in inputs)
    code = q.numel() // 2
    work = Work(q.element_size() * (3 * numbers + 2 * code), (50 if with_prior else 25) * code, batch, "samples")
    prior_name = "another head" if with_prior else "N(0, I)"
    name = f"KL to {prior_name}, forward + backward, {dtype_name(dtype)}, {'×'.join(map(str, _SHAPE))}"
    parameters = {"shape": list(_SHAPE), "dtype": dtype_name(dtype), "prior": with_prior}
    return Case(name, contestants(operation, settings, settings.device == "cuda"), check, work, parameters)
