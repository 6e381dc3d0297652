"""What the benchmarks of single operations share: contestants with and without backward, and the comparison with fp64."""

from __future__ import annotations

__all__ = ["Operation", "compiled", "contestants", "dtype_name", "inductor_metrics", "noise_problem", "relative_error", "wrong"]

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from iiae_fast.bench.registry import Call, Contestant, Settings, Unavailable

# Relative to the fp64 result's norm, of outputs and gradients as a whole. Twice the rounding of one number of that dtype, or,
# for fp32, of a sum of many.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@dataclass(frozen=True)
class Operation:
    """One operation on given inputs.

    Attributes:
        ours: ``(backend) -> outputs``.
        plain: The same in plain PyTorch, as one would write it without this package.
        inputs: What gradients are taken of.
        gradients: Incoming gradients, one for each output; with ``()`` only forward is timed, without a graph.
    """

    ours: Callable[[str], tuple[Tensor, ...]]
    plain: Callable[[], tuple[Tensor, ...]]
    inputs: Sequence[Tensor] = ()
    gradients: Sequence[Tensor] = ()


def contestants(operation: Operation, settings: Settings, compile: bool = True, auto: bool = False) -> list[Contestant]:
    """The Triton kernels, the package's reference, eager PyTorch, and, where asked, what inductor makes of that.

    With ``auto`` what the package takes by itself comes first, where that is neither of the former.
    """

    def triton() -> Call:
        if settings.device == "cpu":
            raise Unavailable("Triton kernels need a GPU")
        return _call(operation, lambda: operation.ours("triton"))

    entrants = [
        Contestant("triton", triton),
        Contestant("reference", lambda: _call(operation, lambda: operation.ours("reference"))),
        Contestant("eager", lambda: _call(operation, operation.plain)),
    ]
    if auto:
        entrants.insert(0, Contestant("iiae_fast", lambda: _call(operation, lambda: operation.ours("auto"))))
    if compile:
        entrants.append(Contestant("torch.compile", lambda: _call(operation, compiled(operation.plain, settings))))
    return entrants


def compiled(function: Callable[..., tuple[Tensor, ...]], settings: Settings) -> Callable[..., tuple[Tensor, ...]]:
    """The function under torch.compile.

    Raises:
        Unavailable: Inductor cannot make code here.
    """
    if settings.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise Unavailable("torch.compile on the CPU needs a C++ compiler (g++ or clang++)")
    torch._dynamo.reset()
    result: Callable[..., tuple[Tensor, ...]] = torch.compile(function, fullgraph=True, dynamic=False)
    return result


@contextmanager
def inductor_metrics() -> Iterator[ModuleType]:
    """Inductor's own counters, from zero, of what is compiled meanwhile; caches are off, for what they hold is not counted."""
    from torch._inductor import config, metrics

    torch._dynamo.reset()
    metrics.reset()
    with config.patch(force_disable_caches=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that caches are off
        yield metrics


def _call(operation: Operation, forward: Callable[[], tuple[Tensor, ...]]) -> Call:
    """Outputs, and gradients where wanted, as one tuple."""

    def forward_only() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return forward()

    def forward_and_backward() -> tuple[Tensor, ...]:
        outputs = forward()
        gradients = torch.autograd.grad(outputs, operation.inputs, operation.gradients)
        return (*(output.detach() for output in outputs), *gradients)

    return forward_and_backward if operation.gradients else forward_only


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ in fp64; infinite where anything is not finite."""
    difference = (found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)
    return difference.item() if torch.isfinite(difference) else float("inf")


def wrong(
    found: Sequence[Tensor], expected: Sequence[Tensor], names: Sequence[str], dtype: torch.dtype, factor: float = 1.0
) -> str:
    """The first that is off by more than the dtype's tolerance times ``factor``; ``""`` when none is."""
    if len(found) != len(expected):
        return f"{len(found)} results, expected {len(expected)}"
    for name, ours, right in zip(names, found, expected):
        if ours.shape != right.shape:
            return f"{name} has shape {tuple(ours.shape)}, expected {tuple(right.shape)}"
        error, allowed = relative_error(ours, right), factor * TOLERANCES[dtype]
        if error > allowed:
            return f"{name} is off by {error:.2g} relative to fp64; accepted is {allowed:g}"
    return ""


def noise_problem(noise: Sequence[Tensor]) -> str:
    """What is wrong with draws that should be standard normal; five standard errors are allowed."""
    draws = torch.cat([one.flatten() for one in noise]).double()
    count = draws.numel()
    if not torch.isfinite(draws).all():
        return "the noise is not finite"
    mean, second = draws.mean().item(), draws.square().mean().item()
    if abs(mean) > 5 / count**0.5 + 1e-3 or abs(second - 1) > 5 * (2 / count) ** 0.5 + 1e-3:
        return f"the noise is not standard normal: mean {mean:.3g}, mean square {second:.4g} of {count} draws"
    return ""


def dtype_name(dtype: torch.dtype) -> str:
    """``"bf16"``, ``"fp32"``, …"""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8"}
    return names[dtype]
