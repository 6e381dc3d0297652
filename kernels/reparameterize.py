"""One Gaussian head: z = mean + exp(½ logvar) · noise, and its KL divergence to N(0, I) or to another head.

The head is ``(B, 2D)`` or ``(B, 2C, H, W)``, z half of that, KL ``(B,)``; logvar is clamped to [−14, 9.21035]. Backward makes
the noise anew. With v = exp(logvar) and the prior's m₂, v₂:

    dmean = dz + dkl · (mean − m₂) / v₂        dlogvar = ½ dz · noise · √v + ½ dkl · (v / v₂ − 1)
    dm₂ = −dkl · (mean − m₂) / v₂              dlogvar₂ = ½ dkl · (1 − (v + (mean − m₂)²) / v₂)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iiae_fast.kernels import reference
from iiae_fast.kernels._backend import use_triton
from iiae_fast.kernels._device import (
    cross_kl,
    cross_kl_gradient,
    load,
    load_head,
    locate,
    normal,
    standard_kl,
    standard_kl_gradient,
    store_code,
    store_head,
)
from iiae_fast.kernels._layout import code_shape, common_layout, empty_code, empty_gradient, or_zeros, planes
from iiae_fast.kernels._registry import code_settings, jit, launch, register, tl
from iiae_fast.kernels._validate import Seed, require_alike, require_head, require_stream, seed_tensor


@jit
def _reparameterize_forward_kernel(
    q_ptr,  # (B, 2C, P)
    prior_ptr,  # (B, 2C, P), read only with HAS_PRIOR
    z_ptr,  # (B, C * P), in the kernel's order
    kl_ptr,  # (B,)
    seed_ptr,  # (1,), read only with SAMPLE
    stream,
    C,
    P,
    stride_q_b,
    stride_q_c,
    stride_q_p,
    stride_prior_b,
    stride_prior_c,
    stride_prior_p,
    HAS_PRIOR: tl.constexpr,
    SAMPLE: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DTYPE: tl.constexpr = tl.float64 if q_ptr.dtype.element_ty == tl.float64 else tl.float32
    sample = tl.program_id(0).to(tl.int64)
    shape = (C, P)
    q = (q_ptr + sample * stride_q_b, stride_q_c, stride_q_p)
    prior = (prior_ptr + sample * stride_prior_b, stride_prior_c, stride_prior_p)
    noise = (tl.load(seed_ptr) if SAMPLE else 0, sample * (C * P), stream)
    kl = tl.zeros((BLOCK,), DTYPE)
    for start in range(0, C * P, BLOCK):
        index, element = locate(start, shape, LAYOUT, BLOCK)
        mean, logvar, _ = load_head(index, shape, q, LAYOUT, DTYPE)
        deviation = tl.exp(0.5 * logvar)
        if HAS_PRIOR:
            prior_mean, prior_logvar, _ = load_head(index, shape, prior, LAYOUT, DTYPE)
            kl += cross_kl(mean, logvar, deviation * deviation, prior_mean, prior_logvar)
        else:
            kl += standard_kl(mean, logvar, deviation * deviation)
        store_code(index, z_ptr + sample * (C * P), mean, deviation, noise, element, SAMPLE)
    tl.store(kl_ptr + sample, tl.sum(kl))


@jit
def _reparameterize_backward_kernel(
    dz_ptr,  # (B, C, P)
    dkl_ptr,  # (B,)
    q_ptr,  # (B, 2C, P)
    prior_ptr,  # (B, 2C, P), read only with HAS_PRIOR
    dq_ptr,  # (B, 2C, P), written only with NEEDS_Q
    dprior_ptr,  # (B, 2C, P), written only with NEEDS_PRIOR
    seed_ptr,  # (1,), read only with SAMPLE
    stream,
    C,
    P,
    stride_dkl,
    stride_dz_b,
    stride_dz_c,
    stride_dz_p,
    stride_q_b,
    stride_q_c,
    stride_q_p,
    stride_prior_b,
    stride_prior_c,
    stride_prior_p,
    stride_dq_b,
    stride_dq_c,
    stride_dq_p,
    stride_dprior_b,
    stride_dprior_c,
    stride_dprior_p,
    HAS_PRIOR: tl.constexpr,
    SAMPLE: tl.constexpr,
    NEEDS_Q: tl.constexpr,
    NEEDS_PRIOR: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DTYPE: tl.constexpr = tl.float64 if q_ptr.dtype.element_ty == tl.float64 else tl.float32
    sample = tl.program_id(0).to(tl.int64)
    shape = (C, P)
    index, element = locate(tl.program_id(1) * BLOCK, shape, LAYOUT, BLOCK)
    q = (q_ptr + sample * stride_q_b, stride_q_c, stride_q_p)
    mean, logvar, free = load_head(index, shape, q, LAYOUT, DTYPE)
    deviation = tl.exp(0.5 * logvar)
    dkl = tl.load(dkl_ptr + sample * stride_dkl).to(DTYPE)
    if HAS_PRIOR:
        prior = (prior_ptr + sample * stride_prior_b, stride_prior_c, stride_prior_p)
        prior_mean, prior_logvar, prior_free = load_head(index, shape, prior, LAYOUT, DTYPE)
        dmean, dlogvar, dprior_logvar = cross_kl_gradient(dkl, mean, deviation * deviation, prior_mean, prior_logvar)
        if NEEDS_PRIOR:
            dprior = (dprior_ptr + sample * stride_dprior_b, stride_dprior_c, stride_dprior_p)
            store_head(index, shape, dprior, -dmean, dprior_logvar, prior_free, LAYOUT)
    else:
        dmean, dlogvar = standard_kl_gradient(dkl, mean, deviation * deviation)
    if NEEDS_Q:
        dz = load(index, (dz_ptr + sample * stride_dz_b, stride_dz_c, stride_dz_p), LAYOUT, DTYPE)
        if SAMPLE:
            draws = normal((tl.load(seed_ptr), sample * (C * P), stream), element).to(DTYPE)
            dlogvar += 0.5 * dz * deviation * draws
        dq = (dq_ptr + sample * stride_dq_b, stride_dq_c, stride_dq_p)
        store_head(index, shape, dq, dz + dmean, dlogvar, free, LAYOUT)


def _forward_fake(q: Tensor, prior: Tensor | None, seed: Tensor | None, stream: int) -> tuple[Tensor, Tensor]:
    layout = common_layout(planes(q), planes(q if prior is None else prior))
    return empty_code(q, layout), torch.empty(q.shape[0], dtype=reference.compute_dtype(q.dtype), device=q.device)


@register("reparameterize")
def forward(q: Tensor, prior: Tensor | None, seed: Tensor | None, stream: int) -> tuple[Tensor, Tensor]:
    z, kl = _forward_fake(q, prior, seed, stream)
    heads = [planes(q), planes(q if prior is None else prior)]
    launch(
        _reparameterize_forward_kernel,
        (q.shape[0],),
        *(head.tensor for head in heads),
        z,
        kl,
        kl if seed is None else seed,
        stream,
        z.shape[1],
        z.shape[2:].numel(),
        *(stride for head in heads for stride in head.strides),
        HAS_PRIOR=prior is not None,
        SAMPLE=seed is not None,
        LAYOUT=common_layout(*heads),
        **code_settings(z.shape[1:].numel(), 2048, q.element_size()),
    )
    return z, kl


def _backward_fake(
    dz: Tensor, dkl: Tensor, q: Tensor, prior: Tensor | None, seed: Tensor | None, stream: int, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    heads = (q, q if prior is None else prior)
    return empty_gradient(heads[0], needs[0]), empty_gradient(heads[1], needs[1])


@register("reparameterize_backward")
def backward(
    dz: Tensor, dkl: Tensor, q: Tensor, prior: Tensor | None, seed: Tensor | None, stream: int, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    gradients = _backward_fake(dz, dkl, q, prior, seed, stream, needs)
    heads = [planes(q), planes(q if prior is None else prior)]
    # A gradient that nobody needs is not written; its head stands in for it.
    outputs = [planes(gradient) if need else head for gradient, need, head in zip(gradients, needs, heads)]
    views = [planes(dz), *heads, *outputs]
    size = dz.shape[1:].numel()
    constants = code_settings(size, 512, q.element_size())
    launch(
        _reparameterize_backward_kernel,
        (q.shape[0], -(-size // constants["BLOCK"])),
        views[0].tensor,
        dkl,
        *(view.tensor for view in views[1:]),
        dkl if seed is None else seed,
        stream,
        dz.shape[1],
        dz.shape[2:].numel(),
        dkl.stride(0),
        *(stride for view in views for stride in view.strides),
        HAS_PRIOR=prior is not None,
        SAMPLE=seed is not None,
        NEEDS_Q=needs[0],
        NEEDS_PRIOR=needs[1],
        LAYOUT=common_layout(*views),
        **constants,
    )
    return gradients


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, prior, seed, stream = inputs
    ctx.save_for_backward(q, prior, seed)
    ctx.stream = stream
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dz: Tensor | None, dkl: Tensor | None) -> tuple[Tensor | None, ...]:
    q, prior, seed = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:2])
    dz, dkl = or_zeros(dz, code_shape(q), q), or_zeros(dkl, q.shape[:1], q)
    dq, dprior = backward(dz, dkl, q, prior, seed, ctx.stream, needs)
    return dq if needs[0] else None, dprior if needs[1] else None, None, None


forward.register_fake(_forward_fake)
backward.register_fake(_backward_fake)
forward.register_autograd(_differentiate, setup_context=_setup_context)


def reparameterize(
    q: Tensor,
    prior: Tensor | None = None,
    *,
    seed: Seed | None = None,
    sample: bool = True,
    stream: int = 0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Sample one code and measure its KL divergence to the prior: the building block of VAE, β-VAE and DVCCA.

    Args:
        q: Packed head: ``(B, 2D)`` or ``(B, 2C, H, W)``, [mean | logvar] along dim 1, any strides; fp32, bf16, fp16 or fp64.
        prior: Head of the prior, shaped as ``q``; None means N(0, I).
        seed: Of the noise: a whole number, or an int64 tensor of one element on the head's device. Needed only when sampling.
        sample: False returns the mean as code.
        stream: Which of the seed's 2³² independent streams of noise to draw from.
        backend: ``"reference"``, ``"triton"``, or ``"auto"``: Triton on a CUDA device, else the reference.

    Returns:
        z in the head's dtype, and KL(q‖prior) ``(B,)`` in nats, fp32 (fp64 for fp64 heads). Both are differentiable.

    Raises:
        ValueError: A head of another shape, dtype or device than accepted, no seed when sampling, an unknown backend.
        TypeError: A head or the seed is no tensor or number.
    """
    require_head("q", q)
    if prior is not None:
        require_head("prior", prior)
        require_alike("prior", prior, "q", q)
    require_stream(stream)
    seed = seed_tensor(seed, q.device) if sample else None
    if use_triton(backend, q.device):
        z, kl = forward(q, prior, seed, stream)
        return z, kl
    return reference.reparameterize(q, prior, seed, stream)
