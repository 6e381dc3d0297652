"""The definition of every fused operation, in plain PyTorch. It runs on any device and is what the Triton kernels must equal.

Of Philox there are two: plain PyTorch, and one op for CPUs with the same bits, which plain PyTorch is slow at.

These functions trust their arguments; ``iiae_latents``, ``reparameterize``, ``reconstruction``, ``elbo``, ``philox_normal`` of
``iiae_fast.kernels`` check them first. Shapes: B batch, D latent size; a packed head is ``(B, 2D)`` or ``(B, 2C, H, W)``,
[mean | logvar] along dim 1. Arithmetic is fp32, or fp64 where the inputs are fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from iiae_fast.kernels import _philox_cpu
from iiae_fast.kernels._validate import require_alike, require_head

# Log-variances are clamped to [LOGVAR_MIN, LOGVAR_MAX] before use, and a clamped element gets zero gradient.
# Above: the published code's bound, a variance of at most 10⁴. Below: the published code has no bound, and exp(−logvar) of
# KL(q‖r) then overflows when r grows certain of a dimension; at −14 it is at most 1.2e6, and a standard deviation of 9e-4
# is far below what a code with a unit prior can use.
LOGVAR_MAX = 9.21035
LOGVAR_MIN = -14.0

_MASK32 = 0xFFFFFFFF
# Multipliers and key increments of Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
# As in Triton: the largest scale with which no 31-bit number reaches 1, and the least uniform, which bounds |normal| by 5.68.
_UNIFORM_SCALE = 4.6566127342e-10
_UNIFORM_MIN = 1.0e-7


class Latents(NamedTuple):
    """What ``iiae_latents`` returns.

    Attributes:
        z_x: Exclusive code of x, in the shape of half its head and in the heads' dtype.
        z_s: Shared code.
        z_y: Exclusive code of y.
        kl: ``(5, B)`` in nats, fp32 (fp64 for fp64 heads), in the order q_x‖p, q_y‖p, q_s‖p, q_s‖r_x, q_s‖r_y.
    """

    z_x: Tensor
    z_s: Tensor
    z_y: Tensor
    kl: Tensor


class ElboWeights(NamedTuple):
    """Factors of the terms in the total.

    Attributes:
        reconstruction: Of both reconstruction terms. ``loss_x`` and ``loss_y`` carry it already; 0 leaves them out.
        kl_exclusive: Of KL(q_x‖p) and KL(q_y‖p), annealed.
        kl_shared: Of KL(q_s‖p), annealed.
        kl_cross: Of KL(q_s‖r_x) and KL(q_s‖r_y).
    """

    reconstruction: float
    kl_exclusive: float
    kl_shared: float
    kl_cross: float = 0.0


class Elbo(NamedTuple):
    """What ``elbo`` returns: scalars, each but the total before its weight.

    Attributes:
        total: What is minimized.
        rec_x, rec_y: Reconstruction terms.
        kl_x, kl_y, kl_s, kl_s_rx, kl_s_ry: Means over the batch, in nats.
        kl_annealing: a_t, a float, or a tensor when ``step`` was one.
    """

    total: Tensor
    rec_x: Tensor
    rec_y: Tensor
    kl_x: Tensor
    kl_y: Tensor
    kl_s: Tensor
    kl_s_rx: Tensor
    kl_s_ry: Tensor
    kl_annealing: float | Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which inputs of ``dtype`` are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four random 32-bit words for each counter.

    Args:
        counter: Four int64 tensors of one shape that hold 32-bit words. They are overwritten.
        key: Two int64 tensors of one element that hold 32-bit words.

    Returns:
        Four int64 tensors that hold 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    spare_a, spare_b = torch.empty_like(c0), torch.empty_like(c0)
    for _ in range(10):
        # A product takes all 64 bits; shifted right it is the high word, once the sign's copies are masked off. Its low word
        # stays unmasked until the next round masks what it was combined with. In place, since a fresh buffer for every step
        # costs four times the arithmetic.
        low_a, low_b = c0.mul_(_ROUND_A), c2.mul_(_ROUND_B)
        torch.bitwise_right_shift(low_b, 32, out=spare_a)
        torch.bitwise_right_shift(low_a, 32, out=spare_b)
        c0 = spare_a.bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK32)
        c2 = spare_b.bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK32)
        spare_a, spare_b, c1, c3 = c1, c3, low_b, low_a
        k0, k1 = (k0 + _KEY_A) & _MASK32, (k1 + _KEY_B) & _MASK32
    return c0, c1.bitwise_and_(_MASK32), c2, c3.bitwise_and_(_MASK32)


def philox_normal(shape: tuple[int, ...], seed: Tensor, stream: int) -> Tensor:
    """Standard normal noise, a pure function of (seed, stream, element): fp32 of ``shape`` on the seed's device.

    Philox4x32-10 with the seed's low and high words as key and (element low, element high, stream, 0) as counter, where the
    element is counted in row-major order; then Box–Muller on the first two words. Stream 0 is ``tl.randn(seed, element)``.
    """
    return _philox_normals({stream: shape}, seed)[0]


def _philox_normals(shapes: dict[int, tuple[int, ...]], seed: Tensor) -> list[Tensor]:
    """``philox_normal`` of several streams at once: small ones cost their calls, not their elements."""
    seed = seed.reshape(())
    streams, sizes = list(shapes), [torch.Size(shape).numel() for shape in shapes.values()]
    if seed.device.type == "cpu":
        u1, u2 = _philox_cpu.uniforms(seed, streams, sizes, _UNIFORM_MIN).unbind()
    else:
        u1, u2 = uniforms(seed, streams, sizes)
    radius = u1.log_().mul_(-2.0).sqrt_()
    noise = torch.split(radius.mul_(u2.mul_(6.283185307179586).cos_()), sizes)
    return [part.view(shape) for part, shape in zip(noise, shapes.values())]


def uniforms(seed: Tensor, streams: Sequence[int], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The numbers of Box–Muller, fp32 in [0, 1), of one stream after the other; the first at least ``_UNIFORM_MIN``."""
    parts = [torch.arange(size, device=seed.device) for size in sizes]
    element = torch.cat(parts)
    numbers = torch.cat([torch.full_like(part, stream) for part, stream in zip(parts, streams)])
    counter = (element & _MASK32, element >> 32, numbers, torch.zeros_like(element))
    words = philox4x32(counter, (seed & _MASK32, (seed >> 32) & _MASK32))[:2]
    signed = (word.to(torch.int32) for word in words)
    # As Triton does: a negative number x becomes ~x, which is x xor its sign's copies.
    u1, u2 = ((word ^ (word >> 31)).to(torch.float32).mul_(_UNIFORM_SCALE) for word in signed)
    return u1.clamp_(min=_UNIFORM_MIN), u2


class Gaussian(NamedTuple):
    """A packed head taken apart, in the dtype of computation: what the operations share instead of computing it again."""

    mean: Tensor
    logvar: Tensor  # clamped
    variance: Tensor


def split_head(head: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and clamped log-variance of a packed head, in the dtype of computation."""
    mean, logvar = head.to(compute_dtype(head.dtype)).chunk(2, dim=1)
    return mean, logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)


def _gaussian(head: Tensor) -> Gaussian:
    mean, logvar = split_head(head)
    return Gaussian(mean, logvar, logvar.exp())


def _kl(q: Gaussian, prior_head: Tensor | None) -> Tensor:
    if prior_head is None:
        terms = q.variance + q.mean.square() - q.logvar - 1
    else:
        prior_mean, prior_logvar = split_head(prior_head)
        terms = (q.variance + (q.mean - prior_mean).square()) * (-prior_logvar).exp() + prior_logvar - q.logvar - 1
    return 0.5 * terms.sum(dim=tuple(range(1, terms.dim())))


def gaussian_kl(head: Tensor, prior_head: Tensor | None = None) -> Tensor:
    """KL(N(m₁, v₁) ‖ N(m₂, v₂)) = Σ ½ (log v₂ − log v₁ + (v₁ + (m₁ − m₂)²) / v₂ − 1) of diagonal Gaussians.

    Args:
        head: ``(B, 2D)`` or ``(B, 2C, H, W)``, log-variance not yet clamped.
        prior_head: Of the same shape; None means N(0, I).

    Returns:
        ``(B,)`` in nats, summed over latent dimensions: fp32 (fp64 for fp64 heads).

    Raises:
        ValueError: A head of another form, or two that differ in shape, dtype or device.
    """
    require_head("head", head)
    if prior_head is not None:
        require_head("prior_head", prior_head)
        require_alike("prior_head", prior_head, "head", head)
    return _kl(_gaussian(head), prior_head)


def _sample(codes: dict[int, Gaussian], dtype: torch.dtype, seed: Tensor | None) -> list[Tensor]:
    """z = mean + √variance · noise(seed, stream) in the head's dtype, by stream; without a seed, z = mean."""
    if seed is None:
        return [q.mean.to(dtype, copy=True) for q in codes.values()]
    noises = _philox_normals({stream: tuple(q.mean.shape) for stream, q in codes.items()}, seed)
    return [torch.addcmul(q.mean, q.variance.sqrt(), noise).to(dtype) for q, noise in zip(codes.values(), noises)]


def iiae_latents(q_x: Tensor, q_s: Tensor, q_y: Tensor, r_x: Tensor, r_y: Tensor, seed: Tensor | None) -> Latents:
    """The three codes and the five KL terms of the loss, in the order of ``Latents.kl``."""
    dtype = q_x.dtype
    x, s, y = _gaussian(q_x), _gaussian(q_s), _gaussian(q_y)
    z_x, z_s, z_y = _sample({0: x, 1: s, 2: y}, dtype, seed)
    return Latents(z_x, z_s, z_y, torch.stack([_kl(x, None), _kl(y, None), _kl(s, None), _kl(s, r_x), _kl(s, r_y)]))


def reparameterize(q: Tensor, prior: Tensor | None, seed: Tensor | None, stream: int) -> tuple[Tensor, Tensor]:
    """One code and its KL divergence ``(B,)`` to the prior."""
    gaussian = _gaussian(q)
    return _sample({stream: gaussian}, q.dtype, seed)[0], _kl(gaussian, prior)


def reconstruction(prediction: Tensor, target: Tensor, likelihood: str, activation: str | None, weight: float) -> Tensor:
    """weight · Σ over a sample's elements of |x − x̂|, (x − x̂)², or the Bernoulli NLL of logits x̂: ``(B,)``."""
    value = prediction.to(compute_dtype(prediction.dtype))
    wanted = target.to(value.dtype)
    if target.dtype == torch.uint8:
        wanted = wanted / 255 if likelihood == "bernoulli" else wanted / 127.5 - 1
    if activation is not None:
        value = torch.tanh(value) if activation == "tanh" else torch.sigmoid(value)
    if likelihood == "laplace":
        terms = (wanted - value).abs()
    elif likelihood == "gaussian":
        terms = (wanted - value).square()
    else:
        terms = F.binary_cross_entropy_with_logits(value, wanted, reduction="none")
    return weight * terms.sum(dim=tuple(range(1, terms.dim())))


def kl_annealing(step: int | Tensor, steps: float) -> float | Tensor:
    """a_t = 1 − exp(−t/τ) after t = ``step`` optimizer steps with τ = ``steps``; 1 when τ is 0. Carries no gradient."""
    if steps == 0:
        return 1.0
    if isinstance(step, Tensor):
        return -torch.expm1(-step.detach().float() / steps)
    return -math.expm1(-step / steps)


def elbo(loss_x: Tensor, loss_y: Tensor, kl: Tensor, step: int | Tensor, weights: ElboWeights, annealing_steps: float) -> Elbo:
    """The weighted total of the batch's terms, and the terms."""
    rec_x, rec_y = loss_x.sum(), loss_y.sum()
    kl_x, kl_y, kl_s, kl_s_rx, kl_s_ry = kl.mean(dim=1).unbind()
    annealing = kl_annealing(step, annealing_steps)
    total = annealing * (weights.kl_exclusive * (kl_x + kl_y) + weights.kl_shared * kl_s)
    if weights.kl_cross:
        total = total + weights.kl_cross * (kl_s_rx + kl_s_ry)
    outer = weights.reconstruction or 1.0
    if weights.reconstruction:
        total = total + (rec_x + rec_y)
    return Elbo(total, rec_x / outer, rec_y / outer, kl_x, kl_y, kl_s, kl_s_rx, kl_s_ry, annealing)
