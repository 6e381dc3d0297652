"""Bytes that each fused operation must move, and does move, beside eager PyTorch and the kernels that inductor would emit.

    python -m iiae_fast.bench.traffic [--quick] [--json PATH]

Counted, not measured, so any machine will do. ``must``: each pass reads every input once and writes every output once. Ours:
the memory sectors of 32 bytes that each block access of the kernels touches, recorded while they run in Triton's interpreter,
no cache assumed. Eager: inputs and outputs of every dispatched operator. Inductor: its own count of what its fused kernels read
and write. All forward with backward, the incoming gradient of a loss being 1.
"""

from __future__ import annotations

__all__ = ["Row", "count", "counted_accesses", "main"]

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from iiae_fast import kernels
from iiae_fast.bench import elbo, iiae_latents, reconstruction, reparameterize
from iiae_fast.bench.ops import dtype_name, inductor_metrics
from iiae_fast.kernels._registry import INTERPRETED

SECTOR = 32  # bytes: the least that a GPU's memory system moves


@dataclass(frozen=True)
class Row:
    """Bytes per element of one operation; ``inductor`` is None where it was not asked."""

    operation: str
    per: str
    elements: int
    must: float
    ours: float
    eager: float
    inductor: float | None


@dataclass(frozen=True)
class _Case:
    """One operation, ours and plain, on the same inputs, some of which are differentiated with given incoming gradients.

    ``rereads`` says that backward cannot do without reading the inputs again.
    """

    operation: str
    per: str
    elements: int
    ours: Callable[[], tuple[Tensor, ...]]
    plain: Callable[[], tuple[Tensor, ...]]
    inputs: Sequence[Tensor]
    gradients: Sequence[Tensor]
    constant: Sequence[Tensor] = ()
    rereads: bool = False

    def run(self, forward: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Outputs and gradients."""
        outputs = forward()
        return (*outputs, *torch.autograd.grad(outputs, self.inputs, self.gradients))


class _Accesses:
    """Bytes of the sectors that loads and stores touched."""

    bytes = 0

    def add(self, pointers: Any, mask: Any) -> None:
        """One block access: addresses, and which of them are used."""
        size = pointers.get_element_ty().primitive_bitwidth // 8
        used = pointers.data[mask.data].ravel()
        first, last = used // SECTOR, (used + size - 1) // SECTOR
        self.bytes += SECTOR * len(set(first.tolist()) | set(last.tolist()))


@contextmanager
def counted_accesses() -> Iterator[_Accesses]:
    """Count the memory accesses of the kernels that the interpreter runs meanwhile."""
    from triton.runtime.interpreter import InterpreterBuilder

    accesses = _Accesses()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        accesses.add(pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        accesses.add(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = counted_load, counted_store
    try:
        yield accesses
    finally:
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the inputs and outputs of dispatched operators that are no views and no allocations."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func._schema.name:
            self.bytes += sum(map(_size, _tensors((args, kwargs, result))))
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _size(tensor: Tensor) -> int:
    """Bytes, an expanded dimension counted once."""
    elements = torch.Size(size for size, stride in zip(tensor.shape, tensor.stride()) if stride).numel()
    return elements * tensor.element_size()


def _cases(quick: bool) -> Iterator[_Case]:
    """The published sizes, a sample or two of them: bytes per element do not depend on the batch."""
    pairs = [(torch.bfloat16, torch.uint8, "contiguous")]
    if not quick:
        pairs += [(torch.bfloat16, torch.uint8, "channels_last"), (torch.float32, torch.float32, "contiguous")]
    for dtype, target_dtype, layout in pairs:
        yield _reconstruction(dtype, target_dtype, layout)
    for dtype in (torch.bfloat16,) if quick else (torch.bfloat16, torch.float32):
        yield _latents(dtype)
    if not quick:
        yield _reparameterize()
    yield _elbo()


def _reconstruction(dtype: torch.dtype, target_dtype: torch.dtype, layout: str) -> _Case:
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    prediction = torch.randn(1, 3, 256, 256).to(dtype).contiguous(memory_format=order).requires_grad_()
    target = torch.randint(256, prediction.shape, dtype=torch.uint8).to(target_dtype).contiguous(memory_format=order)
    return _Case(
        f"reconstruction, {dtype_name(dtype)} prediction, {dtype_name(target_dtype)} target, {layout}",
        "pixel value",
        prediction.numel(),
        lambda: (kernels.reconstruction(prediction, target, "laplace", "tanh", 1e-3, backend="triton"),),
        lambda: reconstruction.plain(prediction, target, "laplace", 1e-3),
        [prediction],
        [torch.ones(1)],
        [target],
    )


def _latents(dtype: torch.dtype) -> _Case:
    shapes = ((16,), (256, 8, 8), (16,), (256, 8, 8), (256, 8, 8))
    q_x, q_s, q_y, r_x, r_y = heads = tuple(torch.randn(2, *shape).to(dtype).requires_grad_() for shape in shapes)
    codes = [torch.randn_like(head[:, : head.shape[1] // 2]).contiguous() for head in heads[:3]]
    seed = torch.tensor([1])
    return _Case(
        f"iiae_latents, {dtype_name(dtype)}",
        "shared element",
        q_s.numel() // 2,
        lambda: tuple(kernels.iiae_latents(q_x, q_s, q_y, r_x, r_y, seed=seed, backend="triton")),
        lambda: iiae_latents.plain((q_x, q_s, q_y, r_x, r_y)),
        heads,
        [*codes, torch.rand(5, 2)],
        [seed],
        rereads=True,
    )


def _reparameterize() -> _Case:
    q, prior = (torch.randn(2, 256, 8, 8).bfloat16().requires_grad_() for _ in range(2))
    seed = torch.tensor([1])
    return _Case(
        "reparameterize, bf16, KL to another head",
        "element",
        q.numel() // 2,
        lambda: kernels.reparameterize(q, prior, seed=seed, backend="triton"),
        lambda: reparameterize.plain(q, prior),
        [q, prior],
        [torch.randn(2, 128, 8, 8).bfloat16(), torch.rand(2)],
        [seed],
        rereads=True,
    )


def _elbo() -> _Case:
    loss_x, loss_y, kl = (torch.rand(shape).requires_grad_() for shape in ((512,), (512,), (5, 512)))
    step = torch.tensor(1000)
    return _Case(
        "elbo, fp32, batch 512",
        "pair",
        512,
        lambda: (
            kernels.elbo(loss_x, loss_y, kl, elbo.WEIGHTS, step=step, annealing_steps=elbo.STEPS, backend="triton").total,
        ),
        lambda: (elbo.plain(loss_x, loss_y, kl, step),),
        [loss_x, loss_y, kl],
        [torch.ones(())],
        [step],
    )


def count(quick: bool = False) -> list[Row]:
    """The table.

    Args:
        quick: Fewer operations, and no inductor (which compiles for half a minute).

    Raises:
        RuntimeError: The kernels of this process are not interpreted.
    """
    if not INTERPRETED:
        raise RuntimeError("traffic is counted in Triton's interpreter: set TRITON_INTERPRET=1 before Python starts")
    torch.manual_seed(0)
    return [_row(case, quick) for case in _cases(quick)]


def _row(case: _Case, quick: bool) -> Row:
    with counted_accesses() as accesses:
        results = case.run(case.ours)
    # The incoming gradient of a loss is the constant 1; reading it is no duty.
    incoming = [gradient for gradient in case.gradients if gradient.numel() > 1]
    inputs = (*case.inputs, *case.constant) * (2 if case.rereads else 1)
    must = sum(map(_size, (*inputs, *incoming, *results)))
    operators: Any = _Operators()  # type: ignore[no-untyped-call]
    with operators:
        case.run(case.plain)
    counts = (must, accesses.bytes, operators.bytes, None if quick else _inductor(case))
    per_element = [None if value is None else value / case.elements for value in counts]
    return Row(case.operation, case.per, case.elements, *per_element)  # type: ignore[arg-type]


def _inductor(case: _Case) -> int:
    """What inductor counts for its forward and backward kernels, fused as on this machine."""
    from torch._inductor import compile_fx

    log = compile_fx.inductor_metrics_log  # it counts only when it would log
    level, propagates = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        with inductor_metrics() as metrics:
            case.run(torch.compile(case.plain, fullgraph=True, dynamic=False))
    finally:
        log.setLevel(level)
        log.propagate = propagates
    return int(metrics.num_bytes_accessed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m iiae_fast.bench.traffic", description="Bytes moved, counted.")
    parser.add_argument("--quick", action="store_true", help="fewer operations, without inductor")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args(arguments)
    if not INTERPRETED:
        # The kernels of this process are already declared as compiled ones.
        command = [sys.executable, "-m", "iiae_fast.bench.traffic", *(sys.argv[1:] if arguments is None else arguments)]
        os.execve(sys.executable, command, {**os.environ, "TRITON_INTERPRET": "1"})
    rows = count(options.quick)
    width = max(len(row.operation) for row in rows)
    print(f"{'bytes per element':{width}}    must    ours   eager  inductor")
    for row in rows:
        inductor = "" if row.inductor is None else f"{row.inductor:.2f}"
        print(f"{row.operation:{width}}  {row.must:6.2f}  {row.ours:6.2f}  {row.eager:6.2f}  {inductor:>8}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
