"""Reconstruction losses of bf16 predictions on a CPU: against formulas, at every bf16 number, and what they leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from iiae_fast import kernels
from iiae_fast.kernels import _reconstruction_cpu

WEIGHT = 0.3
SHAPES = [(1, 1), (3, 5, 7, 9), (2, 513), (2, 3, 64, 96)]  # the last has more than one share of work in a sample
CASES = [(likelihood, activation) for likelihood in ("laplace", "gaussian") for activation in (None, "tanh")]


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(shape: tuple[int, ...], dtype: torch.dtype, order: torch.memory_format) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction = (2 * torch.randn(shape, generator=generator)).bfloat16()
    target = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    if dtype != torch.uint8:
        target = (target / 127.5 - 1).to(dtype)
    if len(shape) == 4:
        prediction, target = (tensor.contiguous(memory_format=order) for tensor in (prediction, target))
    return prediction.requires_grad_(), target


def exact(prediction: Tensor, target: Tensor, likelihood: str, activation: str | None) -> tuple[Tensor, Tensor]:
    """Loss and gradient by their formulas in fp64, in prediction's shape."""
    raw, wanted = prediction.detach().double(), target.double()
    wanted = wanted / 127.5 - 1 if target.dtype == torch.uint8 else wanted
    value = raw.tanh() if activation else raw
    slope = 1 - value**2 if activation else torch.ones_like(value)
    difference = value - wanted
    terms, outer = (difference.abs(), difference.sgn()) if likelihood == "laplace" else (difference**2, 2 * difference)
    return WEIGHT * terms.flatten(1).sum(1), WEIGHT * outer * slope


def ours(prediction: Tensor, target: Tensor, likelihood: str = "laplace", activation: str | None = "tanh") -> Tensor:
    assert _reconstruction_cpu.fits(prediction, target, likelihood, activation)
    return kernels.reconstruction(prediction, target, likelihood, activation, WEIGHT)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize(("likelihood", "activation"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula(
    shape: tuple[int, ...],
    likelihood: str,
    activation: str | None,
    dtype: torch.dtype,
    order: torch.memory_format,
    threads: int,
) -> None:
    prediction, target = draw(shape, dtype, order)
    loss = ours(prediction, target, likelihood, activation)
    scale = torch.linspace(0.5, 2, len(prediction))
    (gradient,) = torch.autograd.grad((scale * loss).sum(), prediction)
    assert (loss.dtype, gradient.dtype, gradient.stride()) == (torch.float32, torch.bfloat16, prediction.stride())
    expected, slope = exact(prediction, target, likelihood, activation)
    torch.testing.assert_close(loss.double(), expected, rtol=3e-7, atol=1e-7)
    wanted = slope * scale.double().view(-1, *(1,) * (slope.dim() - 1))
    # Two roundings to the 8 bits of bf16.
    torch.testing.assert_close(gradient.double(), wanted, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("activation", [None, "tanh"])
def test_at_every_number_of_bf16(activation: str | None) -> None:
    prediction = torch.arange(65536).to(torch.uint16).view(torch.bfloat16)[:, None].requires_grad_()
    loss = kernels.reconstruction(prediction, torch.zeros(65536, 1), "laplace", activation)
    (gradient,) = torch.autograd.grad(loss.sum(), prediction)
    value = prediction.detach().double()[:, 0]
    value = value.tanh() if activation else value
    assert torch.equal(loss.isnan(), value.isnan())
    finite = value.isfinite()
    found, right = loss[finite], value[finite].abs()
    unit = torch.finfo(torch.float32).eps * right.float().log2().floor().exp2().clamp(min=2.0**-126)
    assert ((found.double() - right).abs() <= 2 * unit.double()).all()
    assert torch.equal(loss[~finite & ~value.isnan()], value[~finite & ~value.isnan()].abs().float())
    slope = value.sgn() * (1 - value**2 if activation else torch.ones_like(value))
    torch.testing.assert_close(gradient[:, 0].double(), slope, rtol=2**-8, atol=2e-7, equal_nan=True)


def test_the_same_bits_for_any_number_of_threads() -> None:
    prediction, target = draw((3, 3, 64, 96), torch.uint8, torch.channels_last)
    before, found = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        loss = ours(prediction, target)
        found.append((loss, *torch.autograd.grad(loss.sum(), prediction)))
    torch.set_num_threads(before)
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])


def test_no_slope_where_prediction_and_target_agree() -> None:
    prediction = torch.tensor([[0.5, -1.0, 0.0, 2.0]]).bfloat16().requires_grad_()
    loss = ours(prediction, prediction.detach().float(), activation=None)
    assert loss.item() == 0
    assert torch.autograd.grad(loss.sum(), prediction)[0].count_nonzero() == 0


def test_a_retained_graph_gives_the_same_gradient_again() -> None:
    prediction, target = draw((2, 3, 8, 8), torch.float32, torch.channels_last)
    loss = (2 * ours(prediction, target)).sum()
    first, second = (torch.autograd.grad(loss, prediction, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_second_derivative_is_refused_not_zero() -> None:
    prediction, target = draw((2, 9), torch.float32, torch.contiguous_format)
    (gradient,) = torch.autograd.grad(ours(prediction, target, "gaussian").sum(), prediction, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.float().sum().backward()


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "reference"},
        {"prediction": lambda p, t: (p.detach().float().requires_grad_(), t)},
        {"prediction": lambda p, t: (p, t.double())},
        {"prediction": lambda p, t: (p, t.contiguous())},
        {"prediction": lambda p, t: (p[:, :, ::2], t[:, :, ::2])},
        {"prediction": lambda p, t: (p[:0], t[:0])},
        {"likelihood": "bernoulli", "activation": None, "prediction": lambda p, t: (p, t.clamp(0, 1))},
        {"activation": "sigmoid"},
    ],
)
def test_everything_else_is_the_reference_bit_for_bit(change: dict[str, Any]) -> None:
    options = {"likelihood": "laplace", "activation": "tanh", "weight": WEIGHT, **change}
    make = options.pop("prediction", lambda p, t: (p, t))
    prediction, target = make(*draw((2, 3, 8, 8), torch.float32, torch.channels_last))
    found = kernels.reconstruction(prediction, target, **options)
    expected = kernels.reconstruction(prediction, target, **{**options, "backend": "reference"})
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(loss.sum(), prediction)[0] for loss in (found, expected)))


def test_ops_keep_their_promises_to_the_compiler() -> None:
    prediction, target = (tensor.detach() for tensor in draw((2, 3, 8, 8), torch.uint8, torch.channels_last))
    for write in (False, True):
        torch.library.opcheck(torch.ops.iiae_fast.reconstruction_cpu, (prediction, target, True, True, WEIGHT, write))
    torch.library.opcheck(torch.ops.iiae_fast.reconstruction_cpu_scaled, (prediction, torch.rand(2)))


def test_compiled_in_one_graph() -> None:
    prediction, target = draw((2, 3, 8, 8), torch.float32, torch.channels_last)

    def loss(prediction: Tensor) -> Tensor:
        return kernels.reconstruction(prediction, target, "laplace", "tanh", WEIGHT).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected, found = loss(prediction), compiled(prediction)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(value, prediction)[0] for value in (found, expected)))
