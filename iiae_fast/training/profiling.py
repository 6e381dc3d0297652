"""Where the time of a training step goes, and what the step could take at least."""

from __future__ import annotations

__all__ = ["PARTS", "Profile", "count_operators", "profile"]

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile
from torch.utils._python_dispatch import TorchDispatchMode

from iiae_fast import data
from iiae_fast.config import Preset, TrainingOptions, whole
from iiae_fast.model import IIAE
from iiae_fast.retrieval.inputs import MAX_THREADS
from iiae_fast.training import setup
from iiae_fast.training.allocator import keep_freed_memory
from iiae_fast.training.costs import step_flops
from iiae_fast.training.graph import GraphedStep
from iiae_fast.training.prefetch import DeviceBatch, prefetch
from iiae_fast.training.resident import make_resident
from iiae_fast.training.step import TrainingStep

PARTS = ("data", "towers", "kernels", "decoders", "optimizer", "compiled", "other", "host")
"""Of a step. ``kernels`` is everything between heads and loss; a compiled step is one part, as it fuses across them. ``other``
gathers gradients, ``host`` is Python between operators."""

_WARM_UP = 4  # steps; a captured step is captured in the last
_MARK = "iiae_fast/"
_BACKWARD = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class Profile:
    """What ``profile`` found; times are seconds a step.

    Attributes:
        steps: Profiled.
        pairs: Of a step.
        options: With ``precision`` decided.
        seconds: Of a step without the profiler.
        parts: Share of the profiled time by the names of ``PARTS``, forward and backward together.
        operators: Operators a step dispatches, views left out; 0 for a captured step.
        bytes: Read and written by them, were nothing kept in caches.
        launches: CUDA kernels or graphs that the host launches for a step.
        flops: Counted of convolutions and dense layers.
        trace: The trace file, for chrome://tracing or ui.perfetto.dev.
    """

    steps: int
    pairs: int
    options: TrainingOptions
    seconds: float
    parts: dict[str, float]
    operators: int
    bytes: int
    launches: float
    flops: int
    trace: Path

    @property
    def achieved(self) -> float:
        """Counted operations a second."""
        return self.flops / self.seconds


def profile(
    preset: Preset,
    steps: int,
    trace: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    backend: str = "auto",
    options: TrainingOptions | None = None,
) -> Profile:
    """Take the first steps of a run under PyTorch's profiler. Nothing is kept of them but the trace.

    Args:
        preset: Of the run.
        steps: To profile, after a few to warm up and as many again that are timed without the profiler.
        trace: File to write.
        device, threads, backend, options: See ``train``.

    Raises:
        ConfigError, DataError: See ``train``.
    """
    steps = whole("profile", steps, 1)
    target = setup.pick_device(device)
    setup.check_backend(backend, target)
    options = setup.settle_options(options or TrainingOptions(), preset, target, None)
    splits = data.load(preset.data)
    setup.check_data(preset, splits, None, options)
    threads = torch.get_num_threads() if threads is None else whole("threads", threads, 1, MAX_THREADS)
    devices = [target] if target.type == "cuda" else []
    with (
        setup.torch_threads(threads),
        keep_freed_memory(target),
        setup.determinism(options.deterministic, target),
        torch.random.fork_rng(devices),
    ):
        model = setup.make_model(preset, options, target, backend)
        step = TrainingStep(model, preset.objective, preset.optim, options, len(splits.train))
        sampler = data.sampler_for(splits.train, preset.optim, preset.data)
        plan = setup.plan(sampler, options.accumulate, epochs=2**31)
        resident = make_resident(splits.train, target, options.resident)
        batches = prefetch(splits.train, plan, target) if resident is None else resident.batches(plan)
        _mark(model)
        with closing(batches):
            return _measure(step, preset, options, batches, steps, Path(trace))


def _mark(model: IIAE) -> None:
    """Let a model's towers and decoders show by name in a profile."""
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            continue
        part = "decoders" if name.startswith("decoder") else "towers"
        open_marks: list[Any] = []

        def enter(*_: Any, part: str = part, marks: list[Any] = open_marks) -> None:
            mark = record_function(_MARK + part)
            mark.__enter__()  # type: ignore[no-untyped-call]
            marks.append(mark)

        def leave(*_: Any, marks: list[Any] = open_marks) -> None:
            marks.pop().__exit__(None, None, None)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)


def _measure(
    step: TrainingStep, preset: Preset, options: TrainingOptions, batches: Iterator[DeviceBatch], steps: int, trace: Path
) -> Profile:
    take = GraphedStep(step) if options.cuda_graph else step
    cuda = step.device.type == "cuda"
    taken = 0

    def once() -> DeviceBatch:
        nonlocal taken
        with record_function(_MARK + "data"):
            batch = next(batches)
        with record_function(_MARK + "kernels"):  # what is not marked within is that
            take(batch, [taken * options.accumulate + number for number in range(options.accumulate)], taken, preset.optim.lr)
        taken += 1
        return batch

    for _ in range(_WARM_UP):
        batch = once()
    _wait(cuda)
    start = time.perf_counter()
    for _ in range(steps):
        once()
    _wait(cuda)
    seconds = (time.perf_counter() - start) / steps
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with torch_profile(activities=activities) as record:
        for _ in range(steps):
            once()
        _wait(cuda)
    trace.parent.mkdir(parents=True, exist_ok=True)
    record.export_chrome_trace(str(trace))
    events = record.events()
    assert events is not None
    launches = sum("LaunchKernel" in event.name or "GraphLaunch" in event.name for event in events) / steps
    operators, moved = (0, 0) if options.cuda_graph else count_operators(lambda: take(batch, [0] * options.accumulate, 0, 0.0))
    pairs = len(batch.x)
    flops = step_flops(preset.model, pairs)
    return Profile(steps, pairs, options, seconds, _shares(list(events), cuda), operators, moved, launches, flops, trace)


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def _shares(events: list[Any], cuda: bool) -> dict[str, float]:
    """Share of each part. A backward operator counts for the part of the forward operator that it belongs to."""
    of_sequence = {
        event.sequence_nr: _part(event, {}) for event in events if event.sequence_nr >= 0 and not _in_backward(event)
    }
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        waits = event.name.startswith(_MARK) and event.name != _MARK + "data"
        part = "host" if waits else _part(event, of_sequence)
        seconds[part] += event.self_device_time_total if cuda else event.self_cpu_time_total
    total = sum(seconds.values()) or 1.0
    return {name: seconds[name] / total for name in PARTS if seconds[name]}


def _part(event: Any, of_sequence: dict[int, str]) -> str:
    """What the innermost of an event's callers belongs to."""
    while event is not None:
        if event.name.startswith(_MARK):
            return str(event.name.removeprefix(_MARK))
        if event.name.startswith("Optimizer."):
            return "optimizer"
        if "Torch-Compiled Region" in event.name or "CompiledFunction" in event.name:
            return "compiled"
        if event.name.startswith(_BACKWARD):
            return of_sequence.get(event.sequence_nr, "other")
        event = event.cpu_parent
    return "other"


def _in_backward(event: Any) -> bool:
    while event is not None:
        if event.name.startswith(_BACKWARD):
            return True
        event = event.cpu_parent
    return False


def count_operators(call: Any) -> tuple[int, int]:
    """Operators that a call dispatches, without views, and the bytes of their tensors."""
    with _counting() as counter:
        call()
    return counter.operators, counter.bytes


@contextmanager
def _counting() -> Iterator[Any]:
    counter = _Counter()  # type: ignore[no-untyped-call]
    with counter:
        yield counter


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    operators: int = 0
    bytes: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operators += 1
            leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
            self.bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        return result
