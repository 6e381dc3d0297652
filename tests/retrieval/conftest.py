"""Lets tests import the helpers beside them under importlib import mode, and gives them a device to search on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def emulated_engine() -> ModuleType:
    """The CUDA engine built for the CPU, kernels and all."""
    from emulation.build import build, load

    path = build(sanitize=os.environ.get("IIAE_EMULATION_SANITIZE") == "1")
    if path is None:
        pytest.skip("no C++ compiler to build the emulated CUDA engine with")
    return load(path)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Where tensors of a test lie: host memory, which the emulated engine takes for a device's, or a real device's."""
    from iiae_fast.retrieval import device as module
    from iiae_fast.retrieval import inputs

    if request.param == "cuda":
        if os.environ.get("IIAE_TEST_GPU") != "1":
            pytest.skip("needs a CUDA device, and IIAE_TEST_GPU=1")
        yield torch.device("cuda", torch.cuda.current_device())
    else:
        monkeypatch.setattr(module, "_ENGINE", request.getfixturevalue("emulated_engine"))
        monkeypatch.setattr(module, "resolve", lambda _: torch.device("cpu"))
        monkeypatch.setattr(inputs, "DEVICE_TYPE", "cpu")
        yield torch.device("cpu")
    module.select_method("auto")
