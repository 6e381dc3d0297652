"""C++ kernels of training as PyTorch's ops, on its threads: others would fight with those, which wait by spinning."""

from __future__ import annotations

__all__ = ["define_op", "entry_point", "team"]

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

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


def define_op(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Make ``torch.ops.iiae_fast.<name>``, opaque to the compiler, for tensors on a CPU; it has no gradient.

    Args:
        name, schema: Of the op; the schema begins with its arguments.
        kernel: Computes it.
        fake: Says what it returns for tensors without data.
    """
    torch.library.define(f"iiae_fast::{name}", schema)
    torch.library.impl(f"iiae_fast::{name}", "cpu", kernel)
    torch.library.register_fake(f"iiae_fast::{name}", fake)
