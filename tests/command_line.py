"""Calling the program within this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iiae_fast.cli import main


def succeed(*arguments: object) -> None:
    """Run a command that must end well."""
    assert main([str(argument) for argument in arguments]) == 0


def output_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """What a command prints with ``--json``, and nothing else may it print."""
    capsys.readouterr()
    succeed(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


def refuse(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which a command refuses what it was given."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def picture(path: Path) -> np.ndarray:
    """An image file as uint8 (3, H, W)."""
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def features_file(folder: Path) -> Path:
    """A features.npz of 200 pairs in 10 classes, 16 values each."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 10
    centres = rng.standard_normal((10, 16))
    x, y = ((centres[labels] + rng.standard_normal((200, 16))).astype(np.float32) for _ in range(2))
    np.savez(folder / "features.npz", x=x, y=y, labels=labels)
    return folder / "features.npz"
