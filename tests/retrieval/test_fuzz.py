"""The fuzz targets, for a few seconds each; ``make fuzz`` runs them for minutes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris is not installed; pip install atheris (Linux, Python 3.11 to 3.13)")

SECONDS = os.environ.get("IIAE_FUZZ_SECONDS", "5")


@pytest.mark.parametrize("target", ["loader", "search"])
def test_finds_nothing(target: str, tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), target, f"-max_total_time={SECONDS}", "-seed=1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-5000:]
    # It ran, and what it tried reached more code than it started from.
    (done,) = re.findall(r"Done (\d+) runs", result.stderr)
    assert int(done) > 100
    reached = [int(count) for count in re.findall(r"cov: (\d+)", result.stderr)]
    assert reached[-1] > reached[0]
