"""Measures which path of a search on a CUDA device is faster at which size, and writes the table that searches go by.

python -m iiae_fast.bench.device_paths [--file FILE] [--seconds 0.3] [--budget 120] [--toy]

The table of this device's compute capability replaces the one in the file (by default the installed one); others stay. Sizes
come in order of worth; those that no time is left for are left out, and said. torch's matrix product and topk is timed beside,
and sizes at which the chosen path is more than 5 % slower than it are printed. Both paths' results are compared before timing.
"""

from __future__ import annotations

__all__ = ["SIZES", "main", "measure"]

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from iiae_fast.errors import DeviceMemoryError
from iiae_fast.retrieval import FlatIndex
from iiae_fast.retrieval.device_paths import PATHS, TABLES, load_tables, select_method
from iiae_fast.storage import write_atomic

_WORKSPACE = 8 << 30
_MOST_VALUES = 5e9  # of a matrix of distances: larger ones take too long by brute force and by torch
_SLOWER = 1.05

# (queries, rows, dim, k), the corners first. The largest k stands for those that are selected in another way.
_GRID = itertools.product((1, 64, 4096), (1_000, 30_000, 1_000_000), (64, 512), (10, 500, 20_000))
SIZES = sorted((size for size in _GRID if size[3] <= size[1]), key=lambda size: (size[2] != 64, size[3] != 10, size))
_TOY = [(3, 1100, 8, 2), (2, 300, 8, 200)]


def measure(size: tuple[int, int, int, int], device: str, seconds: float) -> dict[str, float]:
    """Median seconds of a search in an index by every path, and of torch's matrix product and topk.

    Raises:
        AssertionError: The paths differ in their results.
    """
    queries, rows, dim, k = size
    generator = torch.Generator(device).manual_seed(0)
    database = torch.randn(rows, dim, generator=generator, device=device)
    asked = torch.randn(queries, dim, generator=generator, device=device)
    found, times = {}, {}
    try:
        for path in PATHS:
            select_method(path)
            index = FlatIndex(database, device="cuda", workspace_limit=_WORKSPACE)
            found[path] = index.search(asked, k).indices
            times[path] = _median(lambda index=index: index.search(asked, k), device, seconds)  # type: ignore[misc]
    finally:
        select_method("auto")
    assert torch.equal(found["int8"], found["brute_force"]), f"the paths differ at {size}"
    norms = (database * database).sum(1)
    times["torch"] = _median(lambda: torch.addmm(norms, asked, database.T, alpha=-2.0).topk(k, largest=False), device, seconds)
    return times


def _median(call: Callable[[], Any], device: str, seconds: float) -> float:
    def once() -> float:
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(2):
        once()
    end = time.perf_counter() + seconds
    times = [once() for _ in range(3)]
    while time.perf_counter() < end:
        times.append(once())
    return statistics.median(times)


def _measured(
    sizes: Sequence[tuple[int, int, int, int]], device: str, seconds: float, budget: float
) -> Iterator[dict[str, Any]]:
    end = time.monotonic() + budget
    for queries, rows, dim, k in sizes:
        if queries * rows > _MOST_VALUES:
            continue
        size = queries, rows, dim, k
        if time.monotonic() > end:
            print(f"{size}: no time left")
            continue
        try:
            times = measure(size, device, seconds)
        except (torch.OutOfMemoryError, DeviceMemoryError) as error:
            print(f"{size}: left out: {error}")
            continue
        print(f"{size}: " + ", ".join(f"{path} {1e3 * value:.3f} ms" for path, value in times.items()), flush=True)
        if min(times[path] for path in PATHS) > _SLOWER * times["torch"]:
            print(f"{size}: the faster path is more than 5 % slower than torch's matrix product and topk")
        yield {"queries": queries, "rows": rows, "dim": dim, "k": k, "seconds": times}


def main(arguments: Sequence[str] | None = None, device: str = "cuda", capability: str = "") -> int:
    """Measure and write.

    Args:
        arguments: Of the command line.
        device: Where; tests have another one,
        capability: with this name.
    """
    parser = argparse.ArgumentParser(prog="python -m iiae_fast.bench.device_paths", description="Measure paths of searches.")
    parser.add_argument("--file", type=Path, default=TABLES, help="where the tables are (default: the installed ones)")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each path and size")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds in all")
    parser.add_argument("--toy", action="store_true", help="two small sizes")
    options = parser.parse_args(arguments)
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name() if device == "cuda" else device
    capability = capability or "{}.{}".format(*torch.cuda.get_device_capability())
    if options.file.exists():
        load_tables(options.file)  # refuses what is no such file
        values = json.loads(options.file.read_text())
    else:
        values = {"format": 1, "tables": {}}
    entries: list[dict[str, Any]] = []
    values["tables"][capability] = {"device": name, "entries": entries}
    for entry in _measured(_TOY if options.toy else SIZES, device, options.seconds, options.budget):
        entries.append(entry)
        write_atomic(options.file, (json.dumps(values, indent=1) + "\n").encode())  # each time: the next may be cut off
    print(f"{len(entries)} sizes: {options.file}")
    return 0 if entries else 1


if __name__ == "__main__":
    sys.exit(main())
