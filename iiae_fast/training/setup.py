"""What is settled, and checked, before the first step."""

from __future__ import annotations

__all__ = [
    "RUN_FILE",
    "check_backend",
    "check_data",
    "describe",
    "determinism",
    "find_run",
    "make_model",
    "pick_device",
    "plan",
    "remove_leftovers",
    "settle_options",
    "steps_of_epoch",
    "torch_threads",
    "validation_interval",
]

import dataclasses
import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iiae_fast import convolution
from iiae_fast.config import Preset, TrainingOptions, from_dict
from iiae_fast.data import Splits, sampler_for
from iiae_fast.data.samplers import EpochSampler
from iiae_fast.errors import ConfigError, DataError
from iiae_fast.kernels._backend import use_triton
from iiae_fast.model import CONFIG_FILE, IIAE, WEIGHTS_FILE
from iiae_fast.training.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint
from iiae_fast.training.costs import step_flops
from iiae_fast.training.log import LOG_FILE
from iiae_fast.version import __version__

RUN_FILE = "run.json"

# A run may move: its name and where its data lies change nothing in it. (The number of pairs is compared instead.)
_FREE_SETTINGS = ("name", "data.root")
# A step of fewer operations gains little by bf16 on a CPU where the layers are PyTorch's. Measured with oneDNN on AVX-512 BF16,
# one core: 0.8 GFLOP 1.04 times as fast as fp32, 3 GFLOP 1.3 times, 13 GFLOP 1.5 times, 260 GFLOP 2 times.
_BF16_FLOPS = 2e9
_FREE_OPTIONS = ("resident", "overlap")  # they change nothing in a batch, or in what is computed from it


def find_run(run_dir: Path, preset: Preset, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, or None to start anew.

    Raises:
        ConfigError: The directory holds a run and ``resume`` is False, or that run has other settings or no checkpoint to its
            model.
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
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (run_dir / name).exists():
                continue
            if (run_dir / RUN_FILE).exists():  # runs save a checkpoint before any model, so it was removed
                raise ConfigError(
                    f"run_dir={run_dir}: holds the model of a run ({name}), but its checkpoint {CHECKPOINT_FILE} is missing, "
                    "and to start anew would replace the model; put the checkpoint back, or give another directory"
                )
            raise ConfigError(
                f"run_dir={run_dir}: holds a model ({name}) that no run here made, and training would replace it; "
                "give another directory"
            )
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


def check_backend(backend: str, device: torch.device) -> None:
    """Refuse kernels that cannot run on the device, before anything is written.

    Raises:
        ConfigError: See above.
    """
    try:
        use_triton(backend, device)
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from None


def settle_options(
    options: TrainingOptions, preset: Preset, device: torch.device, checkpoint: Checkpoint | None
) -> TrainingOptions:
    """The options with ``precision`` decided, as this machine or the run to resume has it.

    Raises:
        ConfigError: They cannot be used here, or differ from those of the run to resume.
    """
    for name in ("cuda_graph", "overlap"):
        if getattr(options, name) and device.type != "cuda":
            raise ConfigError(f"{name}=True: needs a CUDA device, the run's is {device}")
    if checkpoint is None:
        if options.precision != "auto":
            return options
        return dataclasses.replace(options, precision="bf16" if _gains_by_bf16(options, preset, device) else "fp32")
    saved = from_dict(TrainingOptions, checkpoint.facts.get("options", {"precision": "fp32"}))
    if options.precision == "auto":
        options = dataclasses.replace(options, precision=saved.precision)
    for name, value in dataclasses.asdict(saved).items():
        given = getattr(options, name)
        if given != value and name not in _FREE_OPTIONS:
            where = checkpoint.path.parent.parent
            raise ConfigError(
                f"{where}: {name} is {given!r}, the run to resume has {value!r}; resume it with the options it had"
            )
    return options


def _gains_by_bf16(options: TrainingOptions, preset: Preset, device: torch.device) -> bool:
    """Whether bf16 makes a step faster: where there are units for it, and convolutions that keep them busy."""
    model = preset.model
    if options.deterministic or model.family == "feature":
        return False
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if convolution.available():
        return True  # 1.03 times as fast as fp32 at 0.2 GFLOP, and more with every larger step
    units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(units) and step_flops(model, preset.optim.batch_size) >= _BF16_FLOPS


def steps_of_epoch(batches: int, accumulate: int) -> int:
    """Optimizer steps of one pass; batches that do not fill a step are left out, others in every epoch.

    Raises:
        ConfigError: A pass has fewer batches than one step takes.
    """
    if batches < accumulate:
        raise ConfigError(
            f"accumulate={accumulate}: a pass over the training pairs has {batches} batches, fewer than one step takes"
        )
    return batches // accumulate


def plan(
    sampler: EpochSampler, accumulate: int, epochs: int, epoch: int = 0, position: int = 0
) -> Iterator[tuple[np.ndarray, int]]:
    """Pairs of every step from a place in the run on, and their epoch.

    Args:
        sampler: The order of training.
        accumulate: Batches of a step.
        epochs: Of the run.
        epoch, position: Passes completed, and steps taken in the current one.
    """
    for number in range(epoch, epochs):
        batches = sampler.batches(number)
        count = steps_of_epoch(len(batches), accumulate)
        yield from ((indices, number) for indices in batches[: count * accumulate].reshape(count, -1)[position:])
        position = 0


def make_model(preset: Preset, options: TrainingOptions, device: torch.device, backend: str) -> IIAE:
    """A model on its device, in training mode and in the memory order that the options ask for."""
    model = IIAE(preset.model, backend=backend).to(device).train()
    if options.channels_last and preset.model.family != "feature":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


@contextmanager
def determinism(wanted: bool, device: torch.device) -> Iterator[None]:
    """Let a GPU use deterministic kernels and full fp32 alone, then what it used before. The CPU always does."""
    if not wanted or device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, torch.are_deterministic_algorithms_enabled())
    cudnn.allow_tf32 = matmul.allow_tf32 = cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, algorithms = before
        torch.use_deterministic_algorithms(algorithms)


def check_data(preset: Preset, splits: Splits, checkpoint: Checkpoint | None, options: TrainingOptions) -> None:
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
    if options.accumulate > 1:
        steps_of_epoch(len(sampler_for(train, preset.optim, preset.data).batches(0)), options.accumulate)
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
