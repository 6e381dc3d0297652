"""What the programs of ``iiae_latents`` do for one sample. Tuples are as in ``_device``; all of it is inlined."""

from __future__ import annotations

from iiae_fast.kernels._device import (
    STRIDED,
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
from iiae_fast.kernels._registry import jit, tl


@jit
def exclusive_forward(q, z_ptr, kl_ptr, noise, shape, SAMPLE: tl.constexpr, BLOCK: tl.constexpr):
    """Code and KL(q‖p) of an exclusive head. It is small: any strides are good enough."""
    DTYPE: tl.constexpr = tl.float64 if q[0].dtype.element_ty == tl.float64 else tl.float32
    kl = tl.zeros((BLOCK,), DTYPE)
    for start in range(0, shape[0] * shape[1], BLOCK):
        index, element = locate(start, shape, STRIDED, BLOCK)
        mean, logvar, _ = load_head(index, shape, q, STRIDED, DTYPE)
        deviation = tl.exp(0.5 * logvar)
        kl += standard_kl(mean, logvar, deviation * deviation)
        store_code(index, z_ptr, mean, deviation, noise, element, SAMPLE)
    tl.store(kl_ptr, tl.sum(kl))


@jit
def exclusive_backward(dz, dkl_ptr, q, dq, noise, shape, SAMPLE: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of an exclusive head."""
    DTYPE: tl.constexpr = tl.float64 if q[0].dtype.element_ty == tl.float64 else tl.float32
    dkl = tl.load(dkl_ptr).to(DTYPE)
    for start in range(0, shape[0] * shape[1], BLOCK):
        index, element = locate(start, shape, STRIDED, BLOCK)
        mean, logvar, free = load_head(index, shape, q, STRIDED, DTYPE)
        deviation = tl.exp(0.5 * logvar)
        dmean, dlogvar = standard_kl_gradient(dkl, mean, deviation * deviation)
        dcode = load(index, dz, STRIDED, DTYPE)
        if SAMPLE:
            dlogvar += 0.5 * dcode * deviation * normal(noise, element).to(DTYPE)
        store_head(index, shape, dq, dcode + dmean, dlogvar, free, STRIDED)


@jit
def shared_forward(
    q, r_x, r_y, z_ptr, kl_ptr, B, noise, shape, SAMPLE: tl.constexpr, LAYOUT: tl.constexpr, BLOCK: tl.constexpr
):
    """Shared code, and KL(q_s‖p), KL(q_s‖r_x), KL(q_s‖r_y) at kl_ptr, kl_ptr + B, kl_ptr + 2 B."""
    DTYPE: tl.constexpr = tl.float64 if q[0].dtype.element_ty == tl.float64 else tl.float32
    kl = tl.zeros((BLOCK,), DTYPE)
    kl_rx = tl.zeros((BLOCK,), DTYPE)
    kl_ry = tl.zeros((BLOCK,), DTYPE)
    for start in range(0, shape[0] * shape[1], BLOCK):
        index, element = locate(start, shape, LAYOUT, BLOCK)
        mean, logvar, _ = load_head(index, shape, q, LAYOUT, DTYPE)
        mean_rx, logvar_rx, _ = load_head(index, shape, r_x, LAYOUT, DTYPE)
        mean_ry, logvar_ry, _ = load_head(index, shape, r_y, LAYOUT, DTYPE)
        deviation = tl.exp(0.5 * logvar)
        variance = deviation * deviation
        kl += standard_kl(mean, logvar, variance)
        kl_rx += cross_kl(mean, logvar, variance, mean_rx, logvar_rx)
        kl_ry += cross_kl(mean, logvar, variance, mean_ry, logvar_ry)
        store_code(index, z_ptr, mean, deviation, noise, element, SAMPLE)
    tl.store(kl_ptr, tl.sum(kl))
    tl.store(kl_ptr + B, tl.sum(kl_rx))
    tl.store(kl_ptr + 2 * B, tl.sum(kl_ry))


@jit
def shared_backward(
    start,
    dz,
    dkl_ptr,
    stride_dkl,
    q,
    r_x,
    r_y,
    dq,
    dr_x,
    dr_y,
    noise,
    shape,
    NEEDS_Q: tl.constexpr,
    NEEDS_R_X: tl.constexpr,
    NEEDS_R_Y: tl.constexpr,
    SAMPLE: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of the gradients of the shared heads; the three incoming KL gradients lie ``stride_dkl`` apart."""
    DTYPE: tl.constexpr = tl.float64 if q[0].dtype.element_ty == tl.float64 else tl.float32
    index, element = locate(start, shape, LAYOUT, BLOCK)
    mean, logvar, free = load_head(index, shape, q, LAYOUT, DTYPE)
    deviation = tl.exp(0.5 * logvar)
    variance = deviation * deviation
    dmean, dlogvar = standard_kl_gradient(tl.load(dkl_ptr).to(DTYPE), mean, variance)
    mean_r, logvar_r, free_r = load_head(index, shape, r_x, LAYOUT, DTYPE)
    dkl = tl.load(dkl_ptr + stride_dkl).to(DTYPE)
    dmean_r, dlogvar_q, dlogvar_r = cross_kl_gradient(dkl, mean, variance, mean_r, logvar_r)
    dmean += dmean_r
    dlogvar += dlogvar_q
    if NEEDS_R_X:
        store_head(index, shape, dr_x, -dmean_r, dlogvar_r, free_r, LAYOUT)
    mean_r, logvar_r, free_r = load_head(index, shape, r_y, LAYOUT, DTYPE)
    dkl = tl.load(dkl_ptr + 2 * stride_dkl).to(DTYPE)
    dmean_r, dlogvar_q, dlogvar_r = cross_kl_gradient(dkl, mean, variance, mean_r, logvar_r)
    dmean += dmean_r
    dlogvar += dlogvar_q
    if NEEDS_R_Y:
        store_head(index, shape, dr_y, -dmean_r, dlogvar_r, free_r, LAYOUT)
    if NEEDS_Q:
        dcode = load(index, dz, LAYOUT, DTYPE)
        if SAMPLE:
            dlogvar += 0.5 * dcode * deviation * normal(noise, element).to(DTYPE)
        store_head(index, shape, dq, dcode + dmean, dlogvar, free, LAYOUT)
