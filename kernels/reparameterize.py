"""One Gaussian head: z = mean + exp(½ logvar) · noise, and its KL divergence to N(0, I) or to another head.

The head is ``(B, 2D)`` or ``(B, 2C, H, W)``, z half of that, KL ``(B,)``; logvar is clamped to [−14, 9.21035].
"""

from __future__ import annotations

from torch import Tensor

from iiae_fast.kernels import reference
from iiae_fast.kernels._backend import use_triton
from iiae_fast.kernels._validate import Seed, require_alike, require_head, require_whole, seed_tensor


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
    require_whole("stream", stream, 0)
    seed = seed_tensor(seed, q.device) if sample else None
    use_triton(backend, q.device)
    return reference.reparameterize(q, prior, seed, stream)
