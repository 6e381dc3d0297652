"""Adam in one call: the formula in fp32 to the bit, PyTorch's Adam to rounding, and what is refused."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from iiae_fast import _C
from iiae_fast.adam import Adam
from iiae_fast.errors import InputError

LR, BETAS, EPS = 1e-2, (0.5, 0.999), 1e-8
SHAPES = ((40, 7, 4, 4), (64, 32, 4, 4), (5, 1, 4, 4), (3, 17), (1,), (33,))


def parameters(order: torch.memory_format = torch.channels_last, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    return [nn.Parameter(one.contiguous(memory_format=order) if one.dim() == 4 else one) for one in drawn]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1 + step)
    return [torch.randn(shape, generator=generator) * 10.0 ** (index - 3) for index, shape in enumerate(SHAPES)]


def take(optimizer: torch.optim.Optimizer, owned: list[nn.Parameter], steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        for parameter, gradient in zip(owned, gradients(step), strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()


def test_the_formula_to_the_bit(threads: int) -> None:
    owned = parameters()
    take(Adam(owned, LR, BETAS, EPS), owned, 3)
    f = np.float32
    for index, found in enumerate(owned):
        values = parameters()[index].detach().numpy()
        mean, square = np.zeros_like(values), np.zeros_like(values)
        for step in range(3):
            g = gradients(step)[index].numpy()
            mean = mean + (g - mean) * f(1 - BETAS[0])
            square = square * f(BETAS[1]) + g * g * f(1 - BETAS[1])
            root, size = f(np.sqrt(1 - BETAS[1] ** (step + 1))), f(LR / (1 - BETAS[0] ** (step + 1)))
            values = values - size * mean / (np.sqrt(square) / root + f(EPS))
        assert values.dtype == np.float32
        np.testing.assert_array_equal(found.detach().numpy(), values)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_as_pytorch_s_in_double_precision(order: torch.memory_format) -> None:
    owned, exact = parameters(order), parameters(order, torch.float64)
    take(Adam(owned, LR, BETAS, EPS), owned, 20)
    take(torch.optim.Adam(exact, LR, BETAS, EPS), exact, 20)
    for found, wanted in zip(owned, exact, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


def test_a_gradient_in_another_order_is_the_same_gradient() -> None:
    """PyTorch's fused step takes its numbers in the order of memory, whatever they belong to."""
    one, other = parameters(), parameters()
    first, second = Adam(one, LR, BETAS, EPS), Adam(other, LR, BETAS, EPS)
    for a, b, gradient in zip(one, other, gradients(0), strict=True):
        a.grad = torch.empty_like(a).copy_(gradient)
        b.grad = gradient.clone()
    first.step()
    second.step()
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("ours_first", [False, True])
def test_goes_on_from_pytorch_s_state_and_back(ours_first: bool) -> None:
    makers = (lambda p: Adam(p, LR, BETAS, EPS), lambda p: torch.optim.Adam(p, LR, BETAS, EPS))
    first, second = makers if ours_first else makers[::-1]
    owned, unbroken = parameters(), parameters()
    before = first(owned)
    take(before, owned, 3)
    after = second(owned)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    take(after, owned, 3, first=3)
    take(first(unbroken), unbroken, 6)
    for found, wanted in zip(owned, unbroken, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert all(state["step"] == 6 for state in after.state.values())


def test_parameters_without_a_gradient_stay() -> None:
    owned = parameters()
    owned[0].grad = None
    before = owned[0].detach().clone()
    optimizer = Adam(owned, LR, BETAS, EPS)
    for parameter in owned[1:]:
        parameter.grad = torch.ones_like(parameter)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert torch.equal(owned[0], before)
    assert owned[0] not in optimizer.state


def test_other_numbers_are_refused_before_any_is_changed() -> None:
    owned = parameters()
    optimizer = Adam(owned, LR, BETAS, EPS)
    take(optimizer, owned, 1)
    kept = [parameter.detach().clone() for parameter in owned]
    optimizer.state[owned[-1]]["exp_avg"] = torch.zeros(33, dtype=torch.float64)
    wanted = (
        "gradient or moment torch.float64 of shape (33,) with strides (1,): accepted is what the parameter is, torch.float32"
    )
    with pytest.raises(InputError, match=re.escape(wanted)):
        take(optimizer, owned, 1, first=1)
    assert all(torch.equal(parameter, before) for parameter, before in zip(owned, kept, strict=True))
    strided = nn.Parameter(torch.zeros(4, 6)[:, ::2])
    strided.grad = torch.zeros(4, 3)
    with pytest.raises(InputError, match=r"accepted is torch\.float32, contiguous or in channels_last order"):
        Adam([strided], LR, BETAS, EPS).step()


def test_nothing_to_do() -> None:
    _C.adam.update([], LR, *BETAS, EPS, 0, 2)
    owned = [nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.zeros(2))]
    optimizer = Adam(owned, LR, BETAS, EPS)
    optimizer.step()
    owned[0].grad = torch.zeros(0, 3)
    optimizer.step()
    assert optimizer.state[owned[0]]["step"] == 1
