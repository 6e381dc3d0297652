"""Shared fixtures. Triton reads ``TRITON_INTERPRET`` when a kernel is declared, so it is set before the first import."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Kernels run in Triton's interpreter on a machine without a GPU; IIAE_TEST_GPU=1 runs the gpu-marked tests on a device.
if os.environ.get("IIAE_TEST_GPU") != "1":
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parent))  # tests/paths.py and other helpers, under importlib import mode


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tensors of a test are small, and threads would wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
