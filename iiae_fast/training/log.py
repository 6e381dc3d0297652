"""The run's history: ``log.jsonl``, one JSON object a line, and TensorBoard where it is installed."""

from __future__ import annotations

__all__ = ["LOG_FILE", "RunLog", "trim"]

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iiae_fast.errors import CheckpointError
from iiae_fast.storage import write_atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_FILE = "log.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"


class RunLog:
    """Writer of both, from where the last checkpoint left off.

    Args:
        run_dir: The run's directory.
        step: Steps the checkpoint has; later lines go, and TensorBoard hides later points.
        validated: Step of the last validation that the checkpoint knows of.
    """

    def __init__(self, run_dir: Path, step: int, validated: int) -> None:
        path = run_dir / LOG_FILE
        trim(path, step, validated)
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = _tensorboard(run_dir / TENSORBOARD_DIRECTORY, purge_step=step + 1)

    @property
    def has_tensorboard(self) -> bool:
        """Whether TensorBoard is installed."""
        return self._tensorboard is not None

    def write(self, line: dict[str, Any]) -> None:
        """Append a line that has a ``step``; ``event`` says what kind it is, and is absent from the training steps' lines."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            group = line.get("event", "train")
            for name, value in line.items():
                if isinstance(value, float):
                    self._tensorboard.add_scalar(f"{group}/{name}", value, line["step"])

    def sync(self) -> None:
        """Bring all lines to the disk: a checkpoint must never know of more than the log."""
        os.fsync(self._file.fileno())
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def trim(path: Path, step: int, validated: int) -> None:
    """Drop what was logged after the checkpoint, so that the log reads as of an unbroken run. A torn last line goes too.

    Raises:
        CheckpointError: A line before the last is not one that ``RunLog.write`` wrote.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = []
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            at, known = line["step"], validated if line.get("event") == "validation" else step
        except (ValueError, KeyError, TypeError, AttributeError):
            if number == len(lines):
                break
            raise CheckpointError(f"{path}: line {number} is not a log line; delete or repair it to resume") from None
        if at <= known and text.endswith(b"\n"):
            kept.append(text)
    if len(kept) < len(lines):
        write_atomic(path, b"".join(kept))


def _tensorboard(directory: Path, purge_step: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=purge_step)
