"""Cases, clocks and results files that tests make up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iiae_fast.bench.registry import Case, Contestant, Work
from iiae_fast.bench.results import Writer, quantiles

RUN = {
    "time": "2026-11-24T04:00:00Z",
    "device": "Made up, 2 cores",
    "driver": "n/a",
    "clocks": {"now": "2445"},
    "versions": {"python": "3.11.15", "torch": "2.13.0", "triton": "3.9.0"},
    "commit": "abcdef012345",
    "command": "iiae bench kernels",
    "seed": 0,
    "threads": 2,
    "quick": False,
    "cpu": "Made up",
    "platform": "Linux",
    "load": [0.1, 0.1, 0.1],
}


def writer(path: Path, run: str = "one", **fields: Any) -> Writer:
    """A results file with its run."""
    return Writer(path, {"run": run, **RUN, **fields})


def write_timing(out: Writer, contestant: str, samples: list[float], **fields: Any) -> None:
    """A timing of the case "double", measured unless ``fields`` say otherwise."""
    line = {
        "suite": "kernels",
        "benchmark": "double",
        "case": "double of 1,000",
        "contestant": contestant,
        "ours": contestant == "reference",
        "status": "measured",
        "reason": "",
        "cache": "hot",
        "launch": "n/a",
        "samples": samples,
        "calls": 1,
        **(quantiles(samples) if samples else dict.fromkeys(("p20", "p50", "p80"))),
        "relative_error": 0.01,
        "precise": True,
        "peak_memory": 4096,
        "bytes": 8000,
        "flops": 1000,
        "items": 1000,
        "unit": "numbers",
        "matmul": "",
        "parameters": {"n": 1000},
    }
    out.timing(**line | fields)


def doubling(*contestants: Contestant) -> Case:
    """A case whose right result is 42."""
    return Case("double of 21", contestants, lambda found: "" if found == 42 else f"got {found}", Work(bytes=8, flops=1))
