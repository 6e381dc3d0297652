"""Shared fixtures. Triton reads ``TRITON_INTERPRET`` when a kernel is declared, so it is set before the first import."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Kernels run in Triton's interpreter on a machine without a GPU; IIAE_TEST_GPU=1 runs the gpu-marked tests on a device.
if os.environ.get("IIAE_TEST_GPU") != "1":
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parent))  # tests/paths.py and other helpers, under importlib import mode
