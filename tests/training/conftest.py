"""Splits that ``train`` gets in place of any file's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # toy_runs.py, under importlib import mode

from toy_runs import FeaturePairs

from iiae_fast import data
from iiae_fast.data import Splits


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Toy sizes gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def feature_splits(monkeypatch: pytest.MonkeyPatch) -> Splits:
    """120 training pairs, which are 30 steps an epoch, 20 and 24 others."""
    splits = Splits(FeaturePairs(120), FeaturePairs(20, seed=1), FeaturePairs(24, seed=2))
    monkeypatch.setattr(data, "load", lambda config: splits)
    return splits
