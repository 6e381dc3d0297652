"""The whole step as one CUDA graph: the host launches it with a few calls, however many kernels it has."""

from __future__ import annotations

__all__ = ["GraphedStep"]

import torch
from torch import Tensor

from iiae_fast.training.prefetch import DeviceBatch
from iiae_fast.training.step import TrainingStep

_WARM_UP = 3  # steps before the capture: libraries pick their algorithms, and Adam makes its moments


class GraphedStep:
    """A ``TrainingStep`` that is captured at its fourth call and replayed from then on; the first three are ordinary steps.

    Args:
        step: With ``cuda_graph``; on a CUDA device. Batches of all calls have one shape.
    """

    def __init__(self, step: TrainingStep) -> None:
        self._step = step
        self._stream = torch.cuda.Stream(step.device)  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: DeviceBatch | None = None
        self._terms: dict[str, Tensor] = {}
        self._calls = 0

    def __call__(self, batch: DeviceBatch, seeds: list[int], step: int, lr: float) -> dict[str, Tensor]:
        """See ``TrainingStep``. The terms are overwritten by the next call."""
        inputs = self._load(batch)
        self._step.set_counters(seeds, step, lr)
        self._calls += 1
        if self._calls <= _WARM_UP:
            current = torch.cuda.current_stream(self._step.device)
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                self._terms = self._step.compute(inputs, seeds, step)
            current.wait_stream(self._stream)
            return self._terms
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # The thread that fetches batches goes on copying meanwhile, hence "thread_local".
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self._terms = self._step.compute(inputs, seeds, step)
        self._graph.replay()
        return self._terms

    def _load(self, batch: DeviceBatch) -> DeviceBatch:
        """The batch, where the graph reads it."""
        if self._inputs is None:
            self._inputs = DeviceBatch(*(None if tensor is None else tensor.clone() for tensor in batch))  # type: ignore[arg-type]
            return self._inputs
        for target, source in zip(self._inputs, batch):
            if target is not None and source is not None:
                target.copy_(source)
        return self._inputs
