"""The three codes and five KL terms against ``torch.distributions``, gradients against fp64 finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from iiae_fast.kernels import iiae_latents, philox_normal
from iiae_fast.kernels.reference import LOGVAR_MAX, LOGVAR_MIN, gaussian_kl

NAMES = ("q_x", "q_s", "q_y", "r_x", "r_y")


def make_heads(
    batch: int,
    exclusive: tuple[int, ...] = (4,),
    shared: tuple[int, ...] = (3, 5, 2),
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> list[Tensor]:
    """Five heads whose log-variances lie on both sides of both clamps. The given shapes are those of the codes."""
    generator = torch.Generator().manual_seed(3)
    heads = []
    for index, code in enumerate((exclusive, shared, exclusive, shared, shared)):
        mean = torch.randn(batch, *code, generator=generator)
        logvar = 2 * torch.randn(batch, *code, generator=generator)
        logvar = torch.where(
            torch.rand(logvar.shape, generator=generator) < 0.1, 10 * logvar.sign() * (1.6 + 0.1 * index), logvar
        )
        head = torch.cat([mean, logvar], 1).to(dtype)
        heads.append(head.to(memory_format=memory_format) if head.dim() == 4 else head)
    return heads


def normal(head: Tensor) -> Normal:
    mean, logvar = head.double().chunk(2, 1)
    return Normal(mean, (0.5 * logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)).exp())


def expected_kl(heads: list[Tensor]) -> Tensor:
    q_x, q_s, q_y, r_x, r_y = map(normal, heads)
    prior = Normal(0.0, 1.0)
    pairs = ((q_x, prior), (q_y, prior), (q_s, prior), (q_s, r_x), (q_s, r_y))
    return torch.stack([kl_divergence(q, p).flatten(1).sum(1) for q, p in pairs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_codes_and_kl_are_the_definition(dtype: torch.dtype) -> None:
    heads = make_heads(6, dtype=dtype)
    out = iiae_latents(*heads, seed=9)
    for stream, (code, head) in enumerate(zip(out[:3], heads[:3])):
        posterior = normal(head)
        expected = posterior.mean + posterior.stddev * philox_normal(tuple(code.shape), 9, stream)
        assert code.dtype == dtype
        torch.testing.assert_close(code.double(), expected, rtol=1.5 * torch.finfo(dtype).eps + 1e-7, atol=1e-6)
    assert out.kl.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(out.kl.double(), expected_kl(heads), rtol=2e-6, atol=1e-5)


def test_without_sampling_codes_are_fresh_means() -> None:
    heads = make_heads(3)
    out = iiae_latents(*heads, sample=False)
    assert torch.equal(out.z_s, heads[1][:, :3])
    out.z_s.zero_()
    assert heads[1][:, :3].abs().sum() > 0


def test_memory_layout_changes_nothing() -> None:
    plain = iiae_latents(*make_heads(4), seed=1)
    strided = [torch.stack([head, head], -1)[..., 0] for head in make_heads(4, memory_format=torch.channels_last)]
    for ours, theirs in zip(iiae_latents(*strided, seed=1), plain):
        torch.testing.assert_close(ours, theirs)


def test_seed_as_number_and_as_tensor() -> None:
    heads = make_heads(2)
    for seed in (torch.tensor(4), torch.tensor([4])):
        assert all(torch.equal(a, b) for a, b in zip(iiae_latents(*heads, seed=seed), iiae_latents(*heads, seed=4)))


def test_exclusive_shapes_may_differ() -> None:
    q_x, q_s, _, r_x, r_y = make_heads(2)
    out = iiae_latents(q_x, q_s, torch.randn(2, 2, 3, 3), r_x, r_y, seed=0)
    assert [tuple(code.shape) for code in out[:3]] == [(2, 4), (2, 3, 5, 2), (2, 1, 3, 3)]


def test_empty_batch() -> None:
    out = iiae_latents(*make_heads(0), seed=0)
    assert [tuple(part.shape) for part in out] == [(0, 4), (0, 3, 5, 2), (0, 4), (5, 0)]


def test_gradcheck() -> None:
    heads = [(0.3 * head).requires_grad_() for head in make_heads(2, (1,), (3,), torch.float64)]
    assert torch.autograd.gradcheck(lambda *given: tuple(iiae_latents(*given, seed=5)), heads)


def test_clamped_elements_get_no_gradient() -> None:
    heads = [head.requires_grad_() for head in make_heads(8)]
    out = iiae_latents(*heads, seed=5)
    (out.kl.sum() + out.z_x.sum() + out.z_s.sum() + out.z_y.sum()).backward()
    for head in heads:
        assert head.grad is not None
        gradient, logvar = head.grad.chunk(2, 1)[1], head.detach().chunk(2, 1)[1]
        clamped = (logvar < LOGVAR_MIN) | (logvar > LOGVAR_MAX)
        assert clamped.any()
        assert torch.equal(gradient == 0, clamped)


def test_certain_r_does_not_overflow() -> None:
    q_x, q_s, q_y, r_x, r_y = make_heads(2, (2,), (2,))
    r_x[:, 2:] = -1000.0
    assert torch.isfinite(iiae_latents(q_x, q_s, q_y, r_x, r_y, seed=0).kl).all()


def test_kl_of_a_head_to_itself_is_zero() -> None:
    head = make_heads(5)[1]
    torch.testing.assert_close(gaussian_kl(head, head), torch.zeros(5), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_x": torch.zeros(2, 7)}, r"q_x: shape \(2, 7\); accepted is \(B, 2D\) or \(B, 2C, H, W\)"),
        ({"q_x": torch.zeros(2, 0)}, r"q_x: shape \(2, 0\)"),
        ({"q_x": torch.zeros(2, 4, 3)}, r"q_x: shape \(2, 4, 3\)"),
        ({"q_s": torch.zeros(2, 6, dtype=torch.int64)}, "q_s: dtype int64; accepted are float32, bfloat16, float16, float64"),
        ({"r_x": torch.zeros(2, 8, 5, 2)}, r"r_x: shape \(2, 8, 5, 2\) differs from q_s's \(2, 6, 5, 2\)"),
        ({"q_y": torch.zeros(3, 8)}, "q_y: batch size 3 differs from q_s's 2"),
        ({"r_y": torch.zeros(2, 6, 5, 2, dtype=torch.float16)}, "r_y: dtype torch.float16 differs from q_s's torch.float32"),
        ({"r_y": torch.zeros(2, 6, 5, 2, device="meta")}, "r_y: device meta differs from q_s's cpu"),
        ({"seed": None}, "seed=None; sampling needs a seed"),
        ({"backend": "tritn"}, "backend='tritn'; accepted are"),
    ],
)
def test_bad_input_is_one_clear_error(change: dict[str, object], message: str) -> None:
    arguments = {**dict(zip(NAMES, make_heads(2))), "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        iiae_latents(**arguments)  # type: ignore[arg-type]


def test_a_head_must_be_a_tensor() -> None:
    with pytest.raises(TypeError, match="q_x: expected a tensor, got list"):
        iiae_latents([[1.0, 2.0]], *make_heads(1)[1:], seed=0)  # type: ignore[arg-type]
