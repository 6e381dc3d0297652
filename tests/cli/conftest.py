"""Runs that tests of commands may write into."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_run import tiny_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A copy of the tiny trained run."""
    return Path(shutil.copytree(tiny_run(), tmp_path / "run"))


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""
