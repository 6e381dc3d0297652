"""What importing the kernels must not do."""

from __future__ import annotations

import subprocess

import pytest
from paths import python


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(python(code), capture_output=True, text=True)


def test_import_does_not_initialize_cuda() -> None:
    result = run("import torch, iiae_fast.kernels as k; assert not torch.cuda.is_initialized(); k.philox_normal((2,), 1)")
    assert result.returncode == 0, result.stderr


def test_package_root_imports_no_torch() -> None:
    result = run("import sys, iiae_fast; assert 'torch' not in sys.modules and 'triton' not in sys.modules")
    assert result.returncode == 0, result.stderr


def test_works_without_triton() -> None:
    use = (
        "import sys; sys.modules['triton'] = None; import iiae_fast.kernels as k; assert k.philox_normal((3,), 1).shape == (3,)"
    )
    assert run(use).returncode == 0
    result = run(f"{use}; k.philox_normal((3,), 1, backend='triton')")
    assert result.returncode == 1
    assert "triton" in result.stderr.splitlines()[-1]


def test_the_folder_refuses_its_own_name() -> None:
    result = run("import sys; sys.path.insert(0, '.'); import kernels")
    if "No module named 'kernels'" in result.stderr:
        pytest.skip("not run from the repository's root")
    assert "import iiae_fast.kernels, not kernels" in result.stderr
