"""What is measured and how."""

from __future__ import annotations

if __name__ != "iiae_fast.bench":
    raise ImportError("import iiae_fast.bench, not bench: this folder installs as a subpackage of iiae_fast")
