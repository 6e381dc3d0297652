"""Record what test_compare reads: two sets of runs of the same code, and one of the same code slowed by a tenth.

    python tests/bench/record_runs.py tests/bench/recorded

A run is a process, as in ``iiae bench``; the three sets take turns, so that whatever drifts drifts for all.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from iiae_fast import kernels
from iiae_fast.bench.environment import describe_run
from iiae_fast.bench.registry import Settings
from iiae_fast.bench.results import Writer, quantiles
from iiae_fast.bench.timing import CpuClock, Plan, measure

SETS = {"first": 20, "again": 20, "slowed": 22}  # repetitions of the same work in a call
RUNS = 5


def record(path: Path, repetitions: int) -> None:
    """One run: the reconstruction loss of small images, over and over, on one thread."""
    torch.set_num_threads(1)
    prediction, target = torch.randn(4, 3, 32, 32), torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)

    def call() -> None:
        for _ in range(repetitions):
            kernels.reconstruction(prediction, target, "laplace", "tanh", backend="reference")

    for _ in range(20):
        call()
    clock = CpuClock()
    timing = measure({"reference": clock.prepare(call)}, clock, Plan(relative_error=0.003, seconds=4.0, max_rounds=300))
    found = timing["reference"]
    out = Writer(path, describe_run(Settings("cpu", threads=1), "tests/bench/record_runs.py"))
    out.timing(
        suite="kernels",
        benchmark="reconstruction",
        case="recorded",
        contestant="reference",
        ours=True,
        status="measured",
        reason="",
        cache="hot",
        launch="n/a",
        samples=[float(f"{sample:.5g}") for sample in found.samples],
        calls=found.calls,
        **quantiles(found.samples),
        relative_error=round(found.relative_error, 5),
        precise=found.precise,
        peak_memory=None,
        bytes=None,
        flops=None,
        items=None,
        unit="",
        matmul="",
        parameters={"repetitions": repetitions},
    )


def main() -> None:
    if len(sys.argv) == 3:
        record(Path(sys.argv[1]), int(sys.argv[2]))
        return
    folder = Path(sys.argv[1])
    for name in SETS:
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
    for _ in range(RUNS):
        for name, repetitions in SETS.items():
            subprocess.run([sys.executable, __file__, str(folder / f"{name}.jsonl"), str(repetitions)], check=True)


if __name__ == "__main__":
    main()
