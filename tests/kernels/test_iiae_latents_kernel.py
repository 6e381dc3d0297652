"""The Triton kernels of ``iiae_latents`` against the reference, on every size and layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, LAYOUTS, NOISE, compare, gradients, make_heads, poison
from torch import Tensor

from iiae_fast.kernels import iiae_latents
from iiae_fast.kernels.iiae_latents import forward

pytestmark = pytest.mark.gpu

EXCLUSIVE, SHARED = (5,), (4, 3, 2)
run = partial(iiae_latents, seed=9)
run_means = partial(iiae_latents, sample=False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_reference(dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    compare(run, make_heads(3, EXCLUSIVE, SHARED, dtype, layout), least=NOISE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_means_without_sampling(dtype: torch.dtype) -> None:
    compare(run_means, make_heads(2, EXCLUSIVE, SHARED, dtype))


# 2,500 and 600 are more than one block of either kernel.
@pytest.mark.parametrize(("exclusive", "shared"), [(1, 1), (63, 100), (257, 63), (8, 257), (600, 2500)])
def test_sizes(exclusive: int, shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    compare(run, make_heads(2, (exclusive,), (shared,)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "rows_last"])
def test_maps_of_several_blocks(layout: str) -> None:
    compare(run, make_heads(1, (2, 3, 3), (48, 8, 8), torch.bfloat16, layout))


def test_heads_may_lie_differently() -> None:
    heads = [make_heads(2, EXCLUSIVE, SHARED, layout=layout)[index] for index, layout in enumerate(LAYOUTS[:5])]
    compare(run, heads)


def test_exclusive_shapes_may_differ() -> None:
    q_x, q_s, _, r_x, r_y = make_heads(2)
    compare(run, [q_x, q_s, torch.randn(2, 2, 3, 3, device=DEVICE), r_x, r_y])


def test_empty_batch() -> None:
    heads = [head.requires_grad_() for head in make_heads(0)]
    out = iiae_latents(*heads, seed=0, backend="triton")
    assert [tuple(part.shape) for part in out] == [(0, 4), (0, 3, 5, 2), (0, 4), (5, 0)]
    assert [gradient.shape for gradient in gradients(out, heads)] == [head.shape for head in heads]


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (4,), (0, 3), (1, 2, 4)])
def test_partial_requires_grad(needed: tuple[int, ...]) -> None:
    heads = make_heads(2)
    wanted = [heads[index].requires_grad_() for index in needed]
    theirs = gradients(run(*heads, backend="reference"), wanted)
    torch.testing.assert_close(gradients(run(*heads, backend="triton"), wanted), theirs)


@pytest.mark.parametrize("used", range(4))
def test_outputs_that_nothing_follows_from(used: int) -> None:
    heads = [head.requires_grad_() for head in make_heads(2)]
    ours, theirs = (run(*heads, backend=backend)[used] for backend in ("triton", "reference"))
    mine = torch.autograd.grad(ours.sum(), heads, allow_unused=True)
    wanted = torch.autograd.grad(theirs.sum(), heads, allow_unused=True)
    for gradient, expected in zip(mine, wanted):
        assert gradient is not None
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if expected is None else expected)


def test_layouts_are_kept() -> None:
    heads = [head.requires_grad_() for head in make_heads(2, EXCLUSIVE, SHARED, layout="channels_last")]
    out = run(*heads, backend="triton")
    assert out.z_s.is_contiguous(memory_format=torch.channels_last)
    assert [gradient.stride() for gradient in gradients(out, heads)] == [head.stride() for head in heads]


def test_same_seed_same_bits_and_layout_does_not_matter() -> None:
    first, again, other = (
        run(*make_heads(2, layout=layout), backend="triton") for layout in ("contiguous",) * 2 + ("rows_last",)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert all(torch.equal(a, b) for a, b in zip(first[:3], other[:3]))
    assert not torch.equal(first.z_s, iiae_latents(*make_heads(2), seed=10, backend="triton").z_s)


def test_seed_is_a_tensor_or_a_number() -> None:
    heads = make_heads(2)
    seed = torch.tensor(9, device=DEVICE)
    for ours, theirs in zip(iiae_latents(*heads, seed=seed, backend="triton"), run(*heads, backend="triton")):
        assert torch.equal(ours, theirs)


def test_clamps_and_nan() -> None:
    heads = make_heads(2, (3,), (3,))
    heads[1][0, 4] = torch.nan
    heads[3][1, 0] = torch.nan
    ours, theirs = (run(*heads, backend=backend) for backend in ("triton", "reference"))
    for mine, wanted in zip(ours, theirs):
        torch.testing.assert_close(mine, wanted, equal_nan=True)
    assert ours.kl.isnan().sum() == 4


def test_gradcheck() -> None:
    heads = [(0.3 * head).requires_grad_() for head in make_heads(1, (1,), (2,), torch.float64)]
    assert torch.autograd.gradcheck(lambda *given: tuple(run(*given, backend="triton")), heads)


def test_opcheck() -> None:
    heads = [head.requires_grad_() for head in make_heads(2, (2,), (2, 2, 2), layout="channels_last")]
    torch.library.opcheck(forward, (*heads, torch.tensor([3], device=DEVICE)))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_gives_the_same_bits(compiler: str) -> None:
    heads = [head.requires_grad_() for head in make_heads(2, EXCLUSIVE, SHARED)]
    seed = torch.tensor([9], device=DEVICE)

    def step(seed: Tensor, *heads: Tensor) -> tuple[Tensor, ...]:
        return tuple(iiae_latents(*heads, seed=seed, backend="triton"))

    compiled: Callable[..., tuple[Tensor, ...]] = torch.compile(step, fullgraph=True, backend=compiler)
    ours, theirs = compiled(seed, *heads), step(seed, *heads)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert all(torch.equal(a, b) for a, b in zip(gradients(ours, heads), gradients(theirs, heads)))
    seed.add_(1)  # the seed is an input of the graph, not a constant in it
    assert all(torch.equal(a, b) for a, b in zip(compiled(seed, *heads), step(seed, *heads)))
