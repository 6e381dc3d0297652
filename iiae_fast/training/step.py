"""One optimizer step: forward, losses, backward, Adam. Nothing in it waits for the device."""

from __future__ import annotations

__all__ = ["TrainingStep", "learning_rate"]

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from iiae_fast import objectives
from iiae_fast.adam import Adam
from iiae_fast.config import ObjectiveConfig, OptimConfig, TrainingOptions
from iiae_fast.model import IIAE
from iiae_fast.streams import Side
from iiae_fast.training.prefetch import DeviceBatch
from iiae_fast.training.recompute import recompute_activations


class _Counters:
    """What changes from step to step, as tensors of one element on the device, so that a captured step can read it.

    Args:
        device: Of the model.
        batches: Batches of one step.
    """

    def __init__(self, device: torch.device, batches: int) -> None:
        self.seeds = torch.zeros(batches, 1, dtype=torch.int64, device=device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.lr = torch.zeros((), dtype=torch.float32, device=device)

    def set(self, seeds: list[int], step: int, lr: float) -> None:
        """Bring them up to date; the numbers travel as arguments of kernels."""
        for seed, value in zip(self.seeds, seeds):
            seed.fill_(value)
        self.step.fill_(step)
        self.lr.fill_(lr)


def _adam(model: IIAE, optim: OptimConfig, options: TrainingOptions, lr: Tensor | None) -> torch.optim.Adam:
    """Fused Adam over all parameters.

    Args:
        model: On its device.
        optim: Adam's parameters.
        options: Of the run.
        lr: A tensor that a captured step reads, or None.
    """
    betas, device = (optim.beta1, optim.beta2), next(model.parameters()).device
    if device.type == "cpu" and options.precision == "bf16":
        return Adam(model.parameters(), optim.lr, betas, optim.eps)
    rate = optim.lr if lr is None else lr
    return torch.optim.Adam(model.parameters(), rate, betas, optim.eps, fused=True, capturable=options.cuda_graph)


class TrainingStep:
    """The step of one run, computed as its options say.

    With ``precision="fp32"`` and nothing compiled or captured this is, operator for operator, the step written out plainly.

    Args:
        model: On its device, in training mode.
        objective, optim, options: Of the run; ``options.precision`` is not ``"auto"`` any more.
        dataset_size: Number of training pairs.
        on_device: Read seed, step and learning rate from tensors, as a captured step has to, and a compiled one lest it be
            compiled anew for every number. None: where that is so.
    """

    def __init__(
        self,
        model: IIAE,
        objective: ObjectiveConfig,
        optim: OptimConfig,
        options: TrainingOptions,
        dataset_size: int,
        on_device: bool | None = None,
    ) -> None:
        assert options.precision != "auto"
        self.device = next(model.parameters()).device
        self.model, self._objective, self._options, self._dataset_size = model, objective, options, dataset_size
        if on_device is None:
            on_device = options.cuda_graph or options.compile
        self._counters = _Counters(self.device, options.accumulate) if on_device else None
        self.optimizer = _adam(model, optim, options, None if self._counters is None else self._counters.lr)
        self._averages: list[Tensor] = []
        self.side = Side(self.device if options.overlap else None)
        if options.recompute:
            recompute_activations(model)
        self._losses = torch.compile(self._forward, dynamic=False) if options.compile else self._forward
        self._parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def set_averages(self, averages: list[Tensor]) -> None:
        """Tensors that follow the parameters as an exponential moving average, in the order of ``model.parameters()``."""
        self._averages = averages

    def __call__(self, batch: DeviceBatch, seeds: list[int], step: int, lr: float) -> dict[str, Tensor]:
        """Take a step.

        Args:
            batch: ``accumulate`` batches of pairs, one after the other.
            seeds: Of the noise, one for each of them.
            step: Steps already taken.
            lr: Learning rate.

        Returns:
            The loss terms by name, means over the batches; scalars on the device.
        """
        self.set_counters(seeds, step, lr)
        return self.compute(batch, seeds, step)

    def set_counters(self, seeds: list[int], step: int, lr: float) -> None:
        """Say what the next ``compute`` is to read."""
        if self._counters is not None:
            self._counters.set(seeds, step, lr)
        for group in self.optimizer.param_groups:
            if not isinstance(group["lr"], Tensor):  # that is the counters' one
                group["lr"] = lr

    def compute(self, batch: DeviceBatch, seeds: list[int], step: int) -> dict[str, Tensor]:
        """The step without its counters' update; with counters, ``seeds`` and ``step`` are not looked at."""
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.losses_and_gradients(batch, seeds, step)
        self.optimizer.step()
        if self._averages:
            with torch.no_grad():
                torch._foreach_lerp_(self._averages, self._parameters, 1 - self._options.ema_decay)
        return terms

    def losses_and_gradients(self, batch: DeviceBatch, seeds: list[int], step: int) -> dict[str, Tensor]:
        """The forward and backward passes of a step alone; gradients add up in the parameters."""
        count = self._options.accumulate
        found = []
        for number, part in enumerate(_split(batch, count)):
            seed, at = self._numbers(number, seeds, step, part.x.device)
            terms = self._losses(part, seed, at)
            loss = terms["total"]
            (loss if count == 1 else loss / count).backward()  # type: ignore[no-untyped-call]
            found.append({name: term.detach() for name, term in terms.items()})
        return found[0] if count == 1 else _means(found)

    def _numbers(self, number: int, seeds: list[int], step: int, device: torch.device) -> tuple[Tensor, int | Tensor]:
        """Seed and steps taken, from where they are kept."""
        if self._counters is None:
            return torch.full((1,), seeds[number], dtype=torch.int64, device=device), step
        return self._counters.seeds[number], self._counters.step

    def _forward(self, batch: DeviceBatch, seed: Tensor, step: int | Tensor) -> Mapping[str, Tensor]:
        x, y = batch.x, batch.y
        if self.device.type == "cpu":
            # Once for the model and the loss; a GPU's kernels read the bytes.
            x, y = self.model.as_input("x", x), self.model.as_input("y", y)
        with self.autocast():
            out = self.model(x, y, seed=seed, side=self.side)
        return objectives.compute(out, x, y, self._objective, step, batch.labels, self._dataset_size).named()

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision of towers and decoders; kernels and losses compute in fp32 in any case."""
        if self._options.precision == "fp32":
            yield
            return
        with torch.autocast(self.device.type, torch.bfloat16):
            yield


def learning_rate(optim: OptimConfig, options: TrainingOptions, pairs: int, step: int, steps: int) -> float:
    """Of the step that follows ``step`` others of ``steps``.

    Args:
        optim: ``lr`` and its decay.
        options: Scaling and warm-up.
        pairs: Of one step, over all its batches.
        step, steps: See above.
    """
    lr = optim.lr
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[options.lr_scaling]
    if power:
        lr *= (pairs / options.lr_batch) ** power
    if optim.lr_decay == "cosine":
        lr = lr * (1 + math.cos(math.pi * step / steps)) / 2
    if step < options.warmup_steps:
        lr *= (step + 1) / options.warmup_steps
    return lr


def _split(batch: DeviceBatch, count: int) -> list[DeviceBatch]:
    if count == 1:
        return [batch]
    parts = [[None] * count if tensor is None else tensor.chunk(count) for tensor in batch]
    return [DeviceBatch(x, y, labels) for x, y, labels in zip(*parts)]


def _means(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([terms[name].float() for terms in found]).mean() for name in found[0]}
