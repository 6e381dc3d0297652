"""Reconstruction losses with the decoder's last activation fused: weight · Σ |x − x̂|, (x − x̂)², or the Bernoulli NLL.

Prediction and target are ``(B, …)``, the loss ``(B,)``. The forward pass knows the gradient and writes it, weighted, when
anyone needs it; backward multiplies it in place by the incoming gradient, and every program of it returns at once where that
is 1. Sums have two stages: programs sum blocks, then one program for each sample sums those sums.
"""

from __future__ import annotations

import struct
from typing import Any, overload

import torch
from torch import Tensor

from iiae_fast.kernels import _layout, _reconstruction_cpu, reference
from iiae_fast.kernels._backend import use_triton
from iiae_fast.kernels._layout import Planes, common_layout, empty_gradient, planes
from iiae_fast.kernels._losses_device import forward_block, scale_blocks, sum_blocks
from iiae_fast.kernels._registry import jit, launch, next_power_of_2, register, tl, traced
from iiae_fast.kernels._validate import TARGET_DTYPES, require_choice, require_dtype, require_finite, require_tensor

LIKELIHOODS = ("laplace", "gaussian", "bernoulli")
ACTIVATIONS = (None, "tanh", "sigmoid")
BLOCKS_PER_PROGRAM = 8  # in backward, where programs mostly return at once

Pair = tuple[Tensor, Tensor]


@jit
def _reconstruction_forward_kernel(
    prediction_ptr,  # (B, C, P)
    target_ptr,  # (B, C, P)
    gradient_ptr,  # (B, C, P), written only with WRITE
    partial_ptr,  # (B, blocks)
    prediction_2_ptr,  # the other domain's, used only with PAIR
    target_2_ptr,
    gradient_2_ptr,
    partial_2_ptr,
    weight,  # in fp32
    weight_rest,  # what that lacks of the fp64 number
    C,
    P,
    blocks,
    C_2,
    P_2,
    blocks_2,
    stride_prediction_b,
    stride_prediction_c,
    stride_prediction_p,
    stride_target_b,
    stride_target_c,
    stride_target_p,
    stride_gradient_b,
    stride_gradient_c,
    stride_gradient_p,
    stride_prediction_2_b,
    stride_prediction_2_c,
    stride_prediction_2_p,
    stride_target_2_b,
    stride_target_2_c,
    stride_target_2_p,
    stride_gradient_2_b,
    stride_gradient_2_c,
    stride_gradient_2_p,
    LIKELIHOOD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PAIR: tl.constexpr,
    WRITE: tl.constexpr,
    WRITE_2: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    weights = (weight, weight_rest)
    prediction = (prediction_ptr + sample * stride_prediction_b, stride_prediction_c, stride_prediction_p)
    target = (target_ptr + sample * stride_target_b, stride_target_c, stride_target_p)
    gradient = (gradient_ptr + sample * stride_gradient_b, stride_gradient_c, stride_gradient_p)
    out = partial_ptr + sample * blocks + block
    if block < blocks:
        start = block * BLOCK
        forward_block(start, prediction, target, gradient, out, (C, P), weights, LIKELIHOOD, ACTIVATION, WRITE, LAYOUT, BLOCK)
    elif PAIR:
        prediction_2 = (prediction_2_ptr + sample * stride_prediction_2_b, stride_prediction_2_c, stride_prediction_2_p)
        target_2 = (target_2_ptr + sample * stride_target_2_b, stride_target_2_c, stride_target_2_p)
        gradient_2 = (gradient_2_ptr + sample * stride_gradient_2_b, stride_gradient_2_c, stride_gradient_2_p)
        start = (block - blocks) * BLOCK
        forward_block(
            start,
            prediction_2,
            target_2,
            gradient_2,
            partial_2_ptr + sample * blocks_2 + block - blocks,
            (C_2, P_2),
            weights,
            LIKELIHOOD,
            ACTIVATION,
            WRITE_2,
            LAYOUT,
            BLOCK,
        )


@jit
def _reconstruction_sum_kernel(
    partial_ptr,  # (B, blocks)
    partial_2_ptr,  # (B, blocks_2)
    loss_ptr,  # (B,)
    loss_2_ptr,  # (B,)
    blocks,
    blocks_2,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    if tl.program_id(1) == 0:
        sum_blocks(partial_ptr + sample * blocks, loss_ptr + sample, blocks, BLOCK)
    else:
        sum_blocks(partial_2_ptr + sample * blocks_2, loss_2_ptr + sample, blocks_2, BLOCK)


@jit
def _reconstruction_scale_kernel(
    gradient_ptr,  # (B, C, P), in and out
    dloss_ptr,  # (B,)
    gradient_2_ptr,  # the other domain's, used only with PAIR
    dloss_2_ptr,
    C,
    P,
    parts,
    C_2,
    P_2,
    stride_dloss,
    stride_dloss_2,
    stride_gradient_b,
    stride_gradient_c,
    stride_gradient_p,
    stride_gradient_2_b,
    stride_gradient_2_c,
    stride_gradient_2_p,
    PAIR: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if part < parts:
        gradient = (gradient_ptr + sample * stride_gradient_b, stride_gradient_c, stride_gradient_p)
        scale_blocks(gradient, dloss_ptr + sample * stride_dloss, part, (C, P), LAYOUT, BLOCK, BLOCKS)
    elif PAIR:
        gradient_2 = (gradient_2_ptr + sample * stride_gradient_2_b, stride_gradient_2_c, stride_gradient_2_p)
        scale_blocks(gradient_2, dloss_2_ptr + sample * stride_dloss_2, part - parts, (C_2, P_2), LAYOUT, BLOCK, BLOCKS)


def settings(elements: int) -> dict[str, int]:
    """Block and warps for samples of so many elements: eight a thread, one 16-byte load of 16 bits, two of fp32."""
    block = next_power_of_2(elements, 128, 2048)
    return {"BLOCK": block, "num_warps": max(1, block // 256)}


def _order(*views: Planes) -> int:
    """A layout for one domain. No particular order is needed here, so dense channels-last tensors are walked as they lie."""
    layout = common_layout(*views)
    if layout == _layout.CHANNELS_LAST:
        channels = views[0].tensor.shape[1]
        layout = _layout.CONTIGUOUS if all(view.stride_p == channels for view in views) else _layout.STRIDED
    return layout


def _sizes(tensor: Tensor) -> tuple[int, int]:
    """C and P."""
    return tensor.shape[1], tensor.shape[2:].numel()


def _forward_fake(
    prediction: Tensor,
    target: Tensor,
    prediction_2: Tensor | None,
    target_2: Tensor | None,
    likelihood: str,
    activation: str | None,
    weight: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = reference.compute_dtype(prediction.dtype)
    loss = torch.empty(len(prediction), dtype=dtype, device=prediction.device)
    gradient = empty_gradient(prediction, needs[0])
    if prediction_2 is None:
        return loss, gradient, loss.new_empty(0), gradient.new_empty(0)
    return loss, gradient, torch.empty_like(loss), empty_gradient(prediction_2, needs[1])


@register("reconstruction")
def forward(
    prediction: Tensor,
    target: Tensor,
    prediction_2: Tensor | None,
    target_2: Tensor | None,
    likelihood: str,
    activation: str | None,
    weight: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _forward_fake(prediction, target, prediction_2, target_2, likelihood, activation, weight, needs)
    loss, gradient, loss_2, gradient_2 = outputs
    domains = [(prediction, target, gradient, loss, needs[0])] * 2
    pair = prediction_2 is not None
    if prediction_2 is not None and target_2 is not None:
        domains[1] = (prediction_2, target_2, gradient_2, loss_2, needs[1])
    constants = settings(max(x.shape[1:].numel() for x, *_ in domains))
    counts = [-(-x.shape[1:].numel() // constants["BLOCK"]) for x, *_ in domains]
    pointers, sizes, strides, layouts, partials = [], [], [], [], []
    for (x, wanted, dx, total, needed), count in zip(domains, counts):
        inputs = [planes(x), planes(wanted)]
        # A gradient that nobody needs is not written; its prediction stands in for it.
        views = [*inputs, planes(dx) if needed else inputs[0]]
        layouts.append(_order(*views))
        partials.append(total if max(counts) == 1 else total.new_empty((len(x), count)))
        pointers += [*(view.tensor for view in views), partials[-1]]
        sizes += [*_sizes(x), count]
        strides += [stride for view in views for stride in view.strides]
    high: float = struct.unpack("f", struct.pack("f", weight))[0]
    launch(
        _reconstruction_forward_kernel,
        (len(prediction), sum(counts) if pair else counts[0]),
        *pointers,
        high,
        weight - high,
        *sizes,
        *strides,
        LIKELIHOOD=LIKELIHOODS.index(likelihood),
        ACTIVATION=ACTIVATIONS.index(activation),
        PAIR=pair,
        WRITE=needs[0],
        WRITE_2=needs[1],
        LAYOUT=max(layouts),
        **constants,
    )
    if max(counts) > 1:
        block = next_power_of_2(max(counts), 16, 1024)
        losses = (loss, loss_2 if pair else loss)
        grid = (len(prediction), 1 + pair)
        launch(_reconstruction_sum_kernel, grid, *partials, *losses, *counts, BLOCK=block, num_warps=max(1, block // 256))
    return outputs


@register("reconstruction_scale_", mutates=("gradient", "gradient_2"))
def scale_gradients(gradient: Tensor, dloss: Tensor, gradient_2: Tensor | None, dloss_2: Tensor | None) -> None:
    pair = gradient_2 is not None
    tensors = (gradient, gradient if gradient_2 is None else gradient_2)
    incoming = (dloss, dloss if dloss_2 is None else dloss_2)
    views = [planes(tensor) for tensor in tensors]
    constants = settings(max(tensor.shape[1:].numel() for tensor in tensors))
    parts = [-(-tensor.shape[1:].numel() // (constants["BLOCK"] * BLOCKS_PER_PROGRAM)) for tensor in tensors]
    launch(
        _reconstruction_scale_kernel,
        (len(gradient), sum(parts) if pair else parts[0]),
        tensors[0],
        incoming[0],
        tensors[1],
        incoming[1],
        *_sizes(tensors[0]),
        parts[0],
        *_sizes(tensors[1]),
        *(scale.stride(0) for scale in incoming),
        *(stride for view in views for stride in view.strides),
        PAIR=pair,
        LAYOUT=max(_order(view) for view in views),
        BLOCKS=BLOCKS_PER_PROGRAM,
        **constants,
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]
    _, gradient, _, gradient_2 = output
    ctx.gradients = [gradient, gradient_2]
    ctx.mark_non_differentiable(gradient, gradient_2)
    ctx.set_materialize_grads(False)


def _product(gradient: Tensor, scale: Tensor) -> Tensor:
    return (gradient * scale.view(-1, *(1,) * (gradient.dim() - 1))).to(gradient.dtype)


def _differentiate(ctx: Any, dloss: Tensor | None, _: None, dloss_2: Tensor | None, __: None) -> tuple[Tensor | None, ...]:
    gradients = ctx.gradients
    ctx.gradients = None
    if gradients is None:
        # The second backward through a retained graph: the first one scaled and gave away what forward had written.
        with torch.no_grad():
            gradients = forward(*ctx.saved_tensors, *ctx.options)[1::2]
    incoming = [dloss if ctx.needs_input_grad[0] else None, dloss_2 if ctx.needs_input_grad[2] else None]
    wanted = [(gradient, scale) for gradient, scale in zip(gradients, incoming) if scale is not None]
    if traced(gradients[0]):
        # A compiler would copy what is changed in place; a plain product it fuses with what follows.
        gradients = [g if s is None else _product(g, s) for g, s in zip(gradients, incoming)]
    elif wanted:
        scale_gradients(*wanted[0], *(wanted[1] if len(wanted) == 2 else (None, None)))
    dprediction, dprediction_2 = (None if scale is None else gradient for gradient, scale in zip(gradients, incoming))
    return dprediction, None, dprediction_2, None, None, None, None, None


forward.register_fake(_forward_fake)
scale_gradients.register_fake(lambda gradient, dloss, gradient_2, dloss_2: None)
forward.register_autograd(_differentiate, setup_context=_setup_context)


def _as_tuple(name: str, value: object) -> tuple[Tensor, ...]:
    """A tensor by itself, or a pair of them."""
    if isinstance(value, Tensor):
        return (value,)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: expected a tensor or a pair of tensors, got {type(value).__name__}")
    for one in value:
        require_tensor(name, one)
    return tuple(value)


def _require_sample_pair(prediction: Tensor, target: Tensor) -> None:
    require_dtype("prediction", prediction)
    require_dtype("target", target, TARGET_DTYPES)
    if prediction.dim() < 2:
        raise ValueError(f"prediction: shape {tuple(prediction.shape)}; accepted is (B, ...) with at least 2 dimensions")
    if prediction.shape != target.shape:
        raise ValueError(f"target: shape {tuple(target.shape)} differs from prediction's {tuple(prediction.shape)}")
    if prediction.device != target.device:
        raise ValueError(f"target: device {target.device} differs from prediction's {prediction.device}")
    if target.requires_grad:
        raise ValueError("target: requires grad, and the loss is differentiable only in the prediction; pass target.detach()")


def _launch_together(
    predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...], likelihood: str, activation: str | None, weight: float
) -> list[Tensor]:
    """One op for a pair whose batch sizes, dtypes and devices are equal, else one for each domain."""
    if len(predictions) == 2 and _kind(predictions[0]) != _kind(predictions[1]):
        alone = [((one,), (wanted,)) for one, wanted in zip(predictions, targets)]
        return [_launch_together(*domain, likelihood, activation, weight)[0] for domain in alone]
    needs = [torch.is_grad_enabled() and one.requires_grad for one in predictions]
    flat: list[Tensor | None] = [
        tensor if tensor.dim() in (2, 4) else tensor.flatten(1) for pair in zip(predictions, targets) for tensor in pair
    ]
    if len(predictions) == 1:
        flat, needs = [*flat, None, None], [*needs, False]
    outputs = forward(*flat, likelihood, activation, weight, needs)
    return list(outputs[::2])


def _kind(tensor: Tensor) -> tuple[int, torch.dtype, torch.device]:
    return len(tensor), tensor.dtype, tensor.device


def _on_cpu(prediction: Tensor, target: Tensor, likelihood: str, activation: str | None, weight: float, backend: str) -> Tensor:
    if backend == "auto" and _reconstruction_cpu.fits(prediction, target, likelihood, activation):
        return _reconstruction_cpu.reconstruction(prediction, target, likelihood, activation, float(weight))
    return reference.reconstruction(prediction, target, likelihood, activation, weight)


@overload
def reconstruction(
    prediction: Tensor,
    target: Tensor,
    likelihood: str = "laplace",
    activation: str | None = None,
    weight: float = 1.0,
    backend: str = "auto",
) -> Tensor: ...


@overload
def reconstruction(
    prediction: Pair,
    target: Pair,
    likelihood: str = "laplace",
    activation: str | None = None,
    weight: float = 1.0,
    backend: str = "auto",
) -> Pair: ...


def reconstruction(
    prediction: Tensor | Pair,
    target: Tensor | Pair,
    likelihood: str = "laplace",
    activation: str | None = None,
    weight: float = 1.0,
    backend: str = "auto",
) -> Tensor | Pair:
    """Negative log-likelihood of each sample up to a constant, weighted; for one domain, or for both at once.

    Args:
        prediction: ``(B, …)`` decoder output before its last activation, any strides; fp32, bf16, fp16 or fp64. Or a pair.
        target: Of the same shape, any of those dtypes or uint8: v then means v / 127.5 − 1, or v / 255 for ``"bernoulli"``.
            A pair when the prediction is one.
        likelihood: ``"laplace"`` |x − x̂|, ``"gaussian"`` (x − x̂)², ``"bernoulli"`` −x log σ(x̂) − (1 − x) log(1 − σ(x̂)).
        activation: Applied to the prediction first. ``"bernoulli"`` takes logits, so None.
        weight: Factor on the loss. Fold the mean over batch and elements in here and sum the result: the gradient that
            reaches this function is then exactly 1, and its backward has nothing to do.
        backend: ``"reference"``, ``"triton"``, or ``"auto"``: Triton on a CUDA device; on a CPU a C++ kernel for bf16
            predictions that lie in memory as their targets (fp32 or bytes) do, but for sigmoid and ``"bernoulli"``; else the
            reference.

    Returns:
        ``(B,)`` in nats, fp32 (fp64 for fp64 predictions), summed over a sample's elements; for a pair, a pair of them.

    Raises:
        ValueError: Shapes or devices that differ, a dtype or name that is not accepted, a target that requires grad.
        TypeError: An argument of another type.
    """
    require_choice("likelihood", likelihood, LIKELIHOODS)
    require_choice("activation", activation, ACTIVATIONS)
    if likelihood == "bernoulli" and activation is not None:
        raise ValueError(f"activation={activation!r}; 'bernoulli' takes logits, so accepted is None")
    require_finite("weight", weight)
    predictions, targets = _as_tuple("prediction", prediction), _as_tuple("target", target)
    if len(predictions) != len(targets):
        raise ValueError(f"target: {len(targets)} tensors for {len(predictions)} predictions; accepted are as many")
    for one, wanted in zip(predictions, targets):
        _require_sample_pair(one, wanted)
    if use_triton(backend, predictions[0].device):
        losses = _launch_together(predictions, targets, likelihood, activation, float(weight))
    else:
        losses = [_on_cpu(*pair, likelihood, activation, weight, backend) for pair in zip(predictions, targets)]
    return losses[0] if isinstance(prediction, Tensor) else (losses[0], losses[1])
