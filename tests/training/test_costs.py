"""What a step costs: operators, operations, memory; and the profile of a run."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_options import batch_of, step_of
from toy_runs import digits, features

from iiae_fast import convolution, presets, training
from iiae_fast.bench.baselines.port import PlainIIAE
from iiae_fast.config import Preset, TrainingOptions
from iiae_fast.data import Splits
from iiae_fast.training.costs import _LIBRARIES, _WORKING, Room, _Alive, is_out_of_memory, memory_needed, step_flops
from iiae_fast.training.profiling import PARTS, _shares, count_operators


def operators(preset: Preset, options: TrainingOptions) -> int:
    """Of the third step: Adam has its moments by then."""
    step, batch = step_of(preset, options), batch_of(preset, 8)
    for number in range(2):
        step(batch, [number], number, 1e-3)
    return count_operators(lambda: step(batch, [2], 2, 1e-3))[0]


@pytest.fixture
def own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our kernels on every processor, by the portable ones if need be: counts are those of a step that has them."""
    monkeypatch.setattr(convolution, "available", lambda: True)


@pytest.mark.usefixtures("own_kernels")
@pytest.mark.parametrize(
    ("family", "precision", "most"), [("spatial", "fp32", 292), ("spatial", "bf16", 327), ("feature", "fp32", 380)]
)
def test_a_step_dispatches_no_more_operators_than_it_did(family: str, precision: Any, most: int) -> None:
    preset = digits() if family == "spatial" else features()
    assert operators(preset, TrainingOptions(precision)) <= most


def test_operations_are_those_of_the_plain_port() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from iiae_fast.bench.training import plain_model

    config = presets.get("mnist-cdcb", image_size=32).model
    with torch.device("meta"):
        port: PlainIIAE = plain_model(config)
        x = torch.empty(8, *config.input_shape)
    with FlopCounterMode(display=False) as counter:
        out = port(x, x)
        sum(one.sum() for one in (out.x_hat, out.y_hat, out.r_x[0], out.r_y[0])).backward()  # type: ignore[union-attr]
    assert step_flops(config, 8) == counter.get_total_flops()
    assert step_flops(presets.get("maps").model, 8) == pytest.approx(2.6e11, rel=0.01)


def test_memory_grows_with_batch_and_options() -> None:
    preset = presets.get("mnist-cdcb", image_size=32)

    def needed(pairs: int, **options: Any) -> int:
        return memory_needed(preset, TrainingOptions(**options), pairs)

    high, low = needed(256, precision="fp32"), needed(256, precision="bf16")
    assert needed(512, precision="fp32") > 1.6 * high
    assert low < 0.75 * high
    assert needed(256, precision="fp32", recompute=True) < 0.7 * high
    weights = sum(parameter.numel() for parameter in step_of(preset, TrainingOptions("fp32")).model.parameters())
    assert needed(256, precision="fp32", ema_decay=0.9) >= high + 4 * weights
    assert needed(256, precision="fp32", accumulate=4, compile=True) == high


def test_memory_is_that_of_real_steps() -> None:
    """Against what the tensors of a real step take; allocators and convolutions add to that."""
    preset = digits()
    step, batch = step_of(preset, TrainingOptions("fp32")), batch_of(preset, 64)
    with _Alive() as alive:
        step.losses_and_gradients(batch, [0], 0)
    weights = sum(parameter.numel() for parameter in step.model.parameters())
    tensors = alive.peak + 2 * batch.x.nbytes + (4 + 8) * weights  # made before: images, weights; later: moments
    found = (memory_needed(preset, TrainingOptions("fp32"), 64) - _LIBRARIES) / _WORKING
    assert found == pytest.approx(tensors, rel=0.02)


def test_room_is_one_line_with_a_batch_that_fits() -> None:
    preset, options = digits(), TrainingOptions("fp32")
    need = {pairs: memory_needed(preset, options, pairs) for pairs in (16, 64)}
    room = Room(preset, options, batch=64, free=int(need[16] / 0.85))
    assert re.fullmatch(r"a step of 64 pairs needs about \d+ MB, \d+ MB are free: too much", str(room))
    assert "optim.batch_size=16 (with accumulate=4 for as many pairs a step)" in room.advice()
    enough = Room(preset, options, 64, 10**10)
    assert str(enough).endswith("MB, 10,000 MB are free")
    assert "optim.batch_size=32" in enough.advice(), "it failed all the same"
    assert "optim.batch_size=64 (with accumulate=2" in Room(preset, options, 100, None).advice()
    for batch, free in ((64, 10**5), (2, None)):
        assert "narrower networks" in Room(preset, options, batch, free).advice()
    assert str(Room(preset, options, 64, None)).endswith(f"about {need[64] / 1e6:,.0f} MB")


def test_which_errors_are_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(RuntimeError("x"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("family", ["spatial", "feature"])
def test_a_profile_says_where_the_time_goes(tmp_path: Path, family: str, request: pytest.FixtureRequest) -> None:
    if family == "feature":
        request.getfixturevalue("feature_splits")
    preset = digits() if family == "spatial" else features()
    before = torch.get_rng_state()
    found = training.profile(preset, 2, tmp_path / "run" / "trace.json", device="cpu", threads=1)
    assert torch.equal(before, torch.get_rng_state())
    assert sum(found.parts.values()) == pytest.approx(1)
    assert set(found.parts) <= set(PARTS)
    for part in ("towers", "kernels", "decoders", "optimizer"):
        assert found.parts[part] > 0, part
    assert found.flops == step_flops(preset.model, found.pairs)
    assert found.achieved == found.flops / found.seconds
    assert (found.launches, found.steps) == (0, 2)
    assert found.operators > 100
    assert found.bytes > found.pairs * 100
    assert json.loads(found.trace.read_text())["traceEvents"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["trace.json"]


class Event:
    """As much of a profiler's event as is looked at."""

    def __init__(self, name: str, seconds: float, parent: Event | None = None, sequence: int = -1) -> None:
        self.name, self.self_cpu_time_total, self.cpu_parent, self.sequence_nr = name, seconds, parent, sequence


def test_backward_operators_count_for_their_forward_part() -> None:
    step = Event("iiae_fast/kernels", 10.0)
    tower = Event("iiae_fast/towers", 20.0, step)
    decoder = Event("iiae_fast/decoders", 0.0, step)
    events = [
        step,
        tower,
        decoder,
        Event("iiae_fast/data", 5.0),
        Event("aten::convolution", 100.0, tower, sequence=1),
        Event("aten::tanh", 7.0, step, sequence=2),
        Event("aten::convolution", 50.0, decoder, sequence=3),
    ]
    for sequence, seconds in ((1, 200.0), (2, 14.0), (3, 100.0)):
        node = Event("autograd::engine::evaluate_function: SomeBackward0", 0.0, step, sequence)
        events += [node, Event("aten::something_backward", seconds, node)]
    gather = Event("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 4.0, step)
    adam = Event("Optimizer.step#Adam.step", 1.0, step)
    events += [gather, adam, Event("aten::_fused_adam_", 2.0, adam)]
    found = _shares(events, cuda=False)
    seconds_of = {"data": 5, "towers": 300, "kernels": 21, "decoders": 150, "optimizer": 3, "other": 4, "host": 30}
    assert found == {name: pytest.approx(seconds / 513) for name, seconds in seconds_of.items()}
    assert list(found) == [name for name in PARTS if name != "compiled"]


def test_the_command_prints_the_profile(
    tmp_path: Path, feature_splits: Splits, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from iiae_fast.cli.train import Train

    preset = features()
    command = Train(
        preset.model, preset.objective, preset.optim, preset.data, "sketchy", run_dir=tmp_path, profile=1, device="cpu"
    )
    assert command.run() == 0
    text = capsys.readouterr().out
    for word in ("towers", "decoders", "optimizer", "operators a step", "GFLOP/s", "trace.json"):
        assert word in text
    assert not (tmp_path / "run.json").exists()


@pytest.mark.usefixtures("own_kernels")
@pytest.mark.parametrize(("family", "precision", "most"), [("spatial", "bf16", [262, 265]), ("feature", "fp32", [320, 389])])
def test_a_compiled_step_is_one_graph_of_no_more_operators_and_the_same(
    family: str, precision: Any, most: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs that the compiler is given, forward and backward; they run here as they are, without inductor."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    found: list[int] = []

    def counted(graph: torch.fx.GraphModule, _: Any) -> Any:
        found.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=counted, bw_compiler=counted)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend, fullgraph=True))
    preset = digits() if family == "spatial" else features()
    eager = step_of(preset, TrainingOptions(precision))
    compiled = step_of(preset, TrainingOptions(precision, compile=True))
    for number in range(3):
        batch = batch_of(preset, 8, number)
        expected, terms = (step(batch, [number], number, 1e-3) for step in (eager, compiled))
        for name, term in expected.items():
            assert terms[name].item() == pytest.approx(term.item(), rel=1e-4), (number, name)
    assert len(found) == 2, "later steps, with other numbers, are not compiled again"
    if torch.__version__ >= "2.13":  # what the limits were counted with; earlier ones decompose more
        assert all(count <= limit for count, limit in zip(found, most)), found
