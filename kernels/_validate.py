"""What the public functions check, once, before any work. Each helper names the argument, what was given, what is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Seed = int | np.integer[Any] | Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TARGET_DTYPES = (*FLOAT_DTYPES, torch.uint8)


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def require_tensor(name: str, value: object) -> None:
    """``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def require_dtype(name: str, value: Tensor, accepted: Sequence[torch.dtype] = FLOAT_DTYPES) -> None:
    """``value`` has one of the accepted dtypes."""
    if value.dtype not in accepted:
        raise ValueError(f"{name}: dtype {str(value.dtype).removeprefix('torch.')}; accepted are {_names(accepted)}")


def require_head(name: str, value: object) -> None:
    """``value`` is a packed Gaussian head: ``(B, 2D)`` or ``(B, 2C, H, W)``, floating point."""
    require_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.dim() not in (2, 4) or value.shape[1] % 2 or 0 in value.shape[1:]:
        accepted = "(B, 2D) or (B, 2C, H, W), [mean | logvar] along dim 1"
        raise ValueError(f"{name}: shape {tuple(value.shape)}; accepted is {accepted}")
    require_dtype(name, value)


def require_kind(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """``value`` has the dtype and device of ``other``."""
    if value.dtype != other.dtype:
        raise ValueError(f"{name}: dtype {value.dtype} differs from {other_name}'s {other.dtype}")
    if value.device != other.device:
        raise ValueError(f"{name}: device {value.device} differs from {other_name}'s {other.device}")


def require_alike(name: str, value: Tensor, other_name: str, other: Tensor, *, shape: bool = True) -> None:
    """``value`` has the dtype and device of ``other``, and its shape (or only its batch size)."""
    require_kind(name, value, other_name, other)
    if shape and value.shape != other.shape:
        raise ValueError(f"{name}: shape {tuple(value.shape)} differs from {other_name}'s {tuple(other.shape)}")
    if value.shape[0] != other.shape[0]:
        raise ValueError(f"{name}: batch size {value.shape[0]} differs from {other_name}'s {other.shape[0]}")


def require_choice(name: str, value: object, accepted: Sequence[object]) -> None:
    """``value`` is one of the accepted names."""
    if value not in accepted:
        raise ValueError(f"{name}={value!r}; accepted are {', '.join(map(repr, accepted))}")


def require_finite(name: str, value: object) -> None:
    """``value`` is a real number that fp32 can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not abs(value) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{name}={value!r}; accepted is a finite number of at most 3.4e38")


def require_whole(name: str, value: object, minimum: int) -> None:
    """``value`` is a whole number of at least ``minimum``; numpy's count."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name}={value}; accepted is a whole number of at least {minimum}")


def require_stream(stream: object) -> None:
    """``stream`` is one of a seed's 2³² streams."""
    require_whole("stream", stream, 0)
    if stream >= 2**32:  # type: ignore[operator]
        raise ValueError(f"stream={stream}; accepted is a whole number below 2**32")


def seed_tensor(seed: Seed | None, device: torch.device) -> Tensor:
    """The seed as an int64 tensor of shape ``(1,)`` on ``device``, made without a host synchronization.

    Raises:
        TypeError: Neither a whole number nor a tensor.
        ValueError: Out of the signed 64-bit range, or a tensor of another dtype, size or device.
    """
    if seed is None:
        raise ValueError("seed=None; sampling needs a seed: a whole number, or an int64 tensor of one element")
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(f"seed: {seed.dtype}, shape {tuple(seed.shape)}; accepted is an int64 tensor of one element")
        if seed.device != device:
            raise ValueError(f"seed: device {seed.device} differs from the inputs' {device}")
        return seed.detach().reshape(1)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer, torch.SymInt)):
        raise TypeError(f"seed: expected a whole number or an int64 tensor of one element, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed={seed}; accepted is a whole number from -2**63 to 2**63 - 1")
    return torch.full((1,), int(seed) if isinstance(seed, np.integer) else seed, dtype=torch.int64, device=device)
