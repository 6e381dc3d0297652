"""On what, with what and how a run measures: the first line of every results file."""

from __future__ import annotations

__all__ = ["cores", "describe_run", "device_name", "source_commit"]

import os
import platform
import shlex
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from iiae_fast.bench.registry import Settings
from iiae_fast.reports import environment

_ROOT = Path(__file__).resolve().parent.parent
_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu", "power.draw")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: str) -> str:
    """Of the GPU; or of the processor, with its vector units and usable cores."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    facts = environment.describe()
    return f"{facts['cpu']}, {facts['cores']} cores"


def describe_run(settings: Settings, command: str) -> dict[str, Any]:
    """The fields of a line of kind run."""
    facts = environment.describe(settings.threads)
    driver, clocks = _gpu() if settings.device == "cuda" else ("n/a", _cpu_clocks())
    return {
        "run": uuid.uuid4().hex[:12],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": device_name(settings.device),
        "driver": driver,
        "clocks": clocks,
        "versions": facts["versions"],
        "commit": source_commit(),
        "command": command or shlex.join(sys.argv),
        "seed": settings.seed,
        "threads": settings.threads,
        "quick": settings.quick,
        "cpu": facts["cpu"],
        "platform": platform.platform(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def source_commit() -> str:
    """Of the checkout this code lies in, "-dirty" when files differ from it; ``IIAE_COMMIT`` says it where git is absent."""
    if "IIAE_COMMIT" in os.environ:
        return os.environ["IIAE_COMMIT"]
    if not (_ROOT / ".git").exists():
        return "unknown"
    try:
        commit = _output("git", "-C", str(_ROOT), "rev-parse", "--short=12", "HEAD")
        return commit + ("-dirty" if _output("git", "-C", str(_ROOT), "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _gpu() -> tuple[str, dict[str, str]]:
    """Driver version, and clocks in MHz with temperature and power."""
    try:
        query = ",".join(("driver_version", *_CLOCKS))
        line = _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits").splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown", {}
    driver, *values = (value.strip() for value in line.split(","))
    return driver, dict(zip(_CLOCKS, values))


def _cpu_clocks() -> dict[str, str]:
    """Megahertz of the first core, now and at most, where the system says."""
    found = {}
    folder = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    for name, file in (("now", "scaling_cur_freq"), ("max", "cpuinfo_max_freq")):
        if (folder / file).is_file():
            found[name] = str(int((folder / file).read_text()) // 1000)
    if not found and Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        speeds = [line.split(":")[1].strip() for line in lines if line.startswith("cpu MHz")]
        found = {"now": ", ".join(speeds)}
    return found


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
