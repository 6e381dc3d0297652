"""The minibatch-weighted estimator against its definition with every B × B × D number in memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from iiae_fast.kernels import total_correlation
from iiae_fast.kernels import total_correlation as op


def by_definition(z: Tensor, head: Tensor, dataset_size: int) -> Tensor:
    mean, logvar = (half.flatten(1) for half in head.chunk(2, 1))
    density = Normal(mean, (0.5 * logvar).exp()).log_prob(z.flatten(1)[:, None])  # (B, B, D)
    log_nm = math.log(dataset_size * len(z))
    joint = density.sum(2).logsumexp(1) - log_nm
    marginals = (density.logsumexp(1) - log_nm).sum(1)
    return (joint - marginals).mean()


@pytest.mark.parametrize("block", [1, 40, 1 << 22])
@pytest.mark.parametrize("shape", [(7, 5), (6, 2, 3, 2)])
def test_is_the_definition_in_blocks_of_any_size(shape: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(op.__globals__, "_BLOCK_ELEMENTS", block)
    z = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    head = torch.randn(shape[0], 2 * shape[1], *shape[2:], dtype=torch.float64, requires_grad=True)
    ours, theirs = total_correlation(z, head, 1000), by_definition(z, head, 1000)
    torch.testing.assert_close(ours, theirs)
    for mine, wanted in zip(torch.autograd.grad(ours, (z, head)), torch.autograd.grad(theirs, (z, head))):
        torch.testing.assert_close(mine, wanted)


def test_gradcheck() -> None:
    z, head = (torch.randn(3, size, dtype=torch.float64, requires_grad=True) for size in (2, 4))
    assert torch.autograd.gradcheck(lambda z, head: total_correlation(z, head, 50), (z, head))


def test_low_precision_is_computed_in_fp32() -> None:
    z, head = torch.randn(8, 4).bfloat16(), torch.randn(8, 8).bfloat16()
    ours = total_correlation(z, head, 100)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), by_definition(z.double(), head.double(), 100), rtol=1e-5, atol=1e-5)


def test_dependent_codes_have_more_of_it() -> None:
    one = torch.randn(256, 1)
    logvar = torch.full((256, 2), -2.0)
    dependent, independent = torch.cat([one, one], 1), torch.randn(256, 2)
    dependent, independent = (total_correlation(z, torch.cat([z, logvar], 1), 256) for z in (dependent, independent))
    assert dependent > independent + 0.3


@pytest.mark.parametrize(
    ("z", "head", "size", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 8), 10, r"z: shape \(2, 3\); accepted for a head of \(2, 8\) is \(2, 4\)"),
        (torch.zeros(0, 3), torch.zeros(0, 6), 10, "z: an empty batch"),
        (torch.zeros(2, 3).half(), torch.zeros(2, 6), 10, "z: dtype torch.float16 differs"),
        (torch.zeros(2, 3), torch.zeros(2, 6), 0, "dataset_size=0; accepted"),
    ],
)
def test_bad_input_is_one_clear_error(z: Tensor, head: Tensor, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        total_correlation(z, head, size)
