"""What a step costs, counted from the model without running it: operations and memory."""

from __future__ import annotations

__all__ = ["Memory", "Room", "is_out_of_memory", "memory_needed", "step_flops"]

import functools
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from iiae_fast.config import ModelConfig, Preset, TrainingOptions
from iiae_fast.model import IIAE

_PAIRS = 2  # of the batch that is looked at; BatchNorm of vectors needs two
_SHARE = 0.9  # of the free memory that a suggestion fills


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


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes at its peak.

    Attributes:
        fixed: Weights, gradients, moments, moving average, low-precision copies.
        per_pair: Activations kept for the backward pass, and the largest gradients on their way, for each pair of a batch.
    """

    fixed: int
    per_pair: int

    def of(self, batch: int) -> int:
        """For batches of so many pairs."""
        return self.fixed + batch * self.per_pair


def memory_needed(preset: Preset, options: TrainingOptions, device: torch.device) -> Memory:
    """An estimate from forward passes on tensors without data.

    Args:
        preset: Its model.
        options: With ``precision`` decided.
        device: Of the run.
    """
    few, more = (_kept(preset, options, pairs) for pairs in (_PAIRS, 2 * _PAIRS))
    per_pair = (more - few) // _PAIRS
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in IIAE(preset.model).parameters())
    copies = 4 + 4 + 8 + (4 if options.ema_decay else 0)  # bytes a weight: itself, gradient, moments, moving average
    return Memory(copies * weights + few - _PAIRS * per_pair, per_pair)


def _kept(preset: Preset, options: TrainingOptions, pairs: int) -> int:
    """Bytes that a forward pass keeps for the backward pass, and the largest gradients on their way there."""
    kept: dict[str, dict[int, int]] = {}  # part: storage: bytes
    part = ["other"]
    storages: list[object] = []  # alive, so that no two have one address

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            storages.append(storage)
            kept.setdefault(part[0], {})[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode():
        model = IIAE(preset.model).train()
        for name, module in model.named_children():
            module.register_forward_pre_hook(lambda *_, name=name: part.__setitem__(0, name))
            module.register_forward_hook(lambda *_: part.__setitem__(0, "other"))
        x = torch.empty(pairs, *preset.model.input_shape)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
            for parameter in model.parameters():  # Module.to cannot convert tensors without data
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16) if options.precision == "bf16" else nullcontext(),
        ):
            model(x, x, sample=False)
    sizes = {name: sum(parts.values()) for name, parts in kept.items()}
    largest = max((size for parts in kept.values() for size in parts.values()), default=0)
    activations = sizes.get("other", 0) + max(sizes.values()) if options.recompute else sum(sizes.values())
    images = 2 * x.numel() * x.element_size()  # each domain's, in fp32; the losses' temporaries are as large
    # The largest maps come six times in the backward pass: gradients in and out, the low-precision or reordered copies of them
    # that convolutions make. Against the resident set of real steps this is 8 % above to 25 % below; 40 % below with recompute
    # at 32 pixels.
    return activations + 6 * largest + 2 * images


@dataclass(frozen=True)
class Room:
    """What a run needs, and what there is.

    Attributes:
        memory: Needed.
        batch: Pairs of the run's batches.
        free: Bytes before the run began, or None where the system does not say.
    """

    memory: Memory
    batch: int
    free: int | None

    @classmethod
    def of(cls, preset: Preset, options: TrainingOptions, device: torch.device, batch: int) -> Room:
        """On this machine, now."""
        return cls(memory_needed(preset, options, device), batch, _free_memory(device))

    def __str__(self) -> str:
        """One line for the user: the estimate, and a batch that fits where this one does not."""
        needed = self.memory.of(self.batch)
        text = f"a step of {self.batch} pairs needs about {_megabytes(needed)}"
        if self.free is None:
            return text
        text += f", {_megabytes(self.free)} are free"
        return text if needed <= self.free else f"{text}: too much"

    def advice(self) -> str:
        """What to do when it does not fit."""
        fits = 0 if self.free is None else _largest_batch(self.memory, self.free)
        if fits == 0 or fits >= self.batch:
            fits = self.batch // 2  # the estimate was too low, or nothing is known
        if fits == 0:
            return "not even one pair fits: take narrower networks or smaller images"
        return f"try optim.batch_size={fits} (with accumulate={-(-self.batch // fits)} for as many pairs a step), or recompute"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _free_memory(device: torch.device) -> int | None:
    """Bytes free for a run; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _largest_batch(memory: Memory, free: int) -> int:
    """The greatest power of two of pairs whose step fits; 0 where none does."""
    batch = int((_SHARE * free - memory.fixed) // memory.per_pair)
    return 1 << (batch.bit_length() - 1) if batch > 0 else 0


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
