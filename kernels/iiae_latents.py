"""All that lies between the five encoder heads and the decoders: three sampled codes and five KL terms, one launch each way.

z = mean + exp(½ logvar) · noise for q_x, q_s, q_y; KL(q_x‖p), KL(q_y‖p), KL(q_s‖p), KL(q_s‖r_x), KL(q_s‖r_y) per sample, with
logvar clamped to [−14, 9.21035]. Heads are ``(B, 2D)`` or ``(B, 2C, H, W)``, codes half of that, KL ``(5, B)``. One program
sums one sample's KL terms, so the sums have one order; backward makes the noise anew and splits a sample over programs. The
gradients are those of ``reparameterize``, summed over the terms in which a head occurs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iiae_fast.kernels import reference
from iiae_fast.kernels._backend import use_triton
from iiae_fast.kernels._latents_device import exclusive_backward, exclusive_forward, shared_backward, shared_forward
from iiae_fast.kernels._layout import code_shape, common_layout, empty_code, empty_gradient, or_zeros, planes
from iiae_fast.kernels._registry import code_settings, jit, launch, next_power_of_2, register, tl
from iiae_fast.kernels._validate import Seed, require_alike, require_head, seed_tensor
from iiae_fast.kernels.reference import Latents


@jit
def _iiae_latents_forward_kernel(
    q_x_ptr,  # (B, 2 C_x, P_x)
    q_s_ptr,  # (B, 2 C_s, P_s)
    q_y_ptr,  # (B, 2 C_y, P_y)
    r_x_ptr,  # like q_s
    r_y_ptr,  # like q_s
    z_x_ptr,  # (B, C_x * P_x), row-major
    z_s_ptr,  # (B, C_s * P_s), in the kernel's order
    z_y_ptr,  # (B, C_y * P_y), row-major
    kl_ptr,  # (5, B)
    seed_ptr,  # (1,), read only with SAMPLE
    B,
    C_x,
    P_x,
    C_s,
    P_s,
    C_y,
    P_y,
    stride_q_x_b,
    stride_q_x_c,
    stride_q_x_p,
    stride_q_s_b,
    stride_q_s_c,
    stride_q_s_p,
    stride_q_y_b,
    stride_q_y_c,
    stride_q_y_p,
    stride_r_x_b,
    stride_r_x_c,
    stride_r_x_p,
    stride_r_y_b,
    stride_r_y_c,
    stride_r_y_p,
    SAMPLE: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_EXCLUSIVE: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    seed = tl.load(seed_ptr) if SAMPLE else 0
    q_x = (q_x_ptr + sample * stride_q_x_b, stride_q_x_c, stride_q_x_p)
    q_s = (q_s_ptr + sample * stride_q_s_b, stride_q_s_c, stride_q_s_p)
    q_y = (q_y_ptr + sample * stride_q_y_b, stride_q_y_c, stride_q_y_p)
    r_x = (r_x_ptr + sample * stride_r_x_b, stride_r_x_c, stride_r_x_p)
    r_y = (r_y_ptr + sample * stride_r_y_b, stride_r_y_c, stride_r_y_p)
    x = sample * (C_x * P_x)  # the sample's first element in each code
    s = sample * (C_s * P_s)
    y = sample * (C_y * P_y)
    kl_ptr += sample
    if tl.program_id(1) == 0:
        noise = (seed, s, 1)
        shared_forward(q_s, r_x, r_y, z_s_ptr + s, kl_ptr + 2 * B, B, noise, (C_s, P_s), SAMPLE, LAYOUT, BLOCK)
    elif tl.program_id(1) == 1:
        exclusive_forward(q_x, z_x_ptr + x, kl_ptr, (seed, x, 0), (C_x, P_x), SAMPLE, BLOCK_EXCLUSIVE)
    else:
        exclusive_forward(q_y, z_y_ptr + y, kl_ptr + B, (seed, y, 2), (C_y, P_y), SAMPLE, BLOCK_EXCLUSIVE)


@jit
def _iiae_latents_backward_kernel(
    dz_x_ptr,  # (B, C_x, P_x)
    dz_s_ptr,  # (B, C_s, P_s)
    dz_y_ptr,  # (B, C_y, P_y)
    dkl_ptr,  # (5, B)
    q_x_ptr,  # (B, 2 C_x, P_x)
    q_s_ptr,  # (B, 2 C_s, P_s)
    q_y_ptr,  # (B, 2 C_y, P_y)
    r_x_ptr,  # like q_s
    r_y_ptr,  # like q_s
    dq_x_ptr,  # gradients, each like its head; written only where NEEDS_* says so
    dq_s_ptr,
    dq_y_ptr,
    dr_x_ptr,
    dr_y_ptr,
    seed_ptr,  # (1,), read only with SAMPLE
    C_x,
    P_x,
    C_s,
    P_s,
    C_y,
    P_y,
    stride_dkl_term,
    stride_dkl_b,
    stride_dz_x_b,
    stride_dz_x_c,
    stride_dz_x_p,
    stride_dz_s_b,
    stride_dz_s_c,
    stride_dz_s_p,
    stride_dz_y_b,
    stride_dz_y_c,
    stride_dz_y_p,
    stride_q_x_b,
    stride_q_x_c,
    stride_q_x_p,
    stride_q_s_b,
    stride_q_s_c,
    stride_q_s_p,
    stride_q_y_b,
    stride_q_y_c,
    stride_q_y_p,
    stride_r_x_b,
    stride_r_x_c,
    stride_r_x_p,
    stride_r_y_b,
    stride_r_y_c,
    stride_r_y_p,
    stride_dq_x_b,
    stride_dq_x_c,
    stride_dq_x_p,
    stride_dq_s_b,
    stride_dq_s_c,
    stride_dq_s_p,
    stride_dq_y_b,
    stride_dq_y_c,
    stride_dq_y_p,
    stride_dr_x_b,
    stride_dr_x_c,
    stride_dr_x_p,
    stride_dr_y_b,
    stride_dr_y_c,
    stride_dr_y_p,
    NEEDS_Q_X: tl.constexpr,
    NEEDS_Q_S: tl.constexpr,
    NEEDS_Q_Y: tl.constexpr,
    NEEDS_R_X: tl.constexpr,
    NEEDS_R_Y: tl.constexpr,
    SAMPLE: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_EXCLUSIVE: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    seed = tl.load(seed_ptr) if SAMPLE else 0
    dz_x = (dz_x_ptr + sample * stride_dz_x_b, stride_dz_x_c, stride_dz_x_p)
    dz_s = (dz_s_ptr + sample * stride_dz_s_b, stride_dz_s_c, stride_dz_s_p)
    dz_y = (dz_y_ptr + sample * stride_dz_y_b, stride_dz_y_c, stride_dz_y_p)
    q_x = (q_x_ptr + sample * stride_q_x_b, stride_q_x_c, stride_q_x_p)
    q_s = (q_s_ptr + sample * stride_q_s_b, stride_q_s_c, stride_q_s_p)
    q_y = (q_y_ptr + sample * stride_q_y_b, stride_q_y_c, stride_q_y_p)
    r_x = (r_x_ptr + sample * stride_r_x_b, stride_r_x_c, stride_r_x_p)
    r_y = (r_y_ptr + sample * stride_r_y_b, stride_r_y_c, stride_r_y_p)
    dq_x = (dq_x_ptr + sample * stride_dq_x_b, stride_dq_x_c, stride_dq_x_p)
    dq_s = (dq_s_ptr + sample * stride_dq_s_b, stride_dq_s_c, stride_dq_s_p)
    dq_y = (dq_y_ptr + sample * stride_dq_y_b, stride_dq_y_c, stride_dq_y_p)
    dr_x = (dr_x_ptr + sample * stride_dr_x_b, stride_dr_x_c, stride_dr_x_p)
    dr_y = (dr_y_ptr + sample * stride_dr_y_b, stride_dr_y_c, stride_dr_y_p)
    dkl_ptr += sample * stride_dkl_b
    if part == 0:
        if NEEDS_Q_X:
            noise = (seed, sample * (C_x * P_x), 0)
            exclusive_backward(dz_x, dkl_ptr, q_x, dq_x, noise, (C_x, P_x), SAMPLE, BLOCK_EXCLUSIVE)
    elif part == 1:
        if NEEDS_Q_Y:
            noise = (seed, sample * (C_y * P_y), 2)
            exclusive_backward(dz_y, dkl_ptr + stride_dkl_term, q_y, dq_y, noise, (C_y, P_y), SAMPLE, BLOCK_EXCLUSIVE)
    else:
        shared_backward(
            (part - 2) * BLOCK,
            dz_s,
            dkl_ptr + 2 * stride_dkl_term,
            stride_dkl_term,
            q_s,
            r_x,
            r_y,
            dq_s,
            dr_x,
            dr_y,
            (seed, sample * (C_s * P_s), 1),
            (C_s, P_s),
            NEEDS_Q_S,
            NEEDS_R_X,
            NEEDS_R_Y,
            SAMPLE,
            LAYOUT,
            BLOCK,
        )


def _sizes(q_x: Tensor, q_s: Tensor, q_y: Tensor) -> list[int]:
    """C and P of the three codes."""
    return [size for head in (q_x, q_s, q_y) for size in (head.shape[1] // 2, head.shape[2:].numel())]


def settings(sizes: Sequence[int], most: int, itemsize: int) -> dict[str, int]:
    """Blocks and warps for codes of these sizes; see ``code_settings``."""
    c_x, p_x, c_s, p_s, c_y, p_y = sizes
    exclusive = next_power_of_2(max(c_x * p_x, c_y * p_y), 16, 512)
    return {**code_settings(c_s * p_s, most, itemsize), "BLOCK_EXCLUSIVE": exclusive}


def _forward_fake(
    q_x: Tensor, q_s: Tensor, q_y: Tensor, r_x: Tensor, r_y: Tensor, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = common_layout(planes(q_s), planes(r_x), planes(r_y))
    kl = torch.empty((5, q_s.shape[0]), dtype=reference.compute_dtype(q_s.dtype), device=q_s.device)
    return empty_code(q_x), empty_code(q_s, layout), empty_code(q_y), kl


@register("iiae_latents")
def forward(
    q_x: Tensor, q_s: Tensor, q_y: Tensor, r_x: Tensor, r_y: Tensor, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _forward_fake(q_x, q_s, q_y, r_x, r_y, seed)
    heads = [planes(head) for head in (q_x, q_s, q_y, r_x, r_y)]
    sizes = _sizes(q_x, q_s, q_y)
    launch(
        _iiae_latents_forward_kernel,
        (q_s.shape[0], 3),
        *(head.tensor for head in heads),
        *outputs,
        outputs[3] if seed is None else seed,
        q_s.shape[0],
        *sizes,
        *(stride for head in heads for stride in head.strides),
        SAMPLE=seed is not None,
        LAYOUT=common_layout(heads[1], *heads[3:]),
        **settings(sizes, 2048, q_s.element_size()),
    )
    return outputs


def _backward_fake(
    dz_x: Tensor,
    dz_s: Tensor,
    dz_y: Tensor,
    dkl: Tensor,
    q_x: Tensor,
    q_s: Tensor,
    q_y: Tensor,
    r_x: Tensor,
    r_y: Tensor,
    seed: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq_x, dq_s, dq_y, dr_x, dr_y = map(empty_gradient, (q_x, q_s, q_y, r_x, r_y), needs)
    return dq_x, dq_s, dq_y, dr_x, dr_y


@register("iiae_latents_backward")
def backward(
    dz_x: Tensor,
    dz_s: Tensor,
    dz_y: Tensor,
    dkl: Tensor,
    q_x: Tensor,
    q_s: Tensor,
    q_y: Tensor,
    r_x: Tensor,
    r_y: Tensor,
    seed: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = _backward_fake(dz_x, dz_s, dz_y, dkl, q_x, q_s, q_y, r_x, r_y, seed, needs)
    heads = [planes(head) for head in (q_x, q_s, q_y, r_x, r_y)]
    # A gradient that nobody needs is not written; its head stands in for it.
    outputs = [planes(gradient) if need else head for gradient, need, head in zip(gradients, needs, heads)]
    codes = [planes(dz) for dz in (dz_x, dz_s, dz_y)]
    sizes = _sizes(q_x, q_s, q_y)
    constants = settings(sizes, 512, q_s.element_size())
    launch(
        _iiae_latents_backward_kernel,
        (q_s.shape[0], 2 - (-sizes[2] * sizes[3] // constants["BLOCK"])),
        *(code.tensor for code in codes),
        dkl,
        *(view.tensor for view in (*heads, *outputs)),
        dkl if seed is None else seed,
        *sizes,
        *dkl.stride(),
        *(stride for view in (*codes, *heads, *outputs) for stride in view.strides),
        **dict(zip(("NEEDS_Q_X", "NEEDS_Q_S", "NEEDS_Q_Y", "NEEDS_R_X", "NEEDS_R_Y"), needs)),
        SAMPLE=seed is not None,
        LAYOUT=common_layout(codes[1], heads[1], *heads[3:], outputs[1], *outputs[3:]),
        **constants,
    )
    return gradients


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dz_x: Tensor | None, dz_s: Tensor | None, dz_y: Tensor | None, dkl: Tensor | None
) -> tuple[Tensor | None, ...]:
    *heads, seed = ctx.saved_tensors
    codes = [or_zeros(dz, code_shape(head), head) for dz, head in zip((dz_x, dz_s, dz_y), heads)]
    needs = list(ctx.needs_input_grad[:5])
    gradients = backward(*codes, or_zeros(dkl, (5, len(heads[1])), heads[1]), *heads, seed, needs)
    return (*(gradient if need else None for gradient, need in zip(gradients, needs)), None)


forward.register_fake(_forward_fake)
backward.register_fake(_backward_fake)
forward.register_autograd(_differentiate, setup_context=_setup_context)


def iiae_latents(
    q_x: Tensor,
    q_s: Tensor,
    q_y: Tensor,
    r_x: Tensor,
    r_y: Tensor,
    *,
    seed: Seed | None = None,
    sample: bool = True,
    backend: str = "auto",
) -> Latents:
    """Sample the three codes of IIAE and measure the five KL terms of its loss.

    Args:
        q_x: Packed head of q(z_x|x): ``(B, 2D)`` or ``(B, 2C, H, W)``, [mean | logvar] along dim 1, any strides; fp32, bf16,
            fp16 or fp64.
        q_s: Head of q(z_s|x,y). Its shape may differ from the exclusive heads'.
        q_y: Head of q(z_y|y).
        r_x: Head of r(z_s|x), shaped as ``q_s``.
        r_y: Head of r(z_s|y), shaped as ``q_s``.
        seed: Of the noise: a whole number, or an int64 tensor of one element on the heads' device. z_x draws from stream 0,
            z_s from 1, z_y from 2, each by its own row-major element index. Needed only when sampling.
        sample: False returns the means as codes.
        backend: ``"reference"``, ``"triton"``, or ``"auto"``: Triton on a CUDA device, else the reference.

    Returns:
        z_x, z_s, z_y in the heads' dtype, and kl ``(5, B)`` in nats, fp32 (fp64 for fp64 heads), in the order q_x‖p, q_y‖p,
        q_s‖p, q_s‖r_x, q_s‖r_y. All are differentiable in all heads.

    Raises:
        ValueError: A head of another shape, dtype or device than accepted, no seed when sampling, an unknown backend.
        TypeError: A head or the seed is no tensor or number.
    """
    heads = {"q_s": q_s, "q_x": q_x, "q_y": q_y, "r_x": r_x, "r_y": r_y}
    for name, head in heads.items():
        require_head(name, head)
        require_alike(name, head, "q_s", q_s, shape=name.startswith("r"))
    seed = seed_tensor(seed, q_s.device) if sample else None
    if use_triton(backend, q_s.device):
        return Latents(*forward(q_x, q_s, q_y, r_x, r_y, seed))
    return reference.iiae_latents(q_x, q_s, q_y, r_x, r_y, seed)
