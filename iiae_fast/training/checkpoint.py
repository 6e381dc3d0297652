"""Everything a run needs to go on, in one file that is replaced whole or not at all."""

from __future__ import annotations

__all__ = ["CHECKPOINT_FILE", "Checkpoint", "RunState", "load_checkpoint", "restore", "save_checkpoint"]

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iiae_fast.config import Preset, from_dict
from iiae_fast.errors import CheckpointError, ConfigError
from iiae_fast.model import IIAE, load_state
from iiae_fast.storage import load_tensors, save_tensors

CHECKPOINT_FILE = Path("checkpoints") / "last.safetensors"

_ADAM = ("step", "exp_avg", "exp_avg_sq")  # what torch.optim.Adam keeps of a parameter


@dataclass
class RunState:
    """Where a run stands.

    Attributes:
        step: Optimizer steps taken.
        epoch: Passes completed.
        position: Steps taken in the current pass.
        validated: Step of the last validation, 0 before the first.
        best: The best validation so far: ``metric``, ``value``, ``loss``, ``step``.
        seconds: Wall-clock seconds of the run, over all its sessions.
        cpu_seconds: Processor seconds of the process, alike.
        pause_seconds: The part of ``seconds`` that validation and checkpoints took.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    validated: int = 0
    best: dict[str, Any] | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    pause_seconds: float = 0.0


@dataclass
class Checkpoint:
    """What ``save_checkpoint`` wrote.

    Attributes:
        path: The file.
        state: Where the run stood.
        preset: Its settings.
        facts: Of the run: ``train_pairs``, ``threads``, ``options``.
        model, adam, ema, rng: Tensors by name.
        loss_names, loss_rows: The interval of the log that was under way.
    """

    path: Path
    state: RunState
    preset: Preset
    facts: dict[str, Any]
    loss_names: list[str]
    loss_rows: Tensor
    model: dict[str, Tensor] = field(default_factory=dict)
    adam: dict[str, Tensor] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)
    rng: dict[str, Tensor] = field(default_factory=dict)


def gather(model: IIAE, optimizer: torch.optim.Optimizer, average: IIAE | None = None) -> dict[str, Tensor]:
    """The model's, its moving average's and Adam's tensors, by the names they have in a checkpoint."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"adam/{key}/{name}"] = value
    if average is not None:
        tensors |= {f"ema/{name}": tensor for name, tensor in average.state_dict().items()}
    return tensors


def save_checkpoint(
    path: Path,
    tensors: dict[str, Tensor],
    state: RunState,
    preset: Preset,
    facts: dict[str, Any],
    loss_names: list[str],
    loss_rows: Tensor,
    device: torch.device,
) -> None:
    """Write one checkpoint.

    Args:
        path: The file to replace.
        tensors: From ``gather``.
        state, preset, facts, loss_names, loss_rows: See ``Checkpoint``.
        device: Whose random state is kept, beside the CPU's.
    """
    rng = {"rng/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        rng["rng/cuda"] = torch.cuda.get_rng_state(device)
    metadata = {
        "state": dataclasses.asdict(state),
        "preset": preset.to_dict(),
        "facts": facts,
        "loss_names": loss_names,
    }
    save_tensors(path, {**tensors, **rng, "loss_rows": loss_rows}, metadata)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        CheckpointError: The file is missing, truncated, altered, or not a training checkpoint.
    """
    tensors, metadata = load_tensors(path)
    try:
        checkpoint = Checkpoint(
            path=path,
            state=from_dict(RunState, metadata["state"]),
            preset=Preset.from_dict(metadata["preset"]),
            facts=metadata["facts"],
            loss_names=metadata["loss_names"],
            loss_rows=tensors.pop("loss_rows"),
        )
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path}: not a training checkpoint of this version ({error})") from None
    groups = {"model": checkpoint.model, "adam": checkpoint.adam, "ema": checkpoint.ema, "rng": checkpoint.rng}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        if group not in groups:
            raise CheckpointError(f"{path}: tensor {name} is not part of a training checkpoint")
        groups[group][rest] = tensor
    if "cpu" not in checkpoint.rng:
        raise CheckpointError(f"{path}: lacks the random state")
    return checkpoint


def restore(
    checkpoint: Checkpoint,
    model: IIAE,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    average: IIAE | None = None,
) -> None:
    """Put model, moving average, moments and random state back, in place.

    Raises:
        CheckpointError: The tensors are not this model's.
    """
    load_state(model, checkpoint.model, checkpoint.path)
    if average is not None:
        load_state(average, checkpoint.ema, checkpoint.path)
    parameters = dict(model.named_parameters())
    for name, value in checkpoint.adam.items():
        key, _, owner = name.partition("/")
        whole = all(f"{moment}/{owner}" in checkpoint.adam for moment in _ADAM)
        if key not in _ADAM or owner not in parameters or not whole or (value.dim() and value.shape != parameters[owner].shape):
            raise CheckpointError(
                f"{checkpoint.path}: tensor adam/{name} does not belong to this model, or lacks its companions"
            )
        # Moments lie in memory as their weights do; the fused kernel walks both by address.
        target = torch.empty_like(parameters[owner]) if value.dim() else torch.empty_like(value, device=device)
        optimizer.state[parameters[owner]][key] = target.detach().copy_(value)
    torch.set_rng_state(checkpoint.rng["cpu"])
    if device.type == "cuda" and "cuda" in checkpoint.rng:
        torch.cuda.set_rng_state(checkpoint.rng["cuda"], device)
