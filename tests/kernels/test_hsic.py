"""HSIC against the centred trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from iiae_fast.kernels import hsic


def by_definition(a: Tensor, b: Tensor, bandwidth: float | None) -> Tensor:
    n = len(a)
    centre = torch.eye(n, dtype=a.dtype) - 1 / n
    grams = []
    for points in (a.flatten(1), b.flatten(1)):
        squared = (points[:, None] - points).square().sum(2)
        pairs = squared.detach()[tuple(torch.triu_indices(n, n, 1))].sqrt()
        sigma = pairs.median() if bandwidth is None else bandwidth
        grams.append((-squared / (2 * sigma**2)).exp())
    return torch.trace(grams[0] @ centre @ grams[1] @ centre) / (n - 1) ** 2


@pytest.mark.parametrize("bandwidth", [None, 0.8])
@pytest.mark.parametrize("block", [1, 20, 1 << 20])
def test_is_the_definition_in_blocks_of_any_size(block: int, bandwidth: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hsic.__globals__, "_BLOCK_ELEMENTS", block)
    a = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(9, 2, 3, 1, dtype=torch.float64, requires_grad=True)
    ours, theirs = hsic(a, b, bandwidth), by_definition(a, b, bandwidth)
    torch.testing.assert_close(ours, theirs)
    for mine, wanted in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(theirs, (a, b))):
        torch.testing.assert_close(mine, wanted)


def test_gradcheck() -> None:
    a, b = (torch.randn(4, size, dtype=torch.float64, requires_grad=True) for size in (2, 3))
    assert torch.autograd.gradcheck(lambda a, b: hsic(a, b, 1.3), (a, b))


def test_small_values_survive_in_fp32() -> None:
    a, b = torch.randn(300, 3), torch.randn(300, 3)
    ours = hsic(a, b)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), by_definition(a.double(), b.double(), None), rtol=1e-3, atol=0)


def test_tells_dependence_from_independence() -> None:
    a = torch.randn(200, 2)
    assert hsic(a, a.square()) > 5 * hsic(a, torch.randn(200, 2))


def test_equal_rows_have_none_of_it() -> None:
    a = torch.ones(5, 2, requires_grad=True)
    value = hsic(a, torch.randn(5, 3))
    value.backward()
    assert abs(value.item()) < 1e-7
    assert a.grad is not None
    assert torch.equal(a.grad, torch.zeros(5, 2))


@pytest.mark.parametrize(
    ("a", "b", "bandwidth", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(1, 3), None, r"a: shape \(1, 3\); accepted is \(B, ...\) with at least 2 rows"),
        (torch.zeros(3, 3), torch.zeros(2, 3), None, "a and b: 3 rows of torch.float32 on cpu against 2 rows"),
        (torch.zeros(2, 3), torch.zeros(2, 3).long(), None, "b: dtype int64; accepted"),
        (torch.zeros(2, 3), torch.zeros(2, 3), 0.0, "bandwidth=0.0; accepted is a number above 0"),
    ],
)
def test_bad_input_is_one_clear_error(a: Tensor, b: Tensor, bandwidth: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hsic(a, b, bandwidth)
