"""Reconstruction losses of a batch of images, decoder output to loss and gradient."""

from __future__ import annotations

__all__ = ["cases"]

from collections.abc import Iterator

import torch
from torch import Tensor

from iiae_fast import kernels
from iiae_fast.bench.ops import Operation, contestants, dtype_name, wrong
from iiae_fast.bench.registry import Case, Settings, Work

# Published: batch 8 of 256 × 256 images. The decoder's output is bf16 under autocast, the images uint8.
_SIZES = ((8, 3, 256, 256), (64, 3, 256, 256))
_QUICK_SIZES = ((8, 3, 256, 256),)
_DTYPES = ((torch.bfloat16, torch.uint8), (torch.float32, torch.float32))
_LIKELIHOODS = ("laplace", "gaussian")
_WEIGHT = 1e-3


def cases(settings: Settings) -> Iterator[Case]:
    """Forward with backward, then forward alone."""
    for shape in _QUICK_SIZES if settings.quick else _SIZES:
        for dtype, target_dtype in _DTYPES:
            for likelihood in _LIKELIHOODS[:1] if settings.quick else _LIKELIHOODS:
                for backward in (True,) if settings.quick else (True, False):
                    yield _case(settings, shape, dtype, target_dtype, likelihood, backward)


def plain(prediction: Tensor, target: Tensor, likelihood: str, weight: float) -> tuple[Tensor]:
    """As one would write it: ``(B,)``."""
    value = prediction.float().tanh()
    wanted = target.float() / 127.5 - 1 if target.dtype == torch.uint8 else target.float()
    terms = (value - wanted).abs() if likelihood == "laplace" else (value - wanted) ** 2
    return (weight * terms.flatten(1).sum(dim=1),)


def _expected(prediction: Tensor, target: Tensor, likelihood: str) -> tuple[Tensor, Tensor]:
    """Loss and gradient in fp64, by their formulas."""
    value = torch.tanh(prediction.detach().double())
    wanted = target.double() / 127.5 - 1 if target.dtype == torch.uint8 else target.double()
    difference = value - wanted
    terms, slope = (difference.abs(), difference.sign()) if likelihood == "laplace" else (difference**2, 2 * difference)
    return _WEIGHT * terms.flatten(1).sum(1), _WEIGHT * slope * (1 - value**2)


def _case(
    settings: Settings, shape: tuple[int, ...], dtype: torch.dtype, target_dtype: torch.dtype, likelihood: str, backward: bool
) -> Case:
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    prediction = torch.randn(shape, generator=generator, device=settings.device).to(dtype).requires_grad_(backward)
    pixels = torch.randint(256, shape, generator=generator, device=settings.device, dtype=torch.uint8)
    target = pixels if target_dtype == torch.uint8 else pixels.to(target_dtype) / 127.5 - 1

    def ours(backend: str) -> tuple[Tensor]:
        options = {"likelihood": likelihood, "activation": "tanh", "weight": _WEIGHT, "backend": backend}
        return (kernels.reconstruction(prediction, target, **options),)  # type: ignore[call-overload]

    # A gradient of 1, as the training step's sum gives it.
    gradients = (torch.ones(shape[0], device=settings.device),) if backward else ()
    operation = Operation(ours, lambda: plain(prediction, target, likelihood, _WEIGHT), (prediction,), gradients)

    def check(found: tuple[Tensor, ...]) -> str:
        loss, gradient = _expected(prediction, target, likelihood)
        problem = wrong(found[:1], (loss,), ("loss",), torch.float32)
        return problem or wrong(found[1:], (gradient,) if backward else (), ("gradient",), dtype)

    elements = prediction.numel()
    moved = prediction.element_size() + target.element_size() + (prediction.element_size() if backward else 0)
    # Convert, tanh, subtract, absolute or square, add; and for the gradient: sign or double, 1 − tanh², two products.
    work = Work(moved * elements + 4 * shape[0], (11 if backward else 6) * elements, elements, "elements")
    direction = "forward + backward" if backward else "forward"
    size = "×".join(map(str, shape))
    name = f"{likelihood} {direction}, {dtype_name(dtype)} against {dtype_name(target_dtype)}, {size}"
    parameters = {"shape": list(shape), "dtype": dtype_name(dtype), "target": dtype_name(target_dtype)}
    compile = backward and likelihood == "laplace" and (settings.device == "cuda" or target_dtype == torch.uint8)
    auto = settings.device == "cpu" and dtype == torch.bfloat16
    return Case(name, contestants(operation, settings, compile, auto), check, work, parameters)
