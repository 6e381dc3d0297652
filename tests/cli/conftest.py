"""Runs that tests of commands may write into."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A copy of the tiny trained run."""
    return Path(shutil.copytree(tiny_run(), tmp_path / "run"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors on a shared machine: threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
