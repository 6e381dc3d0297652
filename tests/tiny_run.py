"""A run small enough to train within a test session, and an exported copy of it."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

from iiae_fast import presets
from iiae_fast.config import Preset


def tiny_preset(epochs: int = 3) -> Preset:
    """The embedded digits at 16 pixels, with few channels: about half a second an epoch."""
    preset = presets.get("digits-cdcb", image_size=16)
    return dataclasses.replace(
        preset,
        model=dataclasses.replace(preset.model, n_shared=4, n_exclusive=4, n_decoder=4),
        optim=dataclasses.replace(preset.optim, batch_size=128, epochs=epochs),
    )


@functools.cache
def tiny_run() -> Path:
    """A trained run directory. Tests read it and never write into it; ``copy_run`` gives one to write into."""
    from iiae_fast import training

    run_dir = Path(_directory().name) / "run"
    training.train(tiny_preset(), run_dir, device="cpu", threads=1, progress=False, log_every=5)
    return run_dir


@functools.cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="iiae-tiny-run-")  # removed when the session ends
