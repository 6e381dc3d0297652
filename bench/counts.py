"""Operators and launches between the encoder heads and the total loss, forward and backward: counted, on any machine."""

from __future__ import annotations

__all__ = ["count"]

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from iiae_fast import kernels
from iiae_fast.bench import elbo, iiae_latents, reconstruction
from iiae_fast.bench.ops import inductor_metrics
from iiae_fast.kernels._registry import record_launches
from iiae_fast.kernels.elbo import backward as elbo_backward
from iiae_fast.kernels.elbo import forward as elbo_forward
from iiae_fast.kernels.iiae_latents import backward as latents_backward
from iiae_fast.kernels.iiae_latents import forward as latents_forward
from iiae_fast.kernels.reconstruction import forward as reconstruction_forward
from iiae_fast.kernels.reconstruction import scale_gradients

_BATCH, _IMAGE = 8, (3, 64, 64)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts dispatched operators that are no views."""

    operators: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += not func.is_view
        return func(*args, **(kwargs or {}))


def count(compiled: bool) -> list[dict[str, Any]]:
    """Rows for the report: ``what``, ``operators``, ``launches``, ``note``.

    Args:
        compiled: Also count the kernels inductor makes of the eager block on this machine (a minute).
    """
    heads, images = _inputs("cpu")
    rows = [
        _row("eager PyTorch", _operators(lambda: _plain_loss(heads, images), heads), None, "a launch or more for each"),
        _row("the package's reference", _operators(lambda: _our_loss(heads, images), heads), None, "plain PyTorch too"),
    ]
    if compiled:
        rows.append(_row("inductor, on this machine", None, _inductor_kernels(heads, images), "kernels it generated"))
    forward, backward = _triton_launches()
    note = f"{forward} forward, {backward} backward; that of reconstruction's backward returns at once"
    return [*rows, _row("Triton", None, forward + backward, note)]


def _row(what: str, operators: int | None, launches: int | None, note: str) -> dict[str, Any]:
    return {"what": what, "operators": operators or "", "launches": launches or "", "note": note}


def _inputs(device: str) -> tuple[iiae_latents.Heads, list[Tensor]]:
    def random(*shape: int) -> Tensor:
        return torch.randn(_BATCH, *shape, device=device).requires_grad_()

    q_x, q_s, q_y, r_x, r_y = random(16), random(64, 4, 4), random(16), random(64, 4, 4), random(64, 4, 4)
    images = [random(*_IMAGE) for _ in range(2)]
    targets = [torch.zeros(_BATCH, *_IMAGE, dtype=torch.uint8, device=device) for _ in range(2)]
    return (q_x, q_s, q_y, r_x, r_y), [*images, *targets]


def _plain_loss(heads: iiae_latents.Heads, images: list[Tensor]) -> Tensor:
    *codes, kl = iiae_latents.plain(heads)
    loss_x, loss_y = (reconstruction.plain(x, target, "laplace", 1.0)[0] for x, target in zip(images[:2], images[2:]))
    return _with_codes(elbo.plain(loss_x, loss_y, kl, torch.tensor(1000)), codes)


def _our_loss(heads: iiae_latents.Heads, images: list[Tensor]) -> Tensor:
    *codes, kl = kernels.iiae_latents(*heads, seed=0, backend="reference")
    losses = kernels.reconstruction((images[0], images[1]), (images[2], images[3]), "laplace", "tanh", backend="reference")
    bound = kernels.elbo(*losses, kl, elbo.WEIGHTS, step=1000, annealing_steps=elbo.STEPS, backend="reference")
    return _with_codes(bound.total, codes)


def _with_codes(total: Tensor, codes: Sequence[Tensor]) -> Tensor:
    """So that gradients flow into the codes too, as the decoders' do."""
    return total + sum((code.sum() for code in codes), torch.zeros(()))


def _operators(loss: Callable[[], Tensor], heads: iiae_latents.Heads) -> int:
    counter: Any = _Counter()  # type: ignore[no-untyped-call]
    with counter:
        torch.autograd.grad(loss(), heads)
    return int(counter.operators)


def _inductor_kernels(heads: iiae_latents.Heads, images: list[Tensor]) -> int:
    with inductor_metrics() as metrics:
        loss = torch.compile(lambda: _plain_loss(heads, images))()
        torch.autograd.grad(loss, heads)
    return int(metrics.generated_kernel_count)


def _triton_launches() -> tuple[int, int]:
    """Forward and backward launches at the published sizes."""
    heads = [torch.empty(8, *shape, device="meta") for shape in ((16,), (256, 8, 8), (16,), (256, 8, 8), (256, 8, 8))]
    seed = torch.empty(1, dtype=torch.int64, device="meta")
    images = [torch.empty(8, 3, 256, 256, device="meta") for _ in range(4)]
    options = ("laplace", "tanh", 1.0, [True, True])
    with record_launches() as forward:
        *codes, kl = latents_forward.launcher(*heads, seed)
        loss, gradient, loss_2, gradient_2 = reconstruction_forward.launcher(*images, *options)
        total, _ = elbo_forward.launcher(loss, loss_2, kl, seed, list(elbo.WEIGHTS), elbo.STEPS)
    with record_launches() as backward:
        elbo_backward.launcher(total, None, seed, 8, list(elbo.WEIGHTS), elbo.STEPS)
        scale_gradients.launcher(gradient, loss, gradient_2, loss_2)
        latents_backward.launcher(*codes, kl, *heads, seed, [True] * 5)
    return len(forward), len(backward)
