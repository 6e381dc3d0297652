"""Run directories, as commands open them."""

from __future__ import annotations

__all__ = ["commands", "open_model", "open_preset", "record_command"]

from pathlib import Path
from typing import TYPE_CHECKING

from iiae_fast.config import Preset
from iiae_fast.errors import CheckpointError, InputError
from iiae_fast.storage import load_json, write_atomic

if TYPE_CHECKING:
    from iiae_fast.model import IIAE

CONFIG_FILE = "config.json"
_COMMANDS_FILE = "commands.txt"

command_line = "iiae"
"""What the program was called with; ``iiae_fast.cli.main`` sets it."""


def open_model(run_dir: Path, device: str = "auto", threads: int | None = None) -> IIAE:
    """The best model of a run, in evaluation mode; torch then uses that many CPU threads.

    Raises:
        CheckpointError: There is none, or its files are truncated or altered.
        InputError: No such device on this machine, or a number of threads below 1 or above 4,096.
    """
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir}: no such run directory")
    import torch

    from iiae_fast.model import load
    from iiae_fast.retrieval.inputs import MAX_THREADS
    from iiae_fast.training.setup import pick_device

    if threads is not None:
        if not 1 <= threads <= MAX_THREADS:
            raise InputError(f"--threads {threads}: accepted is a whole number from 1 to {MAX_THREADS:,}")
        torch.set_num_threads(threads)
    return load(run_dir, device=pick_device(device))


def open_preset(run_dir: Path) -> Preset:
    """What a run was trained with.

    Raises:
        CheckpointError: There is no run, or it does not say.
    """
    values = load_json(run_dir / CONFIG_FILE)
    if "preset" not in values:
        raise CheckpointError(f"{run_dir}: says nothing of its data; import the model anew with iiae import-official --preset")
    return Preset.from_dict(values["preset"])


def record_command(run_dir: Path) -> None:
    """Note the command line in the run directory, for its report."""
    before = commands(run_dir).splitlines()
    if before[-1:] != [command_line]:
        write_atomic(run_dir / _COMMANDS_FILE, "\n".join([*before, command_line, ""]).encode())


def commands(run_dir: Path) -> str:
    """The command lines that worked on a run, one a line."""
    path = run_dir / _COMMANDS_FILE
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""
