"""Which implementation runs: the plain PyTorch reference, or the Triton kernels."""

from __future__ import annotations

import torch

from iiae_fast.kernels._validate import require_choice


def use_triton(backend: str, device: torch.device) -> bool:
    """Resolve ``backend`` for inputs on ``device``: ``"auto"`` means Triton on a CUDA device and the reference elsewhere.

    Raises:
        ValueError: Unknown name.
        NotImplementedError: Triton was asked for.
    """
    require_choice("backend", backend, ("auto", "reference", "triton"))
    if backend == "reference" or (backend == "auto" and device.type != "cuda"):
        return False
    raise NotImplementedError("backend='triton': the Triton kernels are not part of this version; use backend='reference'")
