"""Fused operations of the training step: reparameterization, Gaussian KL, reconstruction losses, and the noise they use."""

from __future__ import annotations

if __name__ != "iiae_fast.kernels":
    raise ImportError("import iiae_fast.kernels, not kernels: this folder installs as a subpackage of iiae_fast")
