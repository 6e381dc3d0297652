"""Fused operations of the training step: reparameterization, Gaussian KL, reconstruction losses, and the noise they use."""

from __future__ import annotations

if __name__ != "iiae_fast.kernels":
    raise ImportError("import iiae_fast.kernels, not kernels: this folder installs as a subpackage of iiae_fast")

from iiae_fast.kernels.elbo import elbo
from iiae_fast.kernels.hsic import hsic
from iiae_fast.kernels.iiae_latents import iiae_latents
from iiae_fast.kernels.philox import philox_normal
from iiae_fast.kernels.reconstruction import reconstruction
from iiae_fast.kernels.reference import Elbo, ElboWeights, Latents
from iiae_fast.kernels.reparameterize import reparameterize
from iiae_fast.kernels.total_correlation import total_correlation

__all__ = [
    "Elbo",
    "ElboWeights",
    "Latents",
    "elbo",
    "hsic",
    "iiae_latents",
    "philox_normal",
    "reconstruction",
    "reparameterize",
    "total_correlation",
]
