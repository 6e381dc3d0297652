"""``iiae bench convergence``: whole runs of the trainer beside those of the plain port, from the same pairs in the same order.

Each run is trained in a directory of its own, as ``RUNS/CONTESTANT-SEED``, and is left alone where it is finished already.
The results are recall of the test pairs, the time to a recall of the validation pairs, and every loss term's curve. A run
with ``--until`` ends with the first epoch whose model finds that share of the test pairs in both directions, one with
``--stop`` with the first that finds the target's share of the validation pairs. Time is the process's, summed over its
threads, so that other work on the machine does not count; tests within a run do not count either, nor does what compilers do
in processes of their own.
"""

from __future__ import annotations

__all__ = ["CONTESTANTS", "curves_page", "run", "train_plain"]

import argparse
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iiae_fast import data, load, objectives, presets, training
from iiae_fast.bench.baselines.port import plain_losses
from iiae_fast.bench.training import copy_state, plain_adam, plain_model
from iiae_fast.config import Preset, TrainingOptions, whole
from iiae_fast.errors import InputError
from iiae_fast.model import IIAE
from iiae_fast.reports.curves import COLOURS, line_chart, read_log
from iiae_fast.storage import load_json, save_json, write_atomic
from iiae_fast.training.evaluation import evaluate, validate
from iiae_fast.training.setup import torch_threads
from iiae_fast.training.step import learning_rate

CONTESTANTS: dict[str, TrainingOptions | None] = {
    "iiae_fast": TrainingOptions(),
    "iiae_fast-bf16": TrainingOptions("bf16"),
    "iiae_fast-fp32": TrainingOptions("fp32"),
    "plain": None,
    "plain-compiled": None,
}
_RESULT = "convergence.json"
_LOG_EVERY = 20  # steps a line of the log
_STYLE = """body{font:14px system-ui;margin:2em;max-width:72em}svg{width:22em}.rule{stroke:#ddd}text{font-size:10px}
.line{fill:none;stroke-width:1.2}"""
_PALETTE = ("#0b6bcb", "#c0392b", "#2e8b57", "#8e44ad", "#d68910")


def run(options: argparse.Namespace) -> int:
    """Train what is not trained yet, then print the table and write the curves beside the runs.

    Args:
        options: As ``iiae bench convergence`` parses them.

    Raises:
        InputError: They, or the data, cannot be used.
    """
    for name in ("epochs", "seeds", "threads"):
        whole(f"--{name}", getattr(options, name), 1)
    preset = presets.get(options.preset, options.image_size)
    if preset.model.family != "spatial":
        raise InputError(f"--preset {options.preset}: the plain port is of the spatial family")
    if options.until is not None and not 0 < options.until <= 1:
        raise InputError(f"--until {options.until:g}: accepted is a share above 0, to 1")
    batch = preset.optim.batch_size if options.batch is None else whole("--batch", options.batch, 2)
    preset = dataclasses.replace(preset, optim=dataclasses.replace(preset.optim, epochs=options.epochs, batch_size=batch))
    found = []
    for seed in range(options.seeds):
        for name in options.contestants:
            seeded = dataclasses.replace(preset, optim=dataclasses.replace(preset.optim, seed=seed))
            found.append(_run(name, seeded, options.runs / f"{name}-{seed}", options))
            print(json.dumps(found[-1]), flush=True)
    for line in _table(found, options.target):
        print(line)
    logs = {one["run"]: read_log(options.runs / one["run"] / "log.jsonl") for one in found}
    page = options.runs / "curves.html"
    write_atomic(page, curves_page(logs).encode())
    print(page)
    return 0


class _Test:
    """Whether a model finds enough of the test pairs; keeps account of the time it takes to ask.

    Args:
        preset: Says which pairs.
        until: R@1 of both directions; None is never reached.
    """

    def __init__(self, preset: Preset, until: float | None) -> None:
        self._preset, self._until = preset, until
        self.recall: dict[str, float] = {}
        self.cpu_seconds = 0.0

    @functools.cached_property
    def _pairs(self) -> data.PairedDataset:
        return data.load(self._preset.data).test

    def __call__(self, model: IIAE) -> bool:
        if self._until is None:
            return False
        start = time.process_time()
        self.recall = evaluate(model, self._pairs)["shared"]
        self.cpu_seconds += time.process_time() - start
        return min(self.recall["x_to_y"], self.recall["y_to_x"]) >= self._until


def _recalls(run_dir: Path) -> list[tuple[float, float]]:
    """(step, R@1 of the validation pairs, mean of both ways) of every validation."""
    validations = read_log(run_dir / "log.jsonl")
    ways = zip(*(validations[way]["validation"] for way in ("x_to_y", "y_to_x")))
    return [(step, (one + other) / 2) for (step, one), (_, other) in ways]


def _run(name: str, preset: Preset, run_dir: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Train where that is not done, and say what came of it."""
    done, threads, target, until = run_dir / _RESULT, asked.threads, asked.target, asked.until
    if not done.exists():
        options, test = CONTESTANTS[name], _Test(preset, until)

        def enough(model: IIAE) -> bool:
            return test(model) or (asked.stop and _recalls(run_dir)[-1][1] >= target)

        if options is None:
            cpu_seconds, steps = train_plain(preset, run_dir, threads, enough, compile=name == "plain-compiled")
        else:
            # A broken off run is not gone on with where its tests' time would be lost, or it may have ended by itself.
            whole_run = until is None and not asked.stop
            result = training.train(
                preset, run_dir, resume=whole_run, threads=threads, log_every=_LOG_EVERY, options=options, enough=enough
            )
            if not result.finished and (whole_run or result.interrupted):
                raise InputError(f"{run_dir}: broken off; {'the same command goes on' if whole_run else 'remove it first'}")
            cpu_seconds, steps = result.cpu_seconds, result.step
        with torch_threads(threads):
            recall = test.recall or evaluate(load(run_dir), data.load(preset.data).test)["shared"]
        save_json(done, {"recall": recall, "cpu_seconds": cpu_seconds - test.cpu_seconds, "steps": steps})
    values, recalls = load_json(done), _recalls(run_dir)
    reached = next((int(step) for step, recall in recalls if recall >= target), None)
    per_step = values["cpu_seconds"] / values["steps"]
    return {
        "run": run_dir.name,
        "contestant": name,
        "x_to_y": values["recall"]["x_to_y"],
        "y_to_x": values["recall"]["y_to_x"],
        "cpu_seconds": round(values["cpu_seconds"], 1),
        "steps": values["steps"],
        "validation": round(max(recall for _, recall in recalls), 5),
        "target_step": reached,
        "target_cpu_seconds": None if reached is None else round(reached * per_step, 1),
    }


def train_plain(
    preset: Preset, run_dir: Path, threads: int, enough: Callable[[IIAE], bool], compile: bool = False
) -> tuple[float, int]:
    """Train the plain port as one would by hand, in fp32; it leaves a log and the model of the last step.

    Pairs, their order, learning rate and objective are those of ``iiae_fast.training.train``; weights and noise are torch's.

    Args:
        preset, run_dir, threads: Of the run.
        enough: Asked after every epoch, when its validation is in the log, whether to end.
        compile: Forward and backward under ``torch.compile``.

    Returns:
        Processor seconds, and steps.
    """
    splits, optim = data.load(preset.data), preset.optim
    order = data.sampler_for(splits.train, optim, preset.data)
    steps = optim.epochs * len(order.batches(0))
    run_dir.mkdir(parents=True, exist_ok=True)
    with torch_threads(threads), (run_dir / "log.jsonl").open("w", buffering=1) as log:
        torch.manual_seed(optim.seed)
        model = plain_model(preset.model).train()
        optimizer = plain_adam(model, preset)

        def losses(x: torch.Tensor, y: torch.Tensor, annealing: torch.Tensor) -> dict[str, torch.Tensor]:
            return plain_losses(model(x, y), x, y, preset.objective, annealing)

        step_losses = torch.compile(losses, dynamic=False) if compile else losses
        start, step, means = time.process_time(), 0, []
        for epoch in range(optim.epochs):
            for indices in order.batches(epoch):
                x, y = (_floats(values) for values in splits.train.batch(indices, epoch)[:2])
                annealing = objectives.kl_annealing(step, preset.objective.kl_annealing_steps)
                terms = step_losses(x, y, torch.tensor(annealing))
                optimizer.param_groups[0]["lr"] = learning_rate(optim, TrainingOptions(), len(x), step, steps)
                optimizer.zero_grad()
                terms["total"].backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                means.append({name: term.item() for name, term in terms.items()})
                step += 1
                if step % _LOG_EVERY == 0:
                    line = {name: statistics.fmean(one[name] for one in means) for name in means[0]}
                    log.write(json.dumps({"step": step, **line}) + "\n")
                    means.clear()
            copy = IIAE(preset.model)
            copy_state(model, copy)
            found = validate(copy, splits.valid, preset.objective, len(splits.train), lambda: False)
            assert found is not None
            log.write(json.dumps({"step": step, "event": "validation", **found.shared, **found.losses}) + "\n")
            if enough(copy):
                break
        seconds = time.process_time() - start
        copy.save(run_dir)
    return seconds, step


def _floats(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float() / 127.5 - 1


def _table(found: Sequence[dict[str, Any]], target: float) -> list[str]:
    """One line for each contestant: means and ranges over the seeds."""
    lines = [f"{'':16} {'R@1 x→y':>16} {'R@1 y→x':>16} {'CPU s':>8} {f'CPU s to {target:.0%}':>14}"]
    for name in dict.fromkeys(run["contestant"] for run in found):
        runs = [run for run in found if run["contestant"] == name]
        ways = [
            f"{100 * statistics.fmean(values):.2f} ± {50 * (max(values) - min(values)):.2f}"
            for values in ([run[way] for run in runs] for way in ("x_to_y", "y_to_x"))
        ]
        reached = [run["target_cpu_seconds"] for run in runs if run["target_cpu_seconds"] is not None]
        when = f"{statistics.fmean(reached):.0f}" if len(reached) == len(runs) else "not reached"
        cost = statistics.fmean(run["cpu_seconds"] for run in runs)
        lines.append(f"{name:16} {ways[0]:>16} {ways[1]:>16} {cost:8.0f} {when:>14}")
    return lines


def curves_page(logs: dict[str, dict[str, dict[str, list[tuple[float, float]]]]]) -> str:
    """An HTML page with a chart for each loss term, all runs over one another; contestants have a colour each.

    Args:
        logs: ``read_log`` of each run, by ``CONTESTANT-SEED``.
    """
    contestants = list(dict.fromkeys(run.rpartition("-")[0] for run in logs))
    colours = dict(zip(contestants, _PALETTE))
    charts = []
    for term in ("total", "rec_x", "rec_y", "kl_x", "kl_y", "kl_s", "kl_s_rx", "kl_s_ry"):
        series = {run: log[term]["training"] for run, log in logs.items()}
        svg = line_chart(term, series).svg
        for run in series:
            was = f'class="line {COLOURS.get(run, "third")}"'
            svg = svg.replace(was, f'class="line" stroke="{colours[run.rpartition("-")[0]]}"', 1)
        charts.append(f"<figure><figcaption>{term}</figcaption>{svg}</figure>")
    legend = ", ".join(f'<span style="color:{colour}">{name}</span>' for name, colour in colours.items())
    body = "".join(charts)
    return f'<!doctype html><meta charset="utf-8"><title>Convergence</title><style>{_STYLE}</style><p>{legend}</p>{body}'
