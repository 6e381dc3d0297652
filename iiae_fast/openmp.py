"""PyTorch's threads, for the C++ kernels of training: threads of their own would fight with those, which wait by spinning."""

from __future__ import annotations

__all__ = ["entry_point", "team"]

import ctypes
import os
from functools import cache

import torch


@cache
def entry_point() -> int:
    """The address of ``GOMP_parallel`` in the OpenMP library that PyTorch has loaded; 0 if it has another kind of threads."""
    if os.name != "posix":
        return 0
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


def team() -> tuple[int, int]:
    """That address and the number of threads, as the kernels take them; with address 0 they compute in the calling thread."""
    return entry_point(), torch.get_num_threads()
