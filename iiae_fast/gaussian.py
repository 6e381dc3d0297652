"""The diagonal Gaussian: what every encoder head says, and the KL divergence between two of them."""

from __future__ import annotations

__all__ = ["LOGVAR_MAX", "LOGVAR_MIN", "DiagonalGaussian"]

from dataclasses import dataclass

import torch
from torch import Tensor

from iiae_fast.kernels.reference import LOGVAR_MAX, LOGVAR_MIN, gaussian_kl


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(exp(logvar))), kept as the packed network output.

    Attributes:
        head: ``(B, 2D)`` or ``(B, 2C, H, W)``: [mean | logvar] along dimension 1, log-variance not yet clamped.
    """

    head: Tensor

    def __post_init__(self) -> None:
        if self.head.dim() < 2 or self.head.shape[1] % 2:
            raise ValueError(
                f"head of shape {tuple(self.head.shape)}: accepted is (B, 2D) or (B, 2C, H, W), [mean | logvar] along dim 1"
            )

    @property
    def mean(self) -> Tensor:
        """``(B, D)`` or ``(B, C, H, W)``."""
        return self.head[:, : self.head.shape[1] // 2]

    @property
    def logvar(self) -> Tensor:
        """Like ``mean``; clamped to [−14, 9.21035], with zero gradient where it is clamped (see ``LOGVAR_MIN``)."""
        return self.head[:, self.head.shape[1] // 2 :].clamp(LOGVAR_MIN, LOGVAR_MAX)

    def kl(self, prior: DiagonalGaussian | None = None) -> Tensor:
        """KL(self ‖ prior) in nats, summed over latent dimensions: ``(B,)`` fp32. No prior means N(0, I)."""
        return gaussian_kl(self.head, None if prior is None else prior.head)

    def detach(self) -> DiagonalGaussian:
        """The same distribution outside the graph."""
        return DiagonalGaussian(self.head.detach())

    def flat_mean(self) -> Tensor:
        """The mean as ``(B, D)``: spatial codes in channel, row, column order."""
        return torch.flatten(self.mean, 1)
