"""The step on a GPU: nothing waits, a captured step is the eager one, and one on two streams is the one on a single stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_options import batch_of, dropping, step_of
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
    "overlap": TrainingOptions("bf16", overlap=True),
    "graph, overlap": TrainingOptions("bf16", cuda_graph=True, overlap=True),
    "graph, overlap, accumulated": TrainingOptions("fp32", cuda_graph=True, overlap=True, accumulate=2),
}
LATE = 1_000_000  # cycles of the device: over half a millisecond, many times what any kernel here takes


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


def results(preset: Preset, options: TrainingOptions, late: tuple[str, ...] = ()) -> list[dict[str, torch.Tensor]]:
    """Losses and gradients of 20 steps, then the state they end in.

    Args:
        preset, options: Of the step.
        late: Towers and decoders whose forward and backward passes begin late on the device.
    """
    made = batches(preset, 64 * options.accumulate)
    take = on_gpu(preset, options)
    model: IIAE = getattr(take, "_step", take).model
    for name in late:
        part = model.get_submodule(name)
        part.register_forward_pre_hook(lambda *_: torch.cuda._sleep(LATE))
        part.register_full_backward_pre_hook(lambda *_: torch.cuda._sleep(LATE))
    found = []
    for number in range(20):
        terms = take(made[number % 5], [100 * number + part for part in range(options.accumulate)], number, 1e-3)
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        found.append({name: tensor.clone() for name, tensor in {**terms, **gradients}.items()})
    assert len(gradients) == len(list(model.parameters()))
    return [*found, {name: tensor.clone() for name, tensor in model.state_dict().items()}]


def assert_same(found: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]], why: str) -> None:
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.keys() == other.keys()
        for name, tensor in other.items():
            assert torch.equal(one[name], tensor), (why, number, name)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of towers: images need no gradients
@pytest.mark.parametrize("late", ["", "x", "y"])
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize(("precision", "accumulate"), [("fp32", 2), ("bf16", 1)])
def test_two_streams_make_the_step_of_one(
    precision: Any, accumulate: int, captured: bool, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever domain is late, so that a stream which does not wait reads, or is given memory, too early."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    preset, options = dropping(), TrainingOptions(precision, accumulate=accumulate, cuda_graph=captured)
    expected = results(preset, options)
    assert_same(results(preset, options), expected, "one stream, a second time")
    parts = tuple(f"{part}_{late}" for part in ("exclusive", "shared", "decoder")) if late else ()
    assert_same(results(preset, replace(options, overlap=True), parts), expected, "two streams")


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
