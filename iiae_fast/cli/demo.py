"""``iiae demo``: the whole way on real data, in minutes on two cores."""

from __future__ import annotations

__all__ = ["Demo"]

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iiae_fast import presets
from iiae_fast.cli import deploy, evaluate, report
from iiae_fast.cli.output import print_json, table
from iiae_fast.cli.runs import open_model, record_command
from iiae_fast.config import Preset

if TYPE_CHECKING:
    from iiae_fast.training import TrainingResult

PRESET = "digits-cdcb"


@dataclass(frozen=True)
class Demo:
    """Train on real handwritten digits, retrieve across domains, translate, export to ONNX, retrieve again, write a report.

    A run that is already there is gone on with, or reused when it is finished.

    Attributes:
        run_dir: Where everything goes; report.html is the page, results.json holds the figures.
        epochs: Passes over the training pairs; by default the preset's.
        image_size: Side of the images; by default the preset's.
        device: Of the training: cpu, cuda, cuda:1, …; everything after it runs on the CPU.
        threads: CPU threads; by default all cores.
        quiet: No progress bar.
        json: Print the content of results.json instead of tables.
    """

    run_dir: Path = Path("runs/demo")
    epochs: int | None = None
    image_size: int | None = None
    device: str = "cpu"
    threads: int | None = None
    quiet: bool = False
    json: bool = False

    def run(self) -> int:
        """Everything; 130 when training was interrupted (after saving)."""
        from iiae_fast import data, training
        from iiae_fast.reports import environment
        from iiae_fast.storage import write_atomic

        start, preset = time.perf_counter(), self._preset()
        times: dict[str, float] = {}
        with _timed(times, "training_call_seconds"):
            trained = training.train(
                preset, self.run_dir, resume=True, device=self.device, threads=self.threads, progress=not self.quiet
            )
        record_command(self.run_dir)
        if trained.interrupted:
            print(f"interrupted after step {trained.step:,}; the same command goes on from there")
            return 130
        model, splits = open_model(self.run_dir, "cpu", self.threads), data.load(preset.data)
        with _timed(times, "evaluation_seconds"):
            metric = evaluate.default_metric(model.config)
            measured = evaluate.measure(model, splits, "test", metric, report.KS)
        with _timed(times, "export_seconds"):
            parity = deploy.export_graphs(
                model, preset, splits, self.run_dir / deploy.ONNX_DIRECTORY, run=self.run_dir.resolve().name
            )
        page = self.run_dir / "report.html"
        with _timed(times, "report_seconds"):
            report.write_report(page, self.run_dir, model, preset, splits, measured)
        times |= {
            "training_seconds": trained.seconds,
            "training_cpu_seconds": trained.cpu_seconds,
            "total_seconds": time.perf_counter() - start,
            "total_cpu_seconds": time.process_time(),
        }
        results = {
            "preset": preset.name,
            "retrieval": {"metric": metric, **measured},
            "onnx": _onnx(parity),
            "training": {"steps": trained.step, "epochs": trained.epoch, "pairs_per_second": trained.pairs_per_second},
            "times": {name: round(seconds, 3) for name, seconds in times.items()},
            "environment": environment.describe(),
        }
        write_atomic(self.run_dir / "results.json", (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())
        if self.json:
            print_json(results)
        else:
            evaluate.show(f"{preset.name}: {measured['pairs']:,} test pairs, {metric}", measured)
            deploy.show(parity)
            _show_times(trained, times)
            print(f"\nreport: {page}\nfigures: {self.run_dir / 'results.json'}")
        return 0

    def _preset(self) -> Preset:
        preset = presets.get(PRESET, self.image_size)
        if self.epochs is None:
            return preset
        return dataclasses.replace(preset, optim=dataclasses.replace(preset.optim, epochs=self.epochs))


@contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[name] = time.perf_counter() - start


def _onnx(parity: dict[str, Any]) -> dict[str, Any]:
    """The figures of ``results.json``: agreement of the retrieval, and the worst graph's error."""
    return {
        "top1_agreement": parity["retrieval"]["top1_agreement"],
        "max_relative_error": max(graph["max_relative_error"] for graph in parity["graphs"]),
        "retrieval": {way: parity["retrieval"][way] for way in ("x_to_y", "y_to_x")},
        "graphs": {graph["graph"]: graph["max_relative_error"] for graph in parity["graphs"]},
    }


def _show_times(trained: TrainingResult, times: dict[str, float]) -> None:
    rows = [
        (f"training, {trained.step:,} steps, {trained.pairs_per_second:,.0f} pairs/s", times["training_seconds"]),
        ("training, processor time", times["training_cpu_seconds"]),
        ("retrieval", times["evaluation_seconds"]),
        ("export, parity, retrieval by ONNX Runtime", times["export_seconds"]),
        ("report", times["report_seconds"]),
        ("this command", times["total_seconds"]),
    ]
    table("times", ("", ">seconds"), [(name, f"{seconds:.1f}") for name, seconds in rows])
