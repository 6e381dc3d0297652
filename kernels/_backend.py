"""Which implementation runs: the plain PyTorch reference, or the Triton kernels."""

from __future__ import annotations

import torch

from iiae_fast.kernels._registry import INTERPRETED, triton
from iiae_fast.kernels._validate import require_choice


def use_triton(backend: str, device: torch.device) -> bool:
    """Resolve ``backend`` for inputs on ``device``: ``"auto"`` means Triton on a CUDA device and the reference elsewhere.

    Raises:
        ValueError: Unknown name, or Triton for tensors that it cannot run on here.
        ImportError: Triton is needed and not installed.
    """
    require_choice("backend", backend, ("auto", "reference", "triton"))
    if backend == "reference" or (backend == "auto" and device.type != "cuda"):
        return False
    if triton is None:
        raise ImportError("triton is not installed: pip install triton (Linux), or use backend='reference'")
    if INTERPRETED or device.type == "cuda":
        return True
    raise ValueError(
        f"backend='triton': inputs on {device}; accepted is a CUDA device, or any with TRITON_INTERPRET=1 in the environment"
    )
