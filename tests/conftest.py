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


def pytest_configure(config: pytest.Config) -> None:
    """A run that was asked for on a GPU must not pass without one."""
    if os.environ.get("IIAE_TEST_GPU") == "1":
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError("IIAE_TEST_GPU=1, but torch sees no CUDA device")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tensors of a test are small, and threads would wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
