"""Counter-based noise: Philox4x32-10 keyed by (seed, stream, element), then Box–Muller; other kernels inline the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from iiae_fast.kernels import reference
from iiae_fast.kernels._backend import use_triton
from iiae_fast.kernels._device import normal
from iiae_fast.kernels._registry import jit, launch, next_power_of_2, register, tl
from iiae_fast.kernels._validate import Seed, require_stream, require_whole, seed_tensor


@jit
def _philox_normal_kernel(
    out_ptr,  # (N,)
    seed_ptr,  # (1,)
    stream,
    N,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = start + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, normal((tl.load(seed_ptr), 0, stream), i), mask=i < N)


def settings(size: int) -> dict[str, int]:
    """Block and warps for so many numbers: eight a thread."""
    block = next_power_of_2(size, 128, 1024)
    return {"BLOCK": block, "num_warps": max(1, block // 256)}


def _philox_normal_fake(shape: Sequence[int], seed: Tensor, stream: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=seed.device)


@register("philox_normal")
def forward(shape: Sequence[int], seed: Tensor, stream: int) -> Tensor:
    noise = _philox_normal_fake(shape, seed, stream)
    constants = settings(noise.numel())
    blocks = -(-noise.numel() // constants["BLOCK"])
    launch(_philox_normal_kernel, (blocks,), noise, seed, stream, noise.numel(), **constants)
    return noise


forward.register_fake(_philox_normal_fake)


def philox_normal(
    shape: Sequence[int],
    seed: Seed,
    stream: int = 0,
    *,
    device: torch.device | str | None = None,
    backend: str = "auto",
) -> Tensor:
    """The noise that ``iiae_latents`` and ``reparameterize`` draw: a pure function of seed, stream and element.

    Args:
        shape: Of the noise. Elements are counted in row-major order.
        seed: A whole number, or an int64 tensor of one element.
        stream: Which of the seed's 2³² independent streams.
        device: Where to make it; None means where the seed is (CPU for a number).
        backend: ``"reference"``, ``"triton"``, or ``"auto"``: Triton on a CUDA device, else the reference.

    Returns:
        fp32 of ``shape``. Stream 0 equals Triton's ``tl.randn(seed, element)`` to fp32 rounding.

    Raises:
        ValueError: A negative size or stream, a seed out of range or on another device, an unknown backend.
        TypeError: An argument of another type.
    """
    for size in shape:
        require_whole("shape", size, 0)
    require_stream(stream)
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else "cpu"
    device = torch.device(device)
    seed = seed_tensor(seed, device)
    if use_triton(backend, device):
        noise: Tensor = forward(tuple(shape), seed, stream)
        return noise
    return reference.philox_normal(tuple(shape), seed, stream)
