"""What a step costs, counted from the model without running it: operations and memory."""

from __future__ import annotations

__all__ = ["Room", "free_memory", "is_out_of_memory", "memory_needed", "step_flops"]

import dataclasses
import functools
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from iiae_fast.config import ModelConfig, Preset, TrainingOptions
from iiae_fast.model import IIAE
from iiae_fast.training.prefetch import DeviceBatch
from iiae_fast.training.step import TrainingStep

_PAIRS = 2  # of the batch that is looked at; BatchNorm of vectors needs two
_SHARE = 0.9  # of the free memory that a suggestion fills
# Convolutions' working memory and what allocators lose, fitted to the resident set of steps on a CPU: at 32×32 to 256×256, in
# either precision, the estimate is 5 % below to 20 % above it, with ``recompute`` at 32×32 25 % below.
_WORKING, _LIBRARIES = 1.4, 40_000_000


@functools.lru_cache(maxsize=16)
def step_flops(config: ModelConfig, pairs: int) -> int:
    """Multiplications and additions of convolutions and dense layers in one step, forward and backward."""
    with torch.device("meta"):
        model = IIAE(config)
        x = torch.empty(_PAIRS, *config.input_shape)
    with FlopCounterMode(display=False) as counter:
        out = model(x, x, sample=False)
        (out.x_logits.sum() + out.y_logits.sum() + out.kl.sum()).backward()
    return int(counter.get_total_flops()) * pairs // _PAIRS


@functools.lru_cache(maxsize=64)
def memory_needed(preset: Preset, options: TrainingOptions, pairs: int) -> int:
    """Bytes that training in batches of so many pairs takes at its fullest moment, about: by a step on tensors without data.

    Args:
        preset: Its model and objective.
        options: With ``precision`` decided.
        pairs: Of a batch, at least 2.
    """
    options = dataclasses.replace(options, compile=False, cuda_graph=False, overlap=False, accumulate=1)
    with FakeTensorMode(), _Alive() as alive:
        model = IIAE(preset.model, backend="reference").train()
        x = torch.empty(pairs, *preset.model.input_shape)
        if x.dim() == 4:
            x = torch.empty(x.shape, dtype=torch.uint8, memory_format=torch.channels_last)
            for parameter in model.parameters():  # Module.to cannot convert tensors without data
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(pairs, dtype=torch.int64) if preset.model.classes else None
        step = TrainingStep(model, preset.objective, preset.optim, options, pairs)
        alive.peak = alive.bytes  # no copies of weights, as there were a moment ago
        step.losses_and_gradients(DeviceBatch(x, x.clone(), labels), [0], 0)
    kept = 8 + (4 if options.ema_decay else 0)  # bytes a weight: moments, moving average
    tensors = alive.peak + kept * sum(parameter.numel() for parameter in model.parameters())
    return _LIBRARIES + int(_WORKING * tensors)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that operators made and nothing has let go of yet."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return result

    def _gone(self, count: int) -> None:
        self.bytes -= count


@dataclass(frozen=True)
class Room:
    """What a run needs, and what there is.

    Attributes:
        preset, options: Of the run.
        batch: Pairs of its batches.
        free: Bytes before the run began, or None where the system does not say.
    """

    preset: Preset
    options: TrainingOptions
    batch: int
    free: int | None

    def needed(self, batch: int | None = None) -> int:
        """Bytes, in batches of the run or of so many pairs."""
        return memory_needed(self.preset, self.options, self.batch if batch is None else batch)

    def __str__(self) -> str:
        """One line for the user."""
        text = f"a step of {self.batch} pairs needs about {_megabytes(self.needed())}"
        if self.free is None:
            return text
        text += f", {_megabytes(self.free)} are free"
        return text if self.needed() <= self.free else f"{text}: too much"

    def advice(self) -> str:
        """What to do when it does not fit, whatever the estimate said."""
        fits = 1 << max(self.batch - 1, 1).bit_length() - 1  # the greatest power of two below the batch
        while fits > 1 and self.free is not None and self.needed(fits) > _SHARE * self.free:
            fits //= 2
        if fits < 2 or fits >= self.batch:
            return "not even two pairs fit: take narrower networks or smaller images"
        return f"try optim.batch_size={fits} (with accumulate={-(-self.batch // fits)} for as many pairs a step), or recompute"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def free_memory(device: torch.device) -> int | None:
    """Bytes free for a run; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
