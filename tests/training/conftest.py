"""Splits that ``train`` gets in place of any file's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # toy_runs.py, under importlib import mode

from toy_runs import FeaturePairs

from iiae_fast import data
from iiae_fast.data import Splits


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""


@pytest.fixture
def feature_splits(monkeypatch: pytest.MonkeyPatch) -> Splits:
    """120 training pairs, which are 30 steps an epoch, 20 and 24 others."""
    splits = Splits(FeaturePairs(120), FeaturePairs(20, seed=1), FeaturePairs(24, seed=2))
    monkeypatch.setattr(data, "load", lambda config: splits)
    return splits
