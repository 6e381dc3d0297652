"""Lets tests import the helpers beside them under importlib import mode, and gives them a device to search on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from emulation.runtime import Emulated

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def emulated() -> Iterator[Emulated]:
    """A device that is host memory, in the place of a CUDA device."""
    from emulation.runtime import emulate

    with emulate() as found:
        yield found


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where tensors of a test lie: host memory, which the emulated engine takes for a device's, or a real device's."""
    from iiae_fast.retrieval import device_paths

    if request.param == "cuda":
        if os.environ.get("IIAE_TEST_GPU") != "1":
            pytest.skip("needs a CUDA device, and IIAE_TEST_GPU=1")
        yield torch.device("cuda", torch.cuda.current_device())
    else:
        yield request.getfixturevalue("emulated").device
    device_paths.select_method("auto")
