"""Where the optional real data and the golden values lie, and the marks of tests that need them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("IIAE_DATA", ROOT.parent / "shared" / "data"))
GOLDEN = Path(os.environ.get("IIAE_GOLDEN", ROOT.parent / "shared" / "golden"))

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real data not found at {DATA}; set IIAE_DATA to its folder")
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"golden values not found at {GOLDEN}; set IIAE_GOLDEN to their folder"
)


def python(code: str, *arguments: str) -> list[str]:
    """The command that runs ``code`` with the installed package, not with the one of the folder it runs in."""
    if sys.version_info >= (3, 11):
        return [sys.executable, "-P", "-c", code, *arguments]
    return [sys.executable, "-c", f"import sys; sys.path.remove('')\n{code}", *arguments]


RUN_PYTEST = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
