"""What is settled, and checked, before the first step."""

from __future__ import annotations

__all__ = [
    "RUN_FILE",
    "check_data",
    "describe",
    "find_run",
    "pick_device",
    "remove_leftovers",
    "torch_threads",
    "validation_interval",
]

import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iiae_fast.config import Preset
from iiae_fast.data import Splits
from iiae_fast.errors import ConfigError, DataError
from iiae_fast.model import CONFIG_FILE, WEIGHTS_FILE
from iiae_fast.training.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint
from iiae_fast.training.log import LOG_FILE
from iiae_fast.version import __version__

RUN_FILE = "run.json"

# A run may move: its name and where its data lies change nothing in it. (The number of pairs is compared instead.)
_FREE_SETTINGS = ("name", "data.root")


def find_run(run_dir: Path, preset: Preset, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, or None to start anew.

    Raises:
        ConfigError: The directory holds a run and ``resume`` is False, or that run has other settings.
        CheckpointError: The checkpoint is truncated or altered.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"run_dir={run_dir}: is a file, accepted is a directory")
    if not resume:
        for name in (CHECKPOINT_FILE, CONFIG_FILE, WEIGHTS_FILE):
            if (run_dir / name).exists():
                raise ConfigError(f"run_dir={run_dir}: already holds a run ({name}); resume it, or give another directory")
        return None
    path = run_dir / CHECKPOINT_FILE
    if not path.exists():
        return None
    checkpoint = load_checkpoint(path)
    _compare(run_dir, checkpoint.preset, preset)
    return checkpoint


def remove_leftovers(run_dir: Path) -> None:
    """Delete the temporary files of writes that were killed."""
    for name in (CHECKPOINT_FILE, CONFIG_FILE, WEIGHTS_FILE, RUN_FILE, LOG_FILE):
        path = run_dir / name
        for leftover in path.parent.glob(f".{path.name}.*"):
            leftover.unlink()


def _compare(run_dir: Path, saved: Preset, given: Preset) -> None:
    before, now = _settings(saved.to_dict()), _settings(given.to_dict())
    for name, value in before.items():
        if now[name] == value or name in _FREE_SETTINGS:
            continue
        if name == "optim.epochs" and now[name] > value:
            if given.optim.lr_decay == "none":
                continue
            hint = "; it may be raised only when optim.lr_decay is 'none': the decay spans the whole run"
        else:
            hint = "; a run is resumed with the settings it was started with"
        raise ConfigError(f"{run_dir}: {name} is {now[name]!r}, the run to resume has {value!r}{hint}")


def _settings(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim.lr": …}`` from nested dictionaries."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _settings(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def pick_device(name: str) -> torch.device:
    """``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"`` as a device with its index.

    Raises:
        ConfigError: No such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ConfigError(f"device={name!r}: accepted are 'auto', 'cpu', 'cuda' and 'cuda:N'")
    if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name!r}: no such CUDA device here ({torch.cuda.device_count()} found)")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def check_data(preset: Preset, splits: Splits, checkpoint: Checkpoint | None) -> None:
    """Refuse data that this model cannot be trained on, before anything is written.

    Raises:
        ConfigError: The pairs have another shape than the model takes, or the settings of the classifier do not fit the labels.
        DataError: There are no training pairs, or others than the run to resume had.
    """
    train, model = splits.train, preset.model
    if len(train) == 0:
        raise DataError("there are no training pairs")
    if checkpoint is not None and checkpoint.facts["train_pairs"] != len(train):
        raise DataError(f"there are {len(train)} training pairs, the run to resume had {checkpoint.facts['train_pairs']}")
    first = train.batch(np.arange(1))
    for name, values in (("x", first.x), ("y", first.y)):
        if values.shape[1:] != model.input_shape:
            raise ConfigError(
                f"the data's {name} has shape {values.shape[1:]}, the model takes {model.input_shape}: "
                "model.family, image_size and feature_dim must fit the data"
            )
    if preset.objective.class_weight == 0:
        return
    setting = f"objective.class_weight={preset.objective.class_weight}"
    if model.classes == 0 or model.family != "feature":
        raise ConfigError(f"{setting}: needs a model of the feature family with model.classes above 0")
    if train.labels is None:
        raise ConfigError(f"{setting}: needs class labels, and the data has none")
    low, high = int(train.labels.min()), int(train.labels.max())
    if low < 0 or high >= model.classes:
        raise ConfigError(f"model.classes={model.classes}: the labels go from {low} to {high}, accepted are 0 to classes − 1")


def validation_interval(epoch_steps: int, batch_size: int, valid_pairs: int) -> int | None:
    """Steps from one validation to the next, None without validation pairs.

    An epoch; but at least 4 times as many pairs as are validated, so that validation stays a few percent of the time, and at
    most 20 times as many pairs or 1,000 steps, whichever is longer, so that long epochs have more than one.
    """
    if valid_pairs == 0:
        return None
    shortest = math.ceil(4 * valid_pairs / batch_size)
    longest = max(1000, math.ceil(20 * valid_pairs / batch_size))
    return min(max(epoch_steps, shortest), longest)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads, then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(preset: Preset, device: torch.device, **facts: Any) -> dict[str, Any]:
    """What ``run.json`` says."""
    cuda = device.type == "cuda"
    return {
        "preset": preset.to_dict(),
        "versions": {
            "iiae_fast": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "system": platform.platform(),
        },
        **facts,
    }
