"""Counter-based noise: Philox4x32-10 keyed by (seed, stream, element), then Box–Muller."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from iiae_fast.kernels import reference
from iiae_fast.kernels._backend import use_triton
from iiae_fast.kernels._validate import Seed, require_whole, seed_tensor


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
    require_whole("stream", stream, 0)
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else "cpu"
    device = torch.device(device)
    use_triton(backend, device)
    return reference.philox_normal(tuple(shape), seed_tensor(seed, device), stream)
