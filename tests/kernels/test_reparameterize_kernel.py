"""The Triton kernels of ``reparameterize`` against the reference, with both kinds of prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, LAYOUTS, NOISE, compare, gradients, make_heads, poison
from torch import Tensor

from iiae_fast.kernels import reparameterize
from iiae_fast.kernels.reparameterize import forward

pytestmark = pytest.mark.gpu

MAP = (4, 3, 2)


def run(q: Tensor, prior: Tensor | None = None, *, backend: str, seed: int | Tensor = 5) -> Sequence[Tensor]:
    return reparameterize(q, prior, seed=seed, stream=3, backend=backend)


def run_mean(q: Tensor, prior: Tensor | None = None, *, backend: str) -> Sequence[Tensor]:
    return reparameterize(q, prior, sample=False, backend=backend)


def make_two(batch: int, code: tuple[int, ...], dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> list[Tensor]:
    return make_heads(batch, (1,), code, dtype, layout)[1:4:2]


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_reference(dtype: torch.dtype, layout: str, with_prior: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    heads = make_two(3, MAP, dtype, layout)[: 1 + with_prior]
    compare(run, heads, least=NOISE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_without_sampling(dtype: torch.dtype) -> None:
    compare(run_mean, make_two(2, MAP, dtype))


@pytest.mark.parametrize("size", [1, 63, 100, 257, 2500])
def test_sizes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    compare(run, make_two(2, (size,)))


def test_heads_may_lie_differently() -> None:
    q, prior = make_two(2, MAP, layout="channels_last")
    compare(run, [q, prior.contiguous()])
    assert run(q, prior, backend="triton")[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("with_prior", [False, True])
def test_empty_batch(with_prior: bool) -> None:
    heads = [head.requires_grad_() for head in make_two(0, (3,))[: 1 + with_prior]]
    z, kl = run(*heads, backend="triton")
    assert (z.shape, kl.shape) == ((0, 3), (0,))
    assert all(gradient.shape == (0, 6) for gradient in gradients((z, kl), heads))


@pytest.mark.parametrize("needed", [0, 1])
def test_partial_requires_grad(needed: int) -> None:
    heads = make_two(2, (5,))
    heads[needed].requires_grad_()
    ours, theirs = (gradients(run(*heads, backend=backend), [heads[needed]]) for backend in ("triton", "reference"))
    torch.testing.assert_close(ours, theirs)


def test_same_seed_same_bits() -> None:
    q = make_two(2, MAP)[0]
    seed = torch.tensor(5, device=DEVICE)
    first, again, tensor = run(q, backend="triton"), run(q, backend="triton"), run(q, seed=seed, backend="triton")
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, tensor))


def test_is_the_shared_code_of_iiae_latents() -> None:
    from iiae_fast.kernels import iiae_latents

    heads = make_heads(2)
    z, kl = reparameterize(heads[1], heads[4], seed=5, stream=1, backend="triton")
    out = iiae_latents(*heads, seed=5, backend="triton")
    assert torch.equal(z, out.z_s)
    assert torch.equal(kl, out.kl[4])


def test_gradcheck() -> None:
    q, prior = (head.requires_grad_() for head in make_two(2, (2,), torch.float64))
    assert torch.autograd.gradcheck(lambda q, prior: run(q, prior, backend="triton"), (0.3 * q, 0.3 * prior))


def test_opcheck() -> None:
    q, prior = (head.requires_grad_() for head in make_two(2, (2, 2, 2), layout="channels_last"))
    torch.library.opcheck(forward, (q, prior, torch.tensor([3], device=DEVICE), 1))


def test_compiled_gives_the_same_bits() -> None:
    heads = [head.requires_grad_() for head in make_two(2, MAP)]
    seed = torch.tensor([9], device=DEVICE)

    def step(seed: Tensor, *heads: Tensor) -> Sequence[Tensor]:
        return run(*heads, seed=seed, backend="triton")

    compiled: Callable[..., Sequence[Tensor]] = torch.compile(step, fullgraph=True, backend="aot_eager")
    ours, theirs = compiled(seed, *heads), step(seed, *heads)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert all(torch.equal(a, b) for a, b in zip(gradients(ours, heads), gradients(theirs, heads)))
