"""What a result says of its machine."""

from __future__ import annotations

import platform
import subprocess
import sys

import numpy as np

from iiae_fast import __version__
from iiae_fast.reports import environment


def test_versions_and_cores_are_this_machines() -> None:
    facts = environment.describe()
    assert facts["versions"]["iiae_fast"] == __version__
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["cores"] >= 1
    assert facts["cpu"]


def test_given_threads_are_kept() -> None:
    assert environment.describe(threads=3)["threads"] == 3


def test_torch_is_not_imported_for_it() -> None:
    code = "import sys; from iiae_fast.reports import environment; environment.describe(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
