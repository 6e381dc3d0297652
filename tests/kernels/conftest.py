"""Every test draws the same inputs whichever tests run beside it, and leaves the other cores to its neighbours."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded(one_thread: None) -> None:
    torch.manual_seed(0)
