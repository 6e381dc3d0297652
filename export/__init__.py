"""Deployment: ONNX graphs, ONNX Runtime sessions, parity checks."""

from __future__ import annotations

if __name__ != "iiae_fast.export":
    raise ImportError("import iiae_fast.export, not export: this folder installs as a subpackage of iiae_fast")
