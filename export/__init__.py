"""Deployment: ONNX graphs and engines of a model, sessions that run them, and the proof that all compute the same."""

from __future__ import annotations

if __name__ != "iiae_fast.export":
    raise ImportError("import iiae_fast.export, not export: this folder installs as a subpackage of iiae_fast")

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iiae_fast.export.comparison import OutputDifference, compare, polygraphy_runner
    from iiae_fast.export.engines import BuildOptions, EngineInfo, build_tensorrt, inspect_engine
    from iiae_fast.export.graphs import GRAPHS, Graph
    from iiae_fast.export.onnx import to_onnx
    from iiae_fast.export.parity import TOLERANCES, ParityError, ParityReport, verify
    from iiae_fast.export.quantization import quantize
    from iiae_fast.export.repository import model_repository
    from iiae_fast.export.session import Session, TensorInfo, load

_OBJECTS = {
    "BuildOptions": "engines",
    "EngineInfo": "engines",
    "GRAPHS": "graphs",
    "Graph": "graphs",
    "OutputDifference": "comparison",
    "ParityError": "parity",
    "ParityReport": "parity",
    "Session": "session",
    "TOLERANCES": "parity",
    "TensorInfo": "session",
    "build_tensorrt": "engines",
    "compare": "comparison",
    "inspect_engine": "engines",
    "load": "session",
    "model_repository": "repository",
    "polygraphy_runner": "comparison",
    "quantize": "quantization",
    "to_onnx": "onnx",
    "verify": "parity",
}

__all__ = [
    "GRAPHS",
    "TOLERANCES",
    "BuildOptions",
    "EngineInfo",
    "Graph",
    "OutputDifference",
    "ParityError",
    "ParityReport",
    "Session",
    "TensorInfo",
    "build_tensorrt",
    "compare",
    "inspect_engine",
    "load",
    "model_repository",
    "polygraphy_runner",
    "quantize",
    "to_onnx",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _OBJECTS:
        raise AttributeError(f"module 'iiae_fast.export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"iiae_fast.export.{_OBJECTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OBJECTS})
