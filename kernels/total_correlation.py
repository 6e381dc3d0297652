"""Total correlation of the aggregate posterior, KL(q(z) ‖ ∏ q(z_d)), by the minibatch-weighted estimator of β-TCVAE."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from iiae_fast.kernels._validate import require_alike, require_head, require_tensor, require_whole
from iiae_fast.kernels.reference import compute_dtype, split_head

_BLOCK_ELEMENTS = 1 << 22  # of the (rows, B, D) tensor of log-densities: 16 MB in fp32


def _block(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Σ over the rows of z ``(R, D)`` of log Σ_j q(z|j) − Σ_d log Σ_j q(z_d|j), all posteriors being ``(B, D)``."""
    density = -0.5 * (math.log(2 * math.pi) + logvar + (z[:, None] - mean).square() * (-logvar).exp())  # (R, B, D)
    joint = density.sum(2).logsumexp(1)
    marginals = density.logsumexp(1).sum(1)
    return (joint - marginals).sum()


def total_correlation(z: Tensor, head: Tensor, dataset_size: int) -> Tensor:
    """Estimate KL(q(z) ‖ ∏_d q(z_d)) from one minibatch (Chen et al. 2018, "Isolating sources of disentanglement", eq. S5).

    With M samples of a data set of N, log q(z_i) ≈ log Σ_j q(z_i|x_j) − log(N M), alike for every dimension by itself; the
    estimate is the mean over i of log q(z_i) − Σ_d log q(z_id). Exact sums over the minibatch, by blocks of rows that are
    computed again in backward: memory holds B × D numbers for a block of rows, never B × B × D.

    Args:
        z: ``(B, D)`` or ``(B, C, H, W)``, samples of the posteriors.
        head: Their packed head, ``(B, 2D)`` or ``(B, 2C, H, W)``.
        dataset_size: N, the number of training samples.

    Returns:
        Scalar in nats, fp32 (fp64 for fp64 inputs), differentiable in both.

    Raises:
        ValueError: Shapes, dtypes or devices that do not belong together, an empty batch, a data set size below 1.
        TypeError: An argument of another type.
    """
    require_tensor("z", z)
    require_head("head", head)
    require_alike("z", z, "head", head, shape=False)
    expected = (head.shape[0], head.shape[1] // 2, *head.shape[2:])
    if z.shape != expected:
        raise ValueError(f"z: shape {tuple(z.shape)}; accepted for a head of {tuple(head.shape)} is {expected}")
    require_whole("dataset_size", dataset_size, 1)
    batch = z.shape[0]
    if batch == 0:
        raise ValueError("z: an empty batch has no total correlation; accepted is at least 1 row")
    mean, logvar = (half.flatten(1) for half in split_head(head))
    z = z.to(compute_dtype(z.dtype)).flatten(1)
    size = z.shape[1]
    rows = max(1, _BLOCK_ELEMENTS // (batch * size))
    blocks = [
        checkpoint(_block, part, mean, logvar, use_reentrant=False, preserve_rng_state=False) for part in torch.split(z, rows)
    ]
    # Each of the D marginals and the joint carries −log(N M); D − 1 of them remain.
    return torch.stack(blocks).sum() / batch + (size - 1) * math.log(dataset_size * batch)
