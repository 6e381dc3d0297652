"""Steps computed in other ways end where they should, and resume as the plain one does."""

from __future__ import annotations

import dataclasses
import functools
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sync_counter import Synchronizations
from toy_runs import FeaturePairs, Hooked, assert_same_run, digits, features, signal_at

from iiae_fast import data, objectives, training
from iiae_fast.config import OptimConfig, Preset, TrainingOptions
from iiae_fast.data import Splits
from iiae_fast.errors import ConfigError
from iiae_fast.model import IIAE
from iiae_fast.storage import load_json, load_tensors
from iiae_fast.training import setup
from iiae_fast.training.prefetch import DeviceBatch
from iiae_fast.training.run import noise_seed
from iiae_fast.training.step import TrainingStep, learning_rate

FP32 = TrainingOptions("fp32")
MODES = {
    "bf16": TrainingOptions("bf16"),
    "fp32, deterministic": TrainingOptions("fp32", deterministic=True),
    "accumulated, averaged": TrainingOptions("fp32", accumulate=2, ema_decay=0.9),
    "bf16, recomputed": TrainingOptions("bf16", recompute=True, accumulate=3),
    "contiguous, warmed up": TrainingOptions("fp32", channels_last=False, warmup_steps=7, lr_scaling="sqrt"),
    "streaming": TrainingOptions("fp32", resident="off"),
}


def dropping(epochs: int = 1) -> Preset:
    """The small digits with dropout, whose draws a checkpoint has to bring back."""
    preset = digits(epochs)
    return replace(preset, model=replace(preset.model, dropout=0.3))


def batch_of(preset: Preset, pairs: int, seed: int = 0) -> DeviceBatch:
    random = torch.Generator().manual_seed(seed)
    shape = (pairs, *preset.model.input_shape)
    if preset.model.family == "feature":
        x, y = (torch.randn(shape, generator=random) for _ in range(2))
        return DeviceBatch(x, y, torch.arange(pairs) % preset.model.classes)
    images = (torch.randint(256, shape, dtype=torch.uint8, generator=random) for _ in range(2))
    return DeviceBatch(*(image.contiguous(memory_format=torch.channels_last) for image in images), None)  # type: ignore[misc]


def step_of(preset: Preset, options: TrainingOptions, on_device: bool | None = None) -> TrainingStep:
    torch.manual_seed(0)
    model = IIAE(preset.model).train()
    if preset.model.family != "feature":
        model.to(memory_format=torch.channels_last)
    return TrainingStep(model, preset.objective, preset.optim, options, 100, on_device)


def seeds_of(step: int, count: int) -> list[int]:
    return [100 * step + number for number in range(count)]


@pytest.mark.parametrize("mode", list(MODES))
def test_every_mode_resumes_bit_for_bit(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preset, options = dropping(), MODES[mode]
    splits = data.load(preset.data)
    whole = training.train(preset, tmp_path / "unbroken", progress=False, log_every=7, options=options)
    assert whole.finished
    assert whole.step == 40 // options.accumulate
    for batches in (4, 7, 10**6):
        hooked = replace(splits, train=Hooked(splits.train, signal_at(batches, signal.SIGTERM)))
        monkeypatch.setattr(data, "load", lambda config, hooked=hooked: hooked)
        result = training.train(preset, tmp_path / "broken", resume=True, progress=False, log_every=7, options=options)
        assert result.interrupted == (batches < 10**6)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_deterministic_fp32_is_the_step_written_out_plainly(tmp_path: Path) -> None:
    preset = dropping()
    optim = preset.optim
    options = TrainingOptions("fp32", deterministic=True)
    training.train(preset, tmp_path, progress=False, device="cpu", options=options)
    found, _ = load_tensors(tmp_path / "checkpoints" / "last.safetensors")

    pairs = data.load(preset.data).train
    torch.manual_seed(optim.seed)
    model = IIAE(preset.model, backend="reference").train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    adam = torch.optim.Adam(model.parameters(), optim.lr, (optim.beta1, optim.beta2), optim.eps, fused=True)
    batches = data.sampler_for(pairs, optim, preset.data).batches(0)
    for step, indices in enumerate(batches):
        adam.param_groups[0]["lr"] = optim.lr * (1 + math.cos(math.pi * step / len(batches))) / 2
        x, y = (torch.tensor(values).contiguous(memory_format=torch.channels_last) for values in pairs.batch(indices, 0)[:2])
        out = model(x, y, seed=noise_seed(optim.seed, step))
        adam.zero_grad()
        objectives.iiae(out, x, y, preset.objective, step).total.backward()
        adam.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found[f"model/{name}"]), name


def test_a_compiled_run_resumes_bit_for_bit(tmp_path: Path, feature_splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def traced(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=traced, fullgraph=True))
    options = TrainingOptions("fp32", compile=True)
    training.train(features(1), tmp_path / "unbroken", progress=False, options=options)
    assert len(calls) == 1, "once for all steps"
    monkeypatch.setattr(data, "load", lambda _: replace(feature_splits, train=Hooked(feature_splits.train, signal_at(9, 15))))
    assert training.train(features(1), tmp_path / "broken", progress=False, options=options).interrupted
    monkeypatch.setattr(data, "load", lambda _: feature_splits)
    training.train(features(1), tmp_path / "broken", resume=True, progress=False, options=options)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_resident_pairs_are_the_streamed_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = digits(1)
    preset = replace(preset, data=replace(preset.data, recolour=False, augment=False))
    for mode in ("on", "off"):
        training.train(preset, tmp_path / mode, progress=False, options=TrainingOptions("fp32", resident=mode))  # type: ignore[arg-type]
    assert (tmp_path / "on" / "model.safetensors").read_bytes() == (tmp_path / "off" / "model.safetensors").read_bytes()
    # A run may be resumed either way.
    training.train(preset, tmp_path / "mixed", progress=False, stop_after=0, options=TrainingOptions("fp32", resident="on"))
    training.train(preset, tmp_path / "mixed", progress=False, resume=True, options=TrainingOptions("fp32", resident="off"))
    assert_same_run(tmp_path / "on", tmp_path / "mixed")


def test_pairs_that_change_cannot_be_resident(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resident='on': these pairs are drawn anew in every epoch"):
        training.train(digits(), tmp_path / "run", progress=False, options=TrainingOptions(resident="on"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_changes_no_bit(precision: Any) -> None:
    preset = dropping()
    steps = [step_of(preset, TrainingOptions(precision, recompute=recompute)) for recompute in (False, True)]
    for number in range(3):
        terms = []
        for step in steps:
            torch.manual_seed(number)  # of the dropout
            found = step(batch_of(preset, 8, number), [number], number, 1e-3)
            terms.append({name: term.item() for name, term in found.items()})
        assert terms[0] == terms[1]
    states = [step.model.state_dict() for step in steps]
    for name, tensor in states[0].items():  # BatchNorm's moving statistics and counts among them
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.parametrize("family", ["spatial", "feature"])
def test_counters_on_the_device_make_the_same_step(family: str) -> None:
    """What a captured step reads from tensors, run without a capture."""
    preset = digits() if family == "spatial" else features()
    host, device = step_of(preset, FP32), step_of(preset, FP32, on_device=True)
    for number in range(4):
        batch = batch_of(preset, 8, number)
        terms = [step(batch, [7 + number], number, 1e-3 / (1 + number)) for step in (host, device)]
        for name, term in terms[0].items():
            # The annealing factor is rounded to fp32 before instead of after the product.
            assert term.item() == pytest.approx(terms[1][name].item(), rel=1e-5), (number, name)


def test_accumulated_gradients_are_the_means() -> None:
    preset = features()
    step = step_of(preset, TrainingOptions("fp32", accumulate=3))
    plain = step_of(preset, FP32)
    batch = batch_of(preset, 24)
    found = step(batch, [1, 2, 3], 5, 1e-3)
    terms = []
    for number, seed in enumerate((1, 2, 3)):
        rows = slice(8 * number, 8 * (number + 1))
        x, y = batch.x[rows], batch.y[rows]
        assert batch.labels is not None
        out = plain.model(x, y, seed=seed)
        terms.append(objectives.compute(out, x, y, preset.objective, 5, batch.labels[rows], 100))
        (terms[-1].total / 3).backward()
    plain.optimizer.param_groups[0]["lr"] = 1e-3
    plain.optimizer.step()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, step.model.state_dict()[name]), name
    for name in ("total", "rec_x", "kl_s"):
        assert found[name].item() == pytest.approx(np.mean([getattr(one, name).item() for one in terms]), rel=1e-6)


def test_moving_average_is_what_is_validated_and_saved(tmp_path: Path, feature_splits: Splits) -> None:
    decay, weights = 0.8, []
    original = TrainingStep.__call__

    def watched(self: TrainingStep, *args: Any) -> Any:
        if not weights:
            weights.append([parameter.detach().clone() for parameter in self.model.parameters()])
        terms = original(self, *args)
        weights.append([parameter.detach().clone() for parameter in self.model.parameters()])
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", watched)
        patch.setattr(data, "load", lambda config: Splits(feature_splits.train, FeaturePairs(0), FeaturePairs(8)))
        training.train(features(1), tmp_path, progress=False, options=TrainingOptions("fp32", ema_decay=decay))
    averages = weights[0]
    for now in weights[1:]:
        averages = [decay * average + (1 - decay) * weight for average, weight in zip(averages, now)]
    saved, _ = load_tensors(tmp_path / "model.safetensors")
    last, _ = load_tensors(tmp_path / "checkpoints" / "last.safetensors")
    names = [name for name, _ in IIAE(features().model).named_parameters()]
    for name, average in zip(names, averages):
        torch.testing.assert_close(saved[name], average, rtol=1e-4, atol=1e-6)
        assert not torch.equal(saved[name], last[f"model/{name}"]), name
    statistics = [name for name in saved if "running" in name]
    assert statistics
    assert all(torch.equal(saved[name], last[f"model/{name}"]) for name in statistics)


def test_learning_rates() -> None:
    optim = OptimConfig(lr=1e-3, lr_decay="cosine")

    def rate(step: int, **options: Any) -> float:
        return learning_rate(optim, TrainingOptions(**options), 32, step, 100)

    assert rate(0) == 1e-3
    assert rate(50) == pytest.approx(5e-4)
    assert rate(0, lr_scaling="linear") == pytest.approx(4e-3)
    assert rate(0, lr_scaling="sqrt") == pytest.approx(2e-3)
    assert rate(0, lr_scaling="linear", lr_batch=64) == pytest.approx(5e-4)
    assert [rate(step, warmup_steps=4) / rate(step) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_bf16_has_the_losses_of_fp32_and_keeps_fp32_state() -> None:
    preset = digits()
    low, high = step_of(preset, TrainingOptions("bf16")), step_of(preset, FP32)
    for number in range(5):
        batch = batch_of(preset, 32, number)
        terms, expected = (step(batch, [number], number, 1e-3) for step in (low, high))
        for name, term in expected.items():
            assert terms[name].dtype == torch.float32
            assert terms[name].item() == pytest.approx(term.item(), rel=2e-2), (number, name)
    for state in low.optimizer.state.values():
        assert all(value.dtype == torch.float32 for value in state.values())
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in low.model.state_dict().values())


@pytest.mark.parametrize("mode", ["bf16", "accumulated, averaged", "bf16, recomputed"])
@pytest.mark.parametrize("on_device", [False, True])
def test_no_mode_synchronizes(mode: str, on_device: bool) -> None:
    preset, options = dropping(), MODES[mode]
    step = step_of(preset, options, on_device)
    step.set_averages([parameter.detach().clone() for parameter in step.model.parameters()])
    count = options.accumulate
    step(batch_of(preset, 4 * count), seeds_of(0, count), 0, 1e-3)  # Adam makes its moments
    with Synchronizations() as mode_:
        step(batch_of(preset, 4 * count), seeds_of(1, count), 1, 1e-3)
    assert not mode_.found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "fp8"}, "precision='fp8': accepted is one of auto, fp32, bf16"),
        ({"accumulate": 0}, "accumulate=0: accepted is a whole number of at least 1"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"deterministic": True, "compile": True}, "deterministic=True and compile=True"),
        ({"deterministic": True, "overlap": True}, "deterministic=True and overlap=True contradict each other"),
        ({"recompute": True, "cuda_graph": True}, "recompute=True and cuda_graph=True exclude each other: capture cannot put"),
        ({"recompute": True, "compile": True}, "recompute=True and compile=True exclude each other: the compiler cannot put"),
        ({"recompute": True, "overlap": True}, "recompute=True and overlap=True exclude each other: it saves memory"),
        ({"compile": True, "overlap": True}, "compile=True and overlap=True exclude each other: the compiler launches"),
    ],
)
def test_bad_options(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingOptions(**values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TrainingOptions(cuda_graph=True), "cuda_graph=True: needs a CUDA device, the run's is cpu"),
        (TrainingOptions(overlap=True), "overlap=True: needs a CUDA device, the run's is cpu"),
        (TrainingOptions(accumulate=31), "accumulate=31: a pass over the training pairs has 30 batches"),
    ],
)
def test_options_that_a_run_cannot_have(tmp_path: Path, feature_splits: Splits, options: TrainingOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        training.train(features(), tmp_path / "run", progress=False, device="cpu", options=options)
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_its_options(tmp_path: Path, feature_splits: Splits) -> None:
    training.train(features(), tmp_path, progress=False, stop_after=0, options=TrainingOptions("bf16", accumulate=2))
    with pytest.raises(ConfigError, match="accumulate is 1, the run to resume has 2; resume it with the options it had"):
        training.train(features(), tmp_path, resume=True, progress=False)
    with pytest.raises(ConfigError, match="precision is 'fp32', the run to resume has 'bf16'"):
        training.train(features(), tmp_path, resume=True, progress=False, options=TrainingOptions("fp32", accumulate=2))
    result = training.train(features(), tmp_path, resume=True, progress=False, options=TrainingOptions(accumulate=2))
    assert result.finished
    options = load_json(tmp_path / "run.json")["options"]
    assert options == dataclasses.asdict(TrainingOptions("bf16", accumulate=2))


@pytest.mark.parametrize(("units", "kernels"), [(False, False), (True, False), (True, True)])
def test_auto_takes_bf16_where_it_gains(units: bool, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(setup.convolution, "available", lambda: kernels)

    def chosen(preset: Preset, **options: Any) -> str:
        return setup.settle_options(TrainingOptions(**options), preset, torch.device("cpu"), None).precision

    from iiae_fast import presets

    large = presets.get("facades")
    assert chosen(large) == ("bf16" if units else "fp32")
    assert chosen(large, deterministic=True) == "fp32"
    assert chosen(digits()) == ("bf16" if kernels else "fp32"), "too small a step to gain by PyTorch's layers"
    assert chosen(presets.get("sketchy")) == "fp32"
    assert chosen(digits(), precision="bf16") == "bf16"
