"""Interaction Information Auto-Encoder: train on pairs of two domains, retrieve across them, translate, deploy.

Importing this package is light: submodules load on first use, so that retrieval and ONNX inference run without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from iiae_fast.version import __version__

if TYPE_CHECKING:
    from iiae_fast import config, data, errors, export, kernels, objectives, official, presets, retrieval, training
    from iiae_fast.config import DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, Preset
    from iiae_fast.gaussian import DiagonalGaussian
    from iiae_fast.model import IIAE, load

_SUBMODULES = (
    "bench",
    "config",
    "data",
    "errors",
    "export",
    "gaussian",
    "kernels",
    "model",
    "networks",
    "objectives",
    "official",
    "presets",
    "reports",
    "retrieval",
    "training",
)
_OBJECTS = {
    "DataConfig": "iiae_fast.config",
    "DiagonalGaussian": "iiae_fast.gaussian",
    "IIAE": "iiae_fast.model",
    "ModelConfig": "iiae_fast.config",
    "ObjectiveConfig": "iiae_fast.config",
    "OptimConfig": "iiae_fast.config",
    "Preset": "iiae_fast.config",
    "load": "iiae_fast.model",
}

__all__ = [
    "IIAE",
    "DataConfig",
    "DiagonalGaussian",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "Preset",
    "__version__",
    "config",
    "data",
    "errors",
    "export",
    "kernels",
    "load",
    "objectives",
    "official",
    "presets",
    "retrieval",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"iiae_fast.{name}")
    if name in _OBJECTS:
        return getattr(importlib.import_module(_OBJECTS[name]), name)
    raise AttributeError(f"module 'iiae_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES, *_OBJECTS})
