"""The Triton kernel of ``philox_normal``, and its words, against the reference."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import DEVICE, NOISE, poison
from torch import Tensor

from iiae_fast.kernels import philox_normal, reference
from iiae_fast.kernels._device import normal
from iiae_fast.kernels.philox import forward

pytestmark = pytest.mark.gpu


@triton.jit
def _words_kernel(out_ptr, element_ptr, seed_ptr, stream, N: tl.constexpr):
    i = tl.arange(0, N)
    element = tl.load(element_ptr + i)
    low = element.to(tl.uint32)
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(tl.load(seed_ptr), low, (element >> 32).to(tl.uint32), zero + tl.cast(stream, tl.uint32), zero)
    tl.store(out_ptr + i, w0.to(tl.int64))
    tl.store(out_ptr + N + i, w1.to(tl.int64))
    tl.store(out_ptr + 2 * N + i, w2.to(tl.int64))
    tl.store(out_ptr + 3 * N + i, w3.to(tl.int64))


@triton.jit
def _normal_kernel(out_ptr, seed_ptr, first, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, normal((tl.load(seed_ptr), first, 2), i.to(tl.int64)))


@pytest.mark.parametrize("seed", [0, -1, 0x0123456789ABCDEF])
def test_words_are_identical(seed: int) -> None:
    element = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 123456789, 2**40 + 5])
    ours = torch.empty(4, 8, dtype=torch.int64, device=DEVICE)
    _words_kernel[(1,)](ours, element.to(DEVICE), torch.tensor([seed], device=DEVICE), 5, N=8)
    counter = (element & 0xFFFFFFFF, element >> 32, torch.full_like(element, 5), torch.zeros_like(element))
    theirs = reference.philox4x32(counter, (torch.tensor(seed & 0xFFFFFFFF), torch.tensor(seed >> 32 & 0xFFFFFFFF)))
    assert torch.equal(ours.cpu(), torch.stack(theirs))


@pytest.mark.parametrize("seed", [0, 1, 0x0123456789ABCDEF, -1, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("stream", [0, 1, 2, 2**32 - 1])
def test_equals_reference(seed: int, stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = philox_normal((3, 700), seed, stream, backend="reference")
    poison(monkeypatch)
    ours = philox_normal((3, 700), seed, stream, device=DEVICE, backend="triton")
    torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=1e-6)


def test_elements_past_32_bits() -> None:
    """The kernels count elements in 64 bits."""
    first = 2**32 - 8
    ours = torch.empty(16, device=DEVICE)
    _normal_kernel[(1,)](ours, torch.tensor([7], device=DEVICE), first, BLOCK=16)
    element = torch.arange(first, first + 16)
    counter = (element & 0xFFFFFFFF, element >> 32, torch.full_like(element, 2), torch.zeros_like(element))
    words = reference.philox4x32(counter, (torch.tensor(7), torch.tensor(0)))
    u1, u2 = (torch.minimum(word, 2**32 - 1 - word).float() * 4.6566127342e-10 for word in words[:2])
    theirs = (-2 * u1.clamp(min=1e-7).log()).sqrt() * (6.283185307179586 * u2).cos()
    torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 63, 257, 1025])
def test_sizes(size: int) -> None:
    ours = philox_normal((size,), 3, device=DEVICE, backend="triton")
    torch.testing.assert_close(ours.cpu(), philox_normal((size,), 3, backend="reference"), rtol=0, atol=2 * NOISE)


def test_empty() -> None:
    assert philox_normal((0, 4), 3, device=DEVICE, backend="triton").shape == (0, 4)


def test_same_seed_same_bits() -> None:
    seed = torch.tensor([3], device=DEVICE)
    draws = [philox_normal((100,), given, backend="triton", device=DEVICE) for given in (3, 3, seed)]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_opcheck() -> None:
    torch.library.opcheck(forward, ([2, 3], torch.tensor([3], device=DEVICE), 1))


def test_compiled_gives_the_same_bits() -> None:
    def draw(seed: Tensor) -> Tensor:
        return philox_normal((100,), seed, 1, backend="triton")

    seed = torch.tensor([3], device=DEVICE)
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(seed), draw(seed))
    seed.add_(1)
    assert torch.equal(compiled(seed), draw(seed))
