"""Pairs a second of the training step, beside a plain port of the published code."""

from __future__ import annotations

__all__ = ["cases", "copy_state", "give_weights", "plain_adam", "plain_model"]

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from iiae_fast import objectives, presets
from iiae_fast.bench.baselines.port import PlainIIAE, plain_losses
from iiae_fast.bench.ops import compiled
from iiae_fast.bench.registry import Case, Contestant, Ready, Settings, Work
from iiae_fast.config import ModelConfig, Preset, TrainingOptions
from iiae_fast.model import IIAE
from iiae_fast.training import setup
from iiae_fast.training.costs import step_flops
from iiae_fast.training.graph import GraphedStep
from iiae_fast.training.prefetch import DeviceBatch
from iiae_fast.training.run import noise_seed
from iiae_fast.training.step import TrainingStep

_TERMS = ("rec_x", "rec_y", "kl_x", "kl_y", "kl_s", "kl_s_rx", "kl_s_ry", "total")
_PROBE = 2  # pairs of a batch that the check looks at
_TOLERANCE = {"cpu": 1e-4, "cuda": 1e-2}  # relative, of loss terms; TF32 convolutions are PyTorch's default on a GPU
_BF16_TOLERANCE = 3e-2  # of loss terms and of the gradient's norm, on two pairs


def cases(settings: Settings) -> Iterator[Case]:
    """MNIST-CDCB as published and at the size for small machines, in several batches; on a GPU in larger ones too."""
    sizes = [(16, 4)] if settings.toy else [(256, 8), (32, 128)]
    if not settings.quick:
        sizes += [(32, 8), (32, 32), (32, 512)]
    if settings.device == "cuda" and not settings.toy:
        sizes += [(256, 64)] if settings.quick else [(256, 32), (256, 128), (32, 1024)]
    for image_size, batch in sizes:
        preset = presets.get("mnist-cdcb", image_size=image_size)
        yield _case(settings, replace(preset, optim=replace(preset.optim, batch_size=batch)), batch)


def plain_model(config: ModelConfig) -> PlainIIAE:
    """The port at the widths of a configuration of the spatial family."""
    layers, w = config.downsamplings, config.n_shared
    widths = [w, 2 * w, 4 * w, 8 * w, 8 * w][-layers:]
    ratio = config.n_exclusive / w
    exclusive = [int(width * ratio) for width in widths[:-1]]
    d = config.n_decoder
    decoder = [8 * d, 4 * d, 2 * d, d][: layers - 1]
    return PlainIIAE(widths, exclusive, decoder, config.image_size, config.channels, config.exclusive_dim, config.dropout)


def give_weights(source: IIAE, target: PlainIIAE) -> None:
    """Copy all parameters; both models list theirs in the same order."""
    with torch.no_grad():
        for theirs, ours in zip(target.parameters(), source.parameters(), strict=True):
            theirs.copy_(ours)


def copy_state(source: PlainIIAE, target: IIAE) -> None:
    """Copy parameters and BatchNorm's statistics, which both models list in the same order."""
    with torch.no_grad():
        for theirs, ours in zip(source.parameters(), target.parameters(), strict=True):
            ours.copy_(theirs)
        for kept, own in zip(source.buffers(), target.buffers(), strict=True):
            own.copy_(kept)


def _case(settings: Settings, preset: Preset, batch: int) -> Case:
    device = settings.device
    torch.manual_seed(settings.seed)
    initial = IIAE(preset.model)
    # The trainer's batches are bytes in channels_last order; a port takes what data loaders give.
    bytes_x, bytes_y = (
        torch.randint(256, (batch, *preset.model.input_shape), dtype=torch.uint8)
        .to(device)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    x, y = ((images.float() / 127.5 - 1).contiguous() for images in (bytes_x, bytes_y))
    expected = _expected(initial, preset, x, y)

    def check(found: dict[str, float], allowed: float = _TOLERANCE[device]) -> str:
        for name, right in expected.items():
            error = abs(found[name] - right) / abs(right)
            if not error <= allowed:
                return f"{name} is {found[name]:.7g}, expected {right:.7g}; accepted is a relative error of {allowed:g}"
        return ""

    def ours(wanted: TrainingOptions) -> Ready:
        options = setup.settle_options(wanted, preset, torch.device(device), None)
        model = _copy(initial).to(device).train()
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        step = TrainingStep(model, preset.objective, preset.optim, options, dataset_size=batch)
        take = GraphedStep(step) if options.cuda_graph else step
        pairs, steps = DeviceBatch(bytes_x, bytes_y, None), itertools.count()

        def call() -> None:
            number = next(steps)
            take(pairs, [noise_seed(preset.optim.seed, number)], number, preset.optim.lr)

        def probe() -> dict[str, float]:
            few_x, few_y = bytes_x[:_PROBE], bytes_y[:_PROBE]
            with _without_dropout(model):
                with step.autocast():
                    out = model(few_x, few_y, sample=False, side=step.side)
                terms = objectives.iiae(out, few_x, few_y, preset.objective, step=1)
            return _as_numbers(terms.named(), model)

        return Ready(call, probe)

    def entrant(name: str, **options: Any) -> Contestant:
        wanted = TrainingOptions(**options)
        low = setup.settle_options(wanted, preset, torch.device(device), None).precision == "bf16"
        return Contestant(name, lambda: ours(wanted), partial(check, allowed=_BF16_TOLERANCE) if low else None)

    def plain(compile: bool) -> Ready:
        model = plain_model(preset.model).to(device).train()
        give_weights(initial, model)
        optimizer = plain_adam(model, preset)
        steps = itertools.count()

        def losses(annealing: Tensor) -> tuple[Tensor, ...]:
            return tuple(plain_losses(model(x, y), x, y, preset.objective, annealing).values())

        function: Callable[[Tensor], tuple[Tensor, ...]] = compiled(losses, settings) if compile else losses

        def call() -> None:
            annealing = objectives.kl_annealing(next(steps), preset.objective.kl_annealing_steps)
            *_, total = function(torch.tensor(annealing, device=device))
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return Ready(call, lambda: _probe_plain(model, preset, x, y))

    contestants = [entrant("iiae_fast"), Contestant("plain", lambda: plain(False))]
    if device == "cuda":
        contestants.append(entrant("iiae_fast graph", cuda_graph=True))
        contestants.append(entrant("iiae_fast overlap", overlap=True))
        contestants.append(entrant("iiae_fast graph overlap", cuda_graph=True, overlap=True))
    if device == "cuda" or not settings.quick:
        contestants += [entrant("iiae_fast fp32", precision="fp32"), entrant("iiae_fast compiled", compile=True)]
        contestants.append(Contestant("plain compiled", lambda: plain(True)))
    size = preset.model.image_size
    low = contestants[0].check is not None
    matmul = "bfloat16" if device == "cuda" or low else "float32"
    work = Work(flops=step_flops(preset.model, batch), items=batch, unit="pairs", matmul=matmul)
    name = f"one step, {size}×{size}, batch {batch}"
    parameters: dict[str, Any] = {"preset": preset.name, "image_size": size, "batch": batch}
    return Case(name, contestants, check, work, parameters, cold=False, replay=False)


def _copy(model: IIAE) -> IIAE:
    copy = IIAE(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def plain_adam(model: torch.nn.Module, preset: Preset) -> torch.optim.Adam:
    """Adam as PyTorch makes it."""
    optim = preset.optim
    return torch.optim.Adam(model.parameters(), optim.lr, (optim.beta1, optim.beta2), optim.eps)


class _without_dropout:
    """Training mode, as far as BatchNorm is concerned; its running statistics, which the check moves, play no part in it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]

    def __enter__(self) -> None:
        for module in self._dropouts:
            module.eval()

    def __exit__(self, *_: object) -> None:
        for module in self._dropouts:
            module.train()


def _probe_plain(model: PlainIIAE, preset: Preset, x: Tensor, y: Tensor) -> dict[str, float]:
    annealing = objectives.kl_annealing(1, preset.objective.kl_annealing_steps)
    with _without_dropout(model):
        out = model(x[:_PROBE], y[:_PROBE], sample=False)
        terms = plain_losses(out, x[:_PROBE], y[:_PROBE], preset.objective, annealing)
    return _as_numbers(terms, model)


def _as_numbers(terms: dict[str, Tensor], model: torch.nn.Module) -> dict[str, float]:
    """The terms, and the norm of the total's gradient."""
    gradients = torch.autograd.grad(terms["total"], list(model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return {**{name: terms[name].item() for name in _TERMS}, "gradient norm": norm.item()}


def _expected(initial: IIAE, preset: Preset, x: Tensor, y: Tensor) -> dict[str, float]:
    """The port in fp64."""
    model = plain_model(preset.model)
    give_weights(initial, model)
    return _probe_plain(model.double().train(), preset, x.cpu().double(), y.cpu().double())
