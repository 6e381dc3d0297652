"""Hilbert–Schmidt independence criterion between two sets of codes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from iiae_fast.kernels._validate import require_dtype, require_finite, require_tensor
from iiae_fast.kernels.reference import compute_dtype

_BLOCK_ELEMENTS = 1 << 20  # of the (rows, B) kernel matrices


def _median_bandwidth(points: Tensor) -> Tensor:
    """The median of the pairwise distances, no gradient. At zero, a bandwidth so small that only equal points are similar."""
    smallest = torch.finfo(points.dtype).tiny ** 0.5
    return torch.pdist(points.detach()).median().clamp(min=smallest)


def _gram(rows: Tensor, points: Tensor, bandwidth: Tensor | float) -> Tensor:
    """exp(−‖x − y‖² / (2σ²)) ``(R, B)``; distances by differences, since near points would cancel in ‖x‖² + ‖y‖² − 2xy."""
    distance = torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist")
    return (-0.5 * (distance / bandwidth).square()).exp()


def _block(
    rows_a: Tensor, rows_b: Tensor, a: Tensor, b: Tensor, sigma_a: Tensor | float, sigma_b: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ K∘L over a block of rows (a scalar), and the row sums of K and L ``(R,)``; sums in fp64."""
    k, l = _gram(rows_a, a, sigma_a), _gram(rows_b, b, sigma_b)
    return (k * l).sum(dtype=torch.float64), k.sum(1, dtype=torch.float64), l.sum(1, dtype=torch.float64)


def hsic(a: Tensor, b: Tensor, bandwidth: float | None = None) -> Tensor:
    """The biased HSIC estimate tr(K H L H) / (n − 1)² with RBF kernels (Gretton et al. 2005, definition 2).

    Exact, by blocks of rows that are computed again in backward: memory holds B numbers for a block of rows, never B × B × D
    (the median heuristic holds the B (B − 1) / 2 pairwise distances).

    Args:
        a: ``(B, …)``, fp32, bf16, fp16 or fp64; dimensions after the first are flattened.
        b: ``(B, …)``, of any other size.
        bandwidth: σ of exp(−‖x − y‖² / (2σ²)) for both. None takes for each the median distance of its rows, a constant.

    Returns:
        Scalar of at least 0 up to rounding, fp32 (fp64 for fp64 inputs), differentiable in both; 0 means independent.

    Raises:
        ValueError: Fewer than 2 rows, batch sizes, dtypes or devices that differ, a bandwidth that is not positive.
        TypeError: An argument of another type.
    """
    for name, value in (("a", a), ("b", b)):
        require_tensor(name, value)
        require_dtype(name, value)
        if value.dim() < 2 or value.shape[0] < 2 or 0 in value.shape:
            raise ValueError(f"{name}: shape {tuple(value.shape)}; accepted is (B, ...) with at least 2 rows and 2 dimensions")
    if (a.shape[0], a.dtype, a.device) != (b.shape[0], b.dtype, b.device):
        given = [f"{value.shape[0]} rows of {value.dtype} on {value.device}" for value in (a, b)]
        raise ValueError(f"a and b: {given[0]} against {given[1]}; accepted are equal batch size, dtype and device")
    if bandwidth is not None:
        require_finite("bandwidth", bandwidth)
        if bandwidth <= 0:
            raise ValueError(f"bandwidth={bandwidth!r}; accepted is a number above 0, or None")
    a, b = (value.to(compute_dtype(value.dtype)).flatten(1) for value in (a, b))
    sigma_a, sigma_b = (_median_bandwidth(value) if bandwidth is None else bandwidth for value in (a, b))
    n = a.shape[0]
    rows = max(1, _BLOCK_ELEMENTS // n)
    blocks = [
        checkpoint(_block, part_a, part_b, a, b, sigma_a, sigma_b, use_reentrant=False, preserve_rng_state=False)
        for part_a, part_b in zip(torch.split(a, rows), torch.split(b, rows))
    ]
    product = torch.stack([block[0] for block in blocks]).sum()
    sum_k, sum_l = torch.cat([block[1] for block in blocks]), torch.cat([block[2] for block in blocks])
    # tr(KHLH) = Σ K∘L − 2/n Σ_i (K1)_i (L1)_i + (1ᵀK1)(1ᵀL1)/n²: three large numbers that nearly cancel, hence fp64.
    trace = product - 2 / n * (sum_k * sum_l).sum() + sum_k.sum() * sum_l.sum() / n**2
    return (trace / (n - 1) ** 2).to(a.dtype)
