"""What the kernels on Gaussian heads share; all of it is inlined.

Some arguments are tuples: ``shape`` is (C, P); a ``view`` is (pointer to one sample, stride of channels, stride of positions);
``index`` is (element in the kernel's order, its channel, its position, its mask); ``noise`` is (seed, row-major index of the
sample's first element within the whole batch, stream).
"""

from __future__ import annotations

from iiae_fast.kernels import _layout, reference
from iiae_fast.kernels._registry import INTERPRETED, constant, jit, tl

ROUND_BF16 = constant(INTERPRETED)
LOGVAR_MIN = constant(reference.LOGVAR_MIN)
LOGVAR_MAX = constant(reference.LOGVAR_MAX)
CONTIGUOUS = constant(_layout.CONTIGUOUS)
CHANNELS_LAST = constant(_layout.CHANNELS_LAST)
STRIDED = constant(_layout.STRIDED)


@jit
def locate(start, shape, LAYOUT: tl.constexpr, BLOCK: tl.constexpr):
    """The index of a block, and its elements in row-major order."""
    C, P = shape
    i = start + tl.arange(0, BLOCK)
    if LAYOUT == CHANNELS_LAST:
        c = i % C
        p = i // C
        element = c * P + p
    else:
        c = i // P
        p = i % P
        element = i
    return (i, c, p, i < C * P), element


@jit
def address(index, view, LAYOUT: tl.constexpr):
    """Where the elements lie, written so that the compiler sees contiguous runs where there are some."""
    i, c, p, _ = index
    ptr, stride_c, stride_p = view
    if LAYOUT == CONTIGUOUS:
        place = ptr + i
    elif LAYOUT == CHANNELS_LAST:
        place = ptr + (p.to(tl.int64) * stride_p + c)
    else:
        place = ptr + (c.to(tl.int64) * stride_c + p.to(tl.int64) * stride_p)
    return place


@jit
def to_logvar(shape, view, LAYOUT: tl.constexpr):
    """Distance from a mean to its log-variance."""
    C, P = shape
    _, stride_c, _ = view
    if LAYOUT == CONTIGUOUS:
        distance = C * P
    elif LAYOUT == CHANNELS_LAST:
        distance = C
    else:
        distance = tl.cast(C, tl.int64) * stride_c
    return distance


@jit
def narrow(x, ptr):
    """``x`` in the dtype of what is stored there, rounded to nearest even as hardware does; the interpreter would truncate."""
    if ROUND_BF16 and ptr.dtype.element_ty == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)).to(tl.float32, bitcast=True)
        x = tl.where(x == x, rounded, x)
    return x.to(ptr.dtype.element_ty)


@jit
def load(index, view, LAYOUT: tl.constexpr, DTYPE: tl.constexpr):
    """Elements of a view, 0 outside the mask."""
    return tl.load(address(index, view, LAYOUT), mask=index[3], other=0.0).to(DTYPE)


@jit
def load_head(index, shape, view, LAYOUT: tl.constexpr, DTYPE: tl.constexpr):
    """Mean, clamped log-variance, and where it was not clamped. Outside the mask: N(0, I), whose KL terms are 0."""
    at = address(index, view, LAYOUT)
    mean = tl.load(at, mask=index[3], other=0.0).to(DTYPE)
    raw = tl.load(at + to_logvar(shape, view, LAYOUT), mask=index[3], other=0.0).to(DTYPE)
    logvar = tl.where(raw > LOGVAR_MAX, LOGVAR_MAX, tl.where(raw < LOGVAR_MIN, LOGVAR_MIN, raw))  # a NaN stays one
    return mean, logvar, (raw >= LOGVAR_MIN) & (raw <= LOGVAR_MAX)


@jit
def store_head(index, shape, view, dmean, dlogvar, free, LAYOUT: tl.constexpr):
    """Gradients of mean and log-variance, the latter 0 where it was clamped."""
    at = address(index, view, LAYOUT)
    tl.store(at, narrow(dmean, view[0]), mask=index[3])
    tl.store(at + to_logvar(shape, view, LAYOUT), narrow(tl.where(free, dlogvar, 0.0), view[0]), mask=index[3])


@jit
def normal(noise, element):
    """``reference.philox_normal`` for a block of elements of a sample."""
    seed, first, stream = noise
    element = first + element
    low = element.to(tl.uint32)
    zero = low * 0
    w0, w1, _, _ = tl.philox(seed, low, (element >> 32).to(tl.uint32), zero + tl.cast(stream, tl.uint32), zero)
    normals, _ = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(w0), tl.uint_to_uniform_float(w1))
    return normals


@jit
def standard_kl(mean, logvar, variance):
    """KL(N(mean, variance) ‖ N(0, 1))."""
    return 0.5 * (variance + mean * mean - logvar - 1.0)


@jit
def cross_kl(mean, logvar, variance, prior_mean, prior_logvar):
    """KL(N(mean, variance) ‖ N(prior_mean, exp(prior_logvar)))."""
    distance = mean - prior_mean
    return 0.5 * ((variance + distance * distance) * tl.exp(-prior_logvar) + prior_logvar - logvar - 1.0)


@jit
def standard_kl_gradient(dkl, mean, variance):
    """By mean and log-variance."""
    return dkl * mean, 0.5 * dkl * (variance - 1.0)


@jit
def cross_kl_gradient(dkl, mean, variance, prior_mean, prior_logvar):
    """By mean, log-variance and the prior's log-variance; by the prior's mean it is minus the first."""
    distance = mean - prior_mean
    precision = tl.exp(-prior_logvar)
    dlogvar = 0.5 * dkl * (variance * precision - 1.0)
    dprior_logvar = 0.5 * dkl * (1.0 - (variance + distance * distance) * precision)
    return dkl * distance * precision, dlogvar, dprior_logvar


@jit
def store_code(index, z_ptr, mean, deviation, noise, element, SAMPLE: tl.constexpr):
    """z = mean + deviation · noise."""
    z = mean
    if SAMPLE:
        z = mean + deviation * normal(noise, element).to(mean.dtype)
    tl.store(z_ptr + index[0], narrow(z, z_ptr), mask=index[3])
