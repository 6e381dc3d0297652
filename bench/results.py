"""The results file: JSON lines of three kinds, one schema for every benchmark on every machine.

``{"kind": "run", …}`` says where and how a process measured; it comes first, and every other line names it by ``"run"``. Files
can therefore be concatenated. ``{"kind": "timing", …}`` is one contestant of one case under one cache and launch condition.
``{"kind": "fact", …}`` is anything else: a measured limit, a table counted without timing. ``FIELDS`` lists what each holds.
"""

from __future__ import annotations

__all__ = ["FIELDS", "STATUSES", "Results", "Writer", "device_folder", "key", "quantiles", "read"]

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iiae_fast.errors import DataError

SCHEMA = 1

STATUSES = ("measured", "skipped", "refused", "failed")
"""Of a timing: skipped because absent here, refused because wrong, failed because it raised or was cut off."""

FIELDS: dict[str, tuple[str, ...]] = {
    "run": (
        "schema", "run", "time", "device", "driver", "clocks", "versions", "commit", "command", "seed", "threads", "quick",
        "cpu", "platform", "load",
    ),
    "timing": (
        "run", "suite", "benchmark", "case", "contestant", "ours", "status", "reason", "cache", "launch", "samples", "calls",
        "p20", "p50", "p80", "relative_error", "precise", "peak_memory", "bytes", "flops", "items", "unit", "matmul",
        "parameters",
    ),
    "fact": ("run", "name", "value"),
}  # fmt: skip
"""Kind: its fields. Times are seconds a call. ``samples`` are in the order taken, sample i of all contestants of a case in the
same round; ``calls`` were averaged in each. ``peak_memory`` and ``bytes`` are in bytes. ``cache`` is hot or cold; ``launch`` is
included or replay (of a CUDA graph), or n/a on the CPU."""

_KEY = ("suite", "benchmark", "case", "contestant", "cache", "launch")


@dataclass
class Results:
    """What one or more files hold."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)

    def measured(self) -> list[dict[str, Any]]:
        """Timings with samples."""
        return [line for line in self.timings if line["status"] == "measured"]

    def fact(self, name: str) -> Any:
        """The last value noted under a name, None without one."""
        return next((line["value"] for line in reversed(self.facts) if line["name"] == name), None)


def key(timing: dict[str, Any]) -> tuple[str, ...]:
    """What identifies a timing across runs."""
    return tuple(timing[name] for name in _KEY)


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile."""
    low, middle, high = np.quantile(samples, (0.2, 0.5, 0.8))
    return {"p20": float(low), "p50": float(middle), "p80": float(high)}


class Writer:
    """Appends lines, each on disk before the next, so that whatever stops a run leaves all that was measured.

    Attributes:
        problems: Lines so far that say that something was refused or failed.
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._path = path
        self._run = run["run"]
        self.problems = 0
        self._append({"kind": "run", "schema": SCHEMA, **run})

    def timing(self, **fields: Any) -> None:
        """One line of kind timing; the fields of ``FIELDS``, without the run."""
        self.problems += fields["status"] in ("refused", "failed")
        self._append({"kind": "timing", "run": self._run, **fields})

    def fact(self, name: str, value: Any) -> None:
        """One line of kind fact."""
        self.problems += name == "failure"
        self._append({"kind": "fact", "run": self._run, "name": name, "value": value})

    def _append(self, line: dict[str, Any]) -> None:
        missing = [name for name in FIELDS[line["kind"]] if name not in line]
        assert not missing, f"a line of kind {line['kind']} lacks {missing}"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _cut_torn_line(path: Path) -> None:
    """Drop what a writer that was killed left of its last line."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        data = file.read()
        if not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


def read(paths: Iterable[str | Path]) -> Results:
    """Read results files, and all ``.jsonl`` files directly in directories.

    Raises:
        DataError: A path does not exist, a directory holds no results, or a line is not of this schema; the message names file
            and line. A last line without its end, torn when its writer was killed, is left out.
    """
    results = Results()
    for path in (Path(path) for path in paths):
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: holds no .jsonl file")
        for file in files:
            _read_file(file, results)
    return results


def _read_file(path: Path, results: Results) -> None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    kinds = {"run": results.runs, "timing": results.timings, "fact": results.facts}
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            kind = line.pop("kind")
            missing = [name for name in FIELDS[kind] if name not in line]
            if missing or line.get("schema", SCHEMA) != SCHEMA:
                raise ValueError(f"lacks {', '.join(missing)}" if missing else f"schema {line['schema']}, expected {SCHEMA}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines) and not text.endswith("\n"):
                return
            raise DataError(f"{path}, line {number}: not a line of a results file ({error})") from None
        kinds[kind].append(line)


def device_folder(device: str) -> str:
    """A device's name as a folder's: ``"NVIDIA H100 80GB HBM3"`` gives ``"nvidia-h100-80gb-hbm3"``."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
