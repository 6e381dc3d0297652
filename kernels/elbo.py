"""The end of the loss: the batch's mean of every term, and their weighted sum.

    rec_x, rec_y    Σ_b loss / outer, with outer the reconstruction weight that ``loss`` already carries
    KL terms        mean over b of the five rows of ``kl``
    a_t             1 − exp(−t/τ) after t optimizer steps; 1 when τ is 0
    total           Σ_b (loss_x + loss_y) + a_t (w_exclusive (KL_x + KL_y) + w_shared KL_s) + w_cross (KL_s‖rx + KL_s‖ry)

They are a few numbers, but a dozen operators each way in plain PyTorch; here one launch each way. ``loss_x`` and ``loss_y`` are
``(B,)``, ``kl`` is ``(5, B)``. One program sums the batch, so the sums have one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iiae_fast.kernels import reference
from iiae_fast.kernels._backend import use_triton
from iiae_fast.kernels._layout import or_zeros
from iiae_fast.kernels._registry import jit, launch, next_power_of_2, register, tl
from iiae_fast.kernels._validate import require_dtype, require_finite, require_kind, require_tensor, require_whole
from iiae_fast.kernels.reference import Elbo, ElboWeights


@jit
def _annealing(step_ptr, STEPS: tl.constexpr):
    """a_t in fp64, since 1 − exp(−t/τ) of small t/τ has few digits left in fp32."""
    a = tl.cast(1.0, tl.float64)
    if STEPS != 0:
        a -= tl.exp(-tl.load(step_ptr).to(tl.float64) / STEPS)
    return a


@jit
def _row(ptr, stride, index, mask):
    return tl.load(ptr + index * stride, mask=mask, other=0.0)


@jit
def _elbo_forward_kernel(
    loss_x_ptr,  # (B,)
    loss_y_ptr,  # (B,)
    kl_ptr,  # (5, B)
    step_ptr,  # one int64, read only with STEPS
    total_ptr,  # one number
    terms_ptr,  # (8,): rec_x, rec_y, five KL terms, a_t
    B,
    stride_loss_x,
    stride_loss_y,
    stride_kl_term,
    stride_kl_b,
    OUTER: tl.constexpr,
    EXCLUSIVE: tl.constexpr,
    SHARED: tl.constexpr,
    CROSS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DTYPE: tl.constexpr = loss_x_ptr.dtype.element_ty
    zero = tl.zeros((BLOCK,), DTYPE)
    loss_x, loss_y, kl_x, kl_y, kl_s, kl_s_rx, kl_s_ry = zero, zero, zero, zero, zero, zero, zero
    for start in range(0, B, BLOCK):
        index = start + tl.arange(0, BLOCK)
        mask = index < B
        loss_x += _row(loss_x_ptr, stride_loss_x, index, mask)
        loss_y += _row(loss_y_ptr, stride_loss_y, index, mask)
        kl_x += _row(kl_ptr, stride_kl_b, index, mask)
        kl_y += _row(kl_ptr + stride_kl_term, stride_kl_b, index, mask)
        kl_s += _row(kl_ptr + 2 * stride_kl_term, stride_kl_b, index, mask)
        kl_s_rx += _row(kl_ptr + 3 * stride_kl_term, stride_kl_b, index, mask)
        kl_s_ry += _row(kl_ptr + 4 * stride_kl_term, stride_kl_b, index, mask)
    a = _annealing(step_ptr, STEPS).to(DTYPE)
    batch = tl.cast(B, DTYPE)
    sum_x, sum_y = tl.sum(loss_x), tl.sum(loss_y)
    mean_x, mean_y, mean_s = tl.sum(kl_x) / batch, tl.sum(kl_y) / batch, tl.sum(kl_s) / batch
    mean_rx, mean_ry = tl.sum(kl_s_rx) / batch, tl.sum(kl_s_ry) / batch
    total = a * (EXCLUSIVE * (mean_x + mean_y) + SHARED * mean_s)
    if CROSS != 0:
        total += CROSS * (mean_rx + mean_ry)
    if OUTER != 0:
        total += sum_x + sum_y
        sum_x /= OUTER
        sum_y /= OUTER
    tl.store(total_ptr, total)
    tl.store(terms_ptr, sum_x)
    tl.store(terms_ptr + 1, sum_y)
    tl.store(terms_ptr + 2, mean_x)
    tl.store(terms_ptr + 3, mean_y)
    tl.store(terms_ptr + 4, mean_s)
    tl.store(terms_ptr + 5, mean_rx)
    tl.store(terms_ptr + 6, mean_ry)
    tl.store(terms_ptr + 7, a)


@jit
def _elbo_backward_kernel(
    dtotal_ptr,  # one number
    dterms_ptr,  # (8,), read only with HAS_TERMS
    step_ptr,  # one int64, read only with STEPS
    dloss_x_ptr,  # (B,)
    dloss_y_ptr,  # (B,)
    dkl_ptr,  # (5, B)
    B,
    stride_dterms,
    OUTER: tl.constexpr,
    EXCLUSIVE: tl.constexpr,
    SHARED: tl.constexpr,
    CROSS: tl.constexpr,
    STEPS: tl.constexpr,
    HAS_TERMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DTYPE: tl.constexpr = dloss_x_ptr.dtype.element_ty
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < B
    dtotal = tl.load(dtotal_ptr)
    a = _annealing(step_ptr, STEPS).to(DTYPE)
    batch = tl.cast(B, DTYPE)
    # Exactly 1 where the total is what is differentiated: ``reconstruction`` then has nothing to do in its backward.
    dloss_x = dtotal if OUTER != 0 else dtotal * 0.0
    dloss_y = dloss_x
    dkl_x = dtotal * (a * EXCLUSIVE)
    dkl_y = dkl_x
    dkl_s = dtotal * (a * SHARED)
    dkl_s_rx = dtotal * CROSS
    dkl_s_ry = dkl_s_rx
    if HAS_TERMS:
        divisor: tl.constexpr = OUTER if OUTER != 0 else 1.0
        dloss_x += tl.load(dterms_ptr) / divisor
        dloss_y += tl.load(dterms_ptr + stride_dterms) / divisor
        dkl_x += tl.load(dterms_ptr + 2 * stride_dterms)
        dkl_y += tl.load(dterms_ptr + 3 * stride_dterms)
        dkl_s += tl.load(dterms_ptr + 4 * stride_dterms)
        dkl_s_rx += tl.load(dterms_ptr + 5 * stride_dterms)
        dkl_s_ry += tl.load(dterms_ptr + 6 * stride_dterms)
    zero = tl.zeros((BLOCK,), DTYPE)
    tl.store(dloss_x_ptr + index, zero + dloss_x, mask=mask)
    tl.store(dloss_y_ptr + index, zero + dloss_y, mask=mask)
    tl.store(dkl_ptr + index, zero + dkl_x / batch, mask=mask)
    tl.store(dkl_ptr + B + index, zero + dkl_y / batch, mask=mask)
    tl.store(dkl_ptr + 2 * B + index, zero + dkl_s / batch, mask=mask)
    tl.store(dkl_ptr + 3 * B + index, zero + dkl_s_rx / batch, mask=mask)
    tl.store(dkl_ptr + 4 * B + index, zero + dkl_s_ry / batch, mask=mask)


def settings(batch: int) -> dict[str, int]:
    """Block and warps for a batch: four samples a thread."""
    block = next_power_of_2(batch, 16, 512)
    return {"BLOCK": block, "num_warps": max(1, block // 128)}


def _constants(weights: Sequence[float], steps: float) -> dict[str, Any]:
    outer, exclusive, shared, cross = weights
    return {"OUTER": outer, "EXCLUSIVE": exclusive, "SHARED": shared, "CROSS": cross, "STEPS": steps}


def _forward_fake(
    loss_x: Tensor, loss_y: Tensor, kl: Tensor, step: Tensor, weights: Sequence[float], steps: float
) -> tuple[Tensor, Tensor]:
    return loss_x.new_empty(()), loss_x.new_empty(8)


@register("elbo")
def forward(
    loss_x: Tensor, loss_y: Tensor, kl: Tensor, step: Tensor, weights: Sequence[float], steps: float
) -> tuple[Tensor, Tensor]:
    total, terms = _forward_fake(loss_x, loss_y, kl, step, weights, steps)
    launch(
        _elbo_forward_kernel,
        (1,),
        loss_x,
        loss_y,
        kl,
        step,
        total,
        terms,
        len(loss_x),
        loss_x.stride(0),
        loss_y.stride(0),
        *kl.stride(),
        **_constants(weights, steps),
        **settings(len(loss_x)),
    )
    return total, terms


def _backward_fake(
    dtotal: Tensor, dterms: Tensor | None, step: Tensor, batch: int, weights: Sequence[float], steps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return dtotal.new_empty(batch), dtotal.new_empty(batch), dtotal.new_empty((5, batch))


@register("elbo_backward")
def backward(
    dtotal: Tensor, dterms: Tensor | None, step: Tensor, batch: int, weights: Sequence[float], steps: float
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _backward_fake(dtotal, dterms, step, batch, weights, steps)
    constants = settings(batch)
    launch(
        _elbo_backward_kernel,
        (-(-batch // constants["BLOCK"]),),
        dtotal,
        dtotal if dterms is None else dterms,
        step,
        *gradients,
        batch,
        0 if dterms is None else dterms.stride(0),
        HAS_TERMS=dterms is not None,
        **_constants(weights, steps),
        **constants,
    )
    return gradients


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    loss_x, _, _, step, weights, steps = inputs
    ctx.save_for_backward(step, loss_x.new_empty(0))
    ctx.options = (len(loss_x), weights, steps)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dtotal: Tensor | None, dterms: Tensor | None) -> tuple[Tensor | None, ...]:
    step, like = ctx.saved_tensors
    gradients = backward(or_zeros(dtotal, (), like), dterms, step, *ctx.options)
    return (*(gradient if need else None for gradient, need in zip(gradients, ctx.needs_input_grad)), None, None, None)


forward.register_fake(_forward_fake)
backward.register_fake(_backward_fake)
forward.register_autograd(_differentiate, setup_context=_setup_context)


def elbo(
    loss_x: Tensor,
    loss_y: Tensor,
    kl: Tensor,
    weights: ElboWeights,
    *,
    step: int | Tensor = 0,
    annealing_steps: float = 0.0,
    backend: str = "auto",
) -> Elbo:
    """The negative evidence bound of a batch of pairs from its per-sample terms.

    Args:
        loss_x: ``(B,)`` reconstruction losses of x, to be summed: fold the mean over the batch, and ``weights.reconstruction``,
            into the ``weight`` of ``reconstruction``. fp32, or fp64.
        loss_y: Of y.
        kl: ``(5, B)`` nats in the order of ``iiae_latents``.
        weights: Of the terms in the total.
        step: Optimizer steps already taken: a whole number, or an int64 tensor of one element on the terms' device.
        annealing_steps: τ of the KL annealing, in optimizer steps; 0 means none.
        backend: ``"reference"``, ``"triton"``, or ``"auto"``: Triton on a CUDA device, else the reference.

    Returns:
        The total, and every term before its weight: scalars in the terms' dtype, differentiable in the three tensors.

    Raises:
        ValueError: Terms of another shape, dtype or device than accepted, a negative step or τ, an unknown backend.
        TypeError: An argument of another type.
    """
    require_tensor("loss_x", loss_x)
    if loss_x.dim() != 1:
        raise ValueError(f"loss_x: shape {tuple(loss_x.shape)}; accepted is (B,)")
    require_dtype("loss_x", loss_x, (torch.float32, torch.float64))
    for name, value, shape in (("loss_y", loss_y, loss_x.shape), ("kl", kl, (5, *loss_x.shape))):
        require_tensor(name, value)
        if value.shape != shape:
            raise ValueError(f"{name}: shape {tuple(value.shape)}; accepted is {tuple(shape)}, as loss_x has {len(loss_x)}")
        require_kind(name, value, "loss_x", loss_x)
    for name, number in (("annealing_steps", annealing_steps), *zip(ElboWeights._fields, weights)):
        require_finite(name, number)
    if annealing_steps < 0:
        raise ValueError(f"annealing_steps={annealing_steps!r}; accepted is a number of at least 0")
    if isinstance(step, Tensor):
        if step.dtype != torch.int64 or step.numel() != 1 or step.device != loss_x.device:
            given = f"{step.dtype}, shape {tuple(step.shape)}, on {step.device}"
            raise ValueError(f"step: {given}; accepted is an int64 tensor of one element on {loss_x.device}")
        step = step.detach().reshape(())
    else:
        require_whole("step", step, 0)
    if not use_triton(backend, loss_x.device):
        return reference.elbo(loss_x, loss_y, kl, step, weights, annealing_steps)
    on_device = step if isinstance(step, Tensor) else torch.full((), int(step), dtype=torch.int64, device=loss_x.device)
    total, terms = forward(loss_x, loss_y, kl, on_device, list(map(float, weights)), float(annealing_steps))
    bound = Elbo(total, *terms.unbind())
    if isinstance(step, Tensor):
        return bound
    return bound._replace(kl_annealing=reference.kl_annealing(step, annealing_steps))
