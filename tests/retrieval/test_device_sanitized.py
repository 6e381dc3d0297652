"""The emulated CUDA engine under AddressSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT, RUN_PYTEST, python

FILES = sorted(str(path) for path in Path(__file__).parent.glob("test_device*.py") if path != Path(__file__))


@pytest.mark.slow
def test_under_sanitizers() -> None:
    """The emulated engine, built with AddressSanitizer, on some of its tests."""
    if sys.platform != "linux" or os.environ.get("IIAE_EMULATION_SANITIZE") == "1":
        pytest.skip("runs itself, on Linux")
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    environment = os.environ | {
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",
        "IIAE_EMULATION_SANITIZE": "1",
        "IIAE_DEVICE_CASES": "5",
    }
    environment.pop("IIAE_TEST_GPU", None)
    chosen = "(oracle or do_not_fit or in_shared_memory or beside_the_search or by_a_scan) and not cuda"
    command = python(RUN_PYTEST, "-p", "no:cacheprovider", "--durations=20", "-k", chosen, *FILES)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    print(done.stdout)
    assert "passed" in done.stdout
