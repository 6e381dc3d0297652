"""The step on a GPU: nothing waits, and a captured step is the eager one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_options import batch_of, step_of
from toy_runs import assert_same_run, digits

from iiae_fast import training
from iiae_fast.config import Preset, TrainingOptions
from iiae_fast.model import IIAE
from iiae_fast.training.graph import GraphedStep
from iiae_fast.training.prefetch import DeviceBatch
from iiae_fast.training.step import TrainingStep

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

STEPS = 50
MODES = {
    "fp32": TrainingOptions("fp32"),
    "bf16": TrainingOptions("bf16"),
    "graph": TrainingOptions("bf16", cuda_graph=True),
    "graph, accumulated, averaged": TrainingOptions("fp32", cuda_graph=True, accumulate=2, ema_decay=0.9),
}


def on_gpu(preset: Preset, options: TrainingOptions) -> Any:
    """A step, captured where the options say so."""
    torch.manual_seed(0)
    model = IIAE(preset.model).cuda().train().to(memory_format=torch.channels_last)
    step = TrainingStep(model, preset.objective, preset.optim, options, 100)
    step.set_averages([parameter.detach().clone() for parameter in model.parameters()] if options.ema_decay else [])
    return GraphedStep(step) if options.cuda_graph else step


def batches(preset: Preset, pairs: int) -> list[DeviceBatch]:
    made = [batch_of(preset, pairs, seed) for seed in range(5)]
    return [DeviceBatch(batch.x.cuda(), batch.y.cuda(), None) for batch in made]


@pytest.mark.parametrize("mode", list(MODES))
def test_no_step_waits(mode: str) -> None:
    preset, options = digits(), MODES[mode]
    take, made = on_gpu(preset, options), batches(preset, 16 * options.accumulate)
    for number in range(5):  # memory is found, kernels are compiled, the step is captured
        take(made[number % 5], list(range(options.accumulate)), number, 1e-3)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(STEPS):
            take(made[number % 5], list(range(options.accumulate)), number, 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_captured_step_is_the_eager_one(accumulate: int) -> None:
    preset = digits()
    captured = on_gpu(preset, TrainingOptions("fp32", accumulate=accumulate, cuda_graph=True))
    eager = on_gpu(preset, TrainingOptions("fp32", accumulate=accumulate))
    made = batches(preset, 16 * accumulate)
    for number in range(20):
        seeds, lr = [100 * number + part for part in range(accumulate)], 1e-3 / (1 + number)
        found, expected = (take(made[number % 5], seeds, number, lr) for take in (captured, eager))
        for name, term in expected.items():
            assert found[name].item() == pytest.approx(term.item(), rel=1e-3), (number, name)


def test_losses_on_the_gpu_are_the_cpus() -> None:
    preset = digits()
    take, made = on_gpu(preset, TrainingOptions("fp32")), batches(preset, 16)
    plain = step_of(preset, TrainingOptions("fp32"))
    for number in range(3):
        found = take(made[number], [number], number, 1e-4)
        expected = plain(batch_of(preset, 16, number), [number], number, 1e-4)
        for name, term in expected.items():
            assert found[name].item() == pytest.approx(term.item(), rel=1e-2), (number, name)


@pytest.mark.parametrize("mode", ["bf16", "graph"])
def test_a_resumed_run_goes_on_with_the_same_noise(tmp_path: Path, mode: str) -> None:
    preset, options = digits(1), replace(MODES[mode], deterministic=not MODES[mode].cuda_graph)
    whole = training.train(preset, tmp_path / "whole", device="cuda", progress=False, options=options)
    assert whole.finished
    training.train(preset, tmp_path / "broken", device="cuda", progress=False, options=options, stop_after=0.5)
    training.train(preset, tmp_path / "broken", device="cuda", progress=False, options=options, resume=True)
    if options.deterministic:
        assert_same_run(tmp_path / "whole", tmp_path / "broken")
    else:
        assert (tmp_path / "broken" / "model.safetensors").exists()
