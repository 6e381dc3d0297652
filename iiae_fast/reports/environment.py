"""On what a result was measured: versions, processor, threads."""

from __future__ import annotations

__all__ = ["describe"]

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from iiae_fast.version import __version__

_PACKAGES = ("torch", "triton", "numpy", "safetensors", "scikit-learn", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt")


def describe(threads: int | None = None) -> dict[str, Any]:
    """Versions, operating system, processor, usable cores and, once torch is loaded, its threads and accelerator.

    Args:
        threads: As the work was told; None asks torch, if it is loaded.
    """
    versions = {"iiae_fast": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts: dict[str, Any] = {
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["threads"] = threads or torch.get_num_threads()
        facts["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    elif threads:
        facts["threads"] = threads
    return facts


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return platform.processor() or "unknown"
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    units = [name for flag, name in _UNITS.items() if flag in flags]
    return " · ".join(part for part in (facts.get("model name", platform.machine()), ", ".join(units)) if part)


# What decides the speed of matrix products and of the retrieval scan.
_UNITS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "sve": "SVE",
}
