"""All that lies between the five encoder heads and the decoders: three sampled codes and five KL terms.

z = mean + exp(½ logvar) · noise for q_x, q_s, q_y; KL(q_x‖p), KL(q_y‖p), KL(q_s‖p), KL(q_s‖r_x), KL(q_s‖r_y) per sample, with
logvar clamped to [−14, 9.21035]. Heads are ``(B, 2D)`` or ``(B, 2C, H, W)``, codes half of that, KL ``(5, B)``.
"""

from __future__ import annotations

from torch import Tensor

from iiae_fast.kernels import reference
from iiae_fast.kernels._backend import use_triton
from iiae_fast.kernels._validate import Seed, require_alike, require_head, seed_tensor
from iiae_fast.kernels.reference import Latents


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
    use_triton(backend, q_s.device)
    return reference.iiae_latents(q_x, q_s, q_y, r_x, r_y, seed)
