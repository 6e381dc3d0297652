"""What the programs of ``reconstruction`` do with a block of one sample. Tuples are as in ``_device``; all of it is inlined."""

from __future__ import annotations

from iiae_fast.kernels._device import address, locate, narrow
from iiae_fast.kernels._registry import constant, jit, tl

# Places in LIKELIHOODS and ACTIVATIONS of ``reconstruction``.
LAPLACE = constant(0)
BERNOULLI = constant(2)
IDENTITY = constant(0)
TANH = constant(1)


@jit
def _squash(x, FACTOR: tl.constexpr):
    """e = exp(−FACTOR |x|), which does not overflow, and 1 / (1 + e): one exponential and one division for each element."""
    e = tl.exp2(tl.abs(x) * (-1.4426950408889634 * FACTOR))
    return e, 1.0 / (1.0 + e)


@jit
def _terms(x, target, scale, LIKELIHOOD: tl.constexpr, ACTIVATION: tl.constexpr):
    """Each element's loss, and ``scale`` times its derivative by the prediction x."""
    if LIKELIHOOD == BERNOULLI:
        e, larger = _squash(x, 1.0)
        loss = tl.maximum(x, 0.0) - x * target - tl.log(larger)
        gradient = scale * (tl.where(x < 0, e * larger, larger) - target)
    else:
        slope = scale  # times the activation's derivative
        if ACTIVATION == IDENTITY:
            difference = x - target
        elif ACTIVATION == TANH:
            e, larger = _squash(x, 2.0)
            size = (1.0 - e) * larger
            difference = tl.where(x < 0, -size, size) - target
            slope = (e * larger) * (larger * (4.0 * scale))
        else:
            e, larger = _squash(x, 1.0)
            smaller = e * larger
            difference = tl.where(x < 0, smaller, larger) - target
            slope = smaller * (larger * scale)
        if LIKELIHOOD == LAPLACE:
            loss = tl.abs(difference)
            gradient = tl.where(difference > 0, slope, tl.where(difference < 0, -slope, 0.0))
        else:
            loss = difference * difference
            gradient = difference * (2.0 * slope)
    return loss, gradient


@jit
def forward_block(
    start,
    prediction,
    target,
    gradient,
    partial_ptr,
    shape,
    weight,
    LIKELIHOOD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WRITE: tl.constexpr,
    LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum one block of one sample, and write its gradient. Tuples are as in ``_device``; the weight is in two parts."""
    DTYPE: tl.constexpr = tl.float64 if prediction[0].dtype.element_ty == tl.float64 else tl.float32
    index, _ = locate(start, shape, LAYOUT, BLOCK)
    x = tl.load(address(index, prediction, LAYOUT), mask=index[3], other=0.0).to(DTYPE)
    wanted = tl.load(address(index, target, LAYOUT), mask=index[3], other=0).to(DTYPE)
    if target[0].dtype.element_ty == tl.uint8:
        wanted = wanted * (1 / 255) if LIKELIHOOD == BERNOULLI else (wanted - 127.5) * (1 / 127.5)
    factor = tl.cast(weight[0], DTYPE) + tl.cast(weight[1], DTYPE)
    loss, scaled = _terms(x, wanted, factor, LIKELIHOOD, ACTIVATION)
    tl.store(partial_ptr, factor * tl.sum(tl.where(index[3], loss, 0.0)))
    if WRITE:
        place = address(index, gradient, LAYOUT)
        tl.store(place, narrow(scaled, gradient[0]), mask=index[3])


@jit
def sum_blocks(partial_ptr, loss_ptr, blocks, BLOCK: tl.constexpr):
    """Sum one sample's blocks."""
    total = tl.zeros((BLOCK,), loss_ptr.dtype.element_ty)
    for start in range(0, blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + block, mask=block < blocks, other=0.0)
    tl.store(loss_ptr, tl.sum(total))


@jit
def scale_blocks(gradient, dloss_ptr, part, shape, LAYOUT: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """Multiply some blocks of one sample's gradient by the incoming gradient, unless that is 1."""
    factor = tl.load(dloss_ptr)
    if factor != 1.0:
        for block in range(part * BLOCKS, part * BLOCKS + BLOCKS):
            index, _ = locate(block * BLOCK, shape, LAYOUT, BLOCK)
            place = address(index, gradient, LAYOUT)
            scaled = tl.load(place, mask=index[3], other=0.0).to(factor.dtype) * factor
            tl.store(place, narrow(scaled, gradient[0]), mask=index[3])
