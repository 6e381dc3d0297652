"""Every instruction set of this processor, and several numbers of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from iiae_fast import _C


@pytest.fixture(params=_C.convolution.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.convolution.instruction_set()
    _C.convolution.select_instruction_set(request.param)
    assert _C.convolution.instruction_set() == request.param
    yield request.param
    _C.convolution.select_instruction_set(before)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
