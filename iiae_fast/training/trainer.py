"""Training as a call: everything checked before anything is written, then the run."""

from __future__ import annotations

__all__ = ["train"]

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from iiae_fast import data
from iiae_fast.config import Preset, TrainingOptions, whole
from iiae_fast.errors import ConfigError
from iiae_fast.model import IIAE
from iiae_fast.retrieval.inputs import MAX_THREADS
from iiae_fast.training import setup
from iiae_fast.training.allocator import keep_freed_memory
from iiae_fast.training.interrupts import Interrupts
from iiae_fast.training.lock import RunLock
from iiae_fast.training.progress import ProgressDisplay
from iiae_fast.training.run import Run, TrainingResult


def train(
    preset: Preset,
    run_dir: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    threads: int | None = None,
    checkpoint_seconds: float = 60.0,
    log_every: int = 20,
    progress: bool = True,
    stop_after: float | None = None,
    backend: str = "auto",
    options: TrainingOptions | None = None,
    enough: Callable[[IIAE], bool] | None = None,
) -> TrainingResult:
    """Train the model of a preset.

    The run directory holds ``run.json`` (settings, versions, device), ``log.jsonl``, ``tensorboard/`` where that is installed,
    ``checkpoints/last.safetensors``, and the best model (``config.json``, ``model.safetensors``; see ``iiae_fast.load``). The
    best has the highest validation R@1 with shared codes, mean of both directions; of equals, the lowest validation loss; of
    those, the first. Objectives that leave r(z_s|x) and r(z_s|y) untrained go by the loss alone. Without validation pairs the
    last model is kept.

    Validation comes after every epoch and after the last step. Epochs of fewer pairs than 4 times the validation set share one;
    epochs of more than 1,000 steps and more than 20 times the validation set have several.

    A run that was broken off at any moment and resumed ends bit for bit as an unbroken one, on the CPU with the same number of
    threads. It must have the same settings, but for ``optim.epochs``, which may be raised when ``lr_decay`` is ``"none"``, and
    ``data.root`` and ``name``.

    Args:
        preset: Everything the run depends on.
        run_dir: Made when absent.
        resume: Continue the run in ``run_dir``; one that had not come to its first checkpoint starts anew. False refuses a
            directory with a run.
        device: ``"auto"`` (CUDA if available), ``"cpu"``, ``"cuda"``, ``"cuda:N"``.
        threads: Of torch on the CPU. None: what the run to resume had, or what torch has now.
        checkpoint_seconds: Time between checkpoints; there is always one at the end and on SIGINT or SIGTERM.
        log_every: Steps per log line.
        progress: Show progress on stderr.
        stop_after: Seconds after which to save and return, with ``finished=False``.
        backend: Kernels; see ``IIAE``.
        options: How steps are computed. To resume, those the run had; ``precision="auto"`` means what it had.
        enough: Asked after every validation, with the model that was validated, whether to save and return as after
            ``stop_after``.

    Raises:
        ConfigError: A setting cannot be used, or differs from those of the run to resume; or the directory already holds a run,
            or a model without the checkpoint to go on from.
        CheckpointError: The checkpoint to resume is truncated, altered, or not this model's.
        DataError: The data cannot be read, or is not what the run to resume had.
        OutOfMemoryError: A step does not fit; the message suggests a batch that does.
        NonFiniteLossError: A loss term or a weight became NaN or infinite. The last good checkpoint stays.
    """
    for name, value in (("checkpoint_seconds", checkpoint_seconds), ("stop_after", stop_after)):
        if value is not None and not value >= 0:
            raise ConfigError(f"{name}={value!r}: accepted is a number of seconds of at least 0")
    log_every = whole("log_every", log_every, 1)
    if threads is not None:
        threads = whole("threads", threads, 1, MAX_THREADS)
    run_dir = Path(run_dir)
    target = setup.pick_device(device)
    setup.check_backend(backend, target)
    with RunLock(run_dir) as lock:
        checkpoint = setup.find_run(run_dir, preset, resume)
        options = setup.settle_options(options or TrainingOptions(), preset, target, checkpoint)
        splits = data.load(preset.data)
        setup.check_data(preset, splits, checkpoint, options)
        if threads is None:
            threads = torch.get_num_threads() if checkpoint is None else int(checkpoint.facts["threads"])
        with (
            setup.torch_threads(threads),
            keep_freed_memory(target),
            setup.determinism(options.deterministic, target),
            torch.random.fork_rng([target] if target.type == "cuda" else []),
        ):
            run = Run(preset, run_dir, splits, target, checkpoint, log_every, backend, options)
            lock.make()
            run.open()
            with (
                closing(run.log),
                ProgressDisplay(run.steps, preset.optim.epochs, progress) as display,
                Interrupts(display.say) as interrupts,
            ):
                run.loop(display, interrupts, checkpoint_seconds, stop_after, enough)
            return run.result(interrupted=interrupts.received is not None)
