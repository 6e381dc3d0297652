"""Inputs, tolerances and comparisons that the kernel tests share.

The same tests run in Triton's interpreter on the CPU, and on a GPU with ``IIAE_TEST_GPU=1``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import trace_rules

DEVICE = "cuda" if os.environ.get("IIAE_TEST_GPU") == "1" else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# What a kernel's largest error may exceed twice the reference's by, relative to the largest value. One table for all tests.
EPSILON = {torch.float64: 1e-13, torch.float32: 5e-7, torch.float16: 1e-4, torch.bfloat16: 1e-3}
NOISE = 5e-7  # in place of a smaller one, where fp32 noise enters: two libraries' logarithms and cosines differ in the last bit
LAYOUTS = ["contiguous", "channels_last", "every_other_channel", "rows_last", "expanded", "windowed"]


def lay(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers in another place: every way in which a head or an image may lie in memory."""
    if layout == "channels_last":
        return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.t().contiguous().t()
    if layout == "every_other_channel":
        wide = tensor.new_zeros((tensor.shape[0], 2 * tensor.shape[1], *tensor.shape[2:]))
        wide[:, ::2] = tensor
        return wide[:, ::2]
    if layout == "rows_last":  # the batch varies fastest
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "expanded":  # every sample is the first one
        return tensor[:1].expand_as(tensor)
    if layout == "windowed":  # a window of larger maps, whose rows and columns do not merge
        larger = tensor.new_zeros((*tensor.shape[:-1], tensor.shape[-1] + 3))
        larger[..., 1:-2] = tensor
        return larger[..., 1:-2]
    return tensor


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a sum in which every output element has a weight of its own."""
    weighted = []
    for index, output in enumerate(outputs):
        weight = torch.linspace(-1, 1, max(output.numel(), 1), dtype=torch.float64, device=output.device)[: output.numel()]
        weighted.append((output.double() * (weight + 0.1 * index).reshape(output.shape)).sum())
    return list(torch.autograd.grad(torch.stack(weighted).sum(), inputs))


def compare(run: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], least: float = 0.0) -> None:
    """Outputs and gradients of ``run(*inputs, backend=...)``: |ours − fp64| ≤ 2 · |reference − fp64| + ε."""
    results = {}
    for name, backend in (("ours", "triton"), ("reference", "reference"), ("exact", "reference")):
        given = [value.detach() for value in inputs]
        if name == "exact":
            given = [value.double() for value in given]
        leaves = [value.requires_grad_() for value in given]
        outputs = list(run(*leaves, backend=backend))
        results[name] = [*outputs, *gradients(outputs, leaves)]
    epsilon = max(EPSILON[inputs[0].dtype], least)
    for index, (ours, reference, exact) in enumerate(zip(*results.values())):
        assert (ours.dtype, ours.shape) == (reference.dtype, reference.shape)
        if not ours.numel():
            continue
        error, allowed = (ours.double() - exact).abs(), (reference.double() - exact).abs().max()
        bound = 2 * allowed + epsilon * exact.abs().max()
        assert torch.isfinite(bound)
        worst = error.argmax()
        assert error.max() <= bound, (
            f"result {index} of shape {tuple(ours.shape)}: {ours.flatten()[worst].item()} at element {worst.item()} should be "
            f"{exact.flatten()[worst].item()}; error {error.max().item():.3g}, allowed {bound.item():.3g}"
        )


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what ``torch.empty`` and its kin return with NaN, so that an element nobody writes is seen."""

    # Dynamo looks up torch's functions once and for all when it first traces: that must not find the poisoned ones.
    trace_rules.get_torch_obj_rule_map()

    def poisoned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def fill(*arguments: Any, **options: Any) -> Tensor:
            tensor = function(*arguments, **options)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return fill

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def make_heads(
    batch: int,
    exclusive: tuple[int, ...] = (4,),
    shared: tuple[int, ...] = (3, 5, 2),
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
) -> list[Tensor]:
    """q_x, q_s, q_y, r_x, r_y with log-variances on both sides of both clamps. The given shapes are those of the codes."""
    generator = torch.Generator().manual_seed(3)
    heads = []
    for index, code in enumerate((exclusive, shared, exclusive, shared, shared)):
        mean = torch.randn(batch, *code, generator=generator)
        logvar = 2 * torch.randn(batch, *code, generator=generator)
        far = torch.rand(logvar.shape, generator=generator) < 0.1
        logvar = torch.where(far, 10 * logvar.sign() * (1.6 + 0.1 * index), logvar)
        if dtype == torch.float16:
            logvar = logvar.clamp(-3, 3)  # ratios of more different variances overflow fp16 gradients
        heads.append(lay(torch.cat([mean, logvar], 1).to(DEVICE, dtype), layout))
    return heads
