"""Small presets and data sets that train in seconds, and what two equal runs have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from iiae_fast import presets
from iiae_fast.config import DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, Preset
from iiae_fast.data import Batch, PairedDataset
from iiae_fast.storage import load_tensors

CLASSES = 4
TIMES = ("seconds", "pairs_per_second")


def digits(epochs: int = 2, **optim: Any) -> Preset:
    """Real digits at 16×16 with few weights: 40 steps an epoch."""
    preset = presets.get("digits-cdcb", image_size=16)
    return replace(
        preset,
        model=replace(preset.model, n_shared=2, n_exclusive=2, n_decoder=4),
        optim=replace(preset.optim, **{"epochs": epochs, "batch_size": 32, **optim}),
    )


def features(epochs: int = 2, **optim: Any) -> Preset:
    """A small feature model with a classifier, for ``FeaturePairs``."""
    return Preset(
        "toy",
        ModelConfig(
            "feature", feature_dim=6, n_shared=4, n_exclusive=4, n_decoder=8, shared_dim=4, exclusive_dim=3, classes=CLASSES
        ),
        ObjectiveConfig(likelihood="gaussian", reconstruction_weight=10.0, kl_annealing_steps=50.0, class_weight=0.5),
        OptimConfig(**{"lr": 1e-2, "epochs": epochs, **optim}),
        DataConfig("features", root="toy.npz"),
    )


@dataclass
class FeaturePairs:
    """Class centres plus noise, float32 (N, 6) in both domains."""

    count: int
    seed: int = 0
    x: np.ndarray = field(init=False)
    y: np.ndarray = field(init=False)
    labels: np.ndarray | None = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        labels = np.arange(self.count) % CLASSES
        content = 2 * np.eye(CLASSES, 6)[labels] + random.normal(size=(self.count, 6))
        self.x = (content + 0.3 * random.normal(size=content.shape)).astype(np.float32)
        self.y = (content[:, ::-1] + 0.3 * random.normal(size=content.shape)).astype(np.float32)
        self.labels = labels

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> Batch:
        return Batch(self.x[indices], self.y[indices], None if self.labels is None else self.labels[indices])


class Hooked:
    """A data set that calls ``hook`` before each batch is made."""

    def __init__(self, dataset: PairedDataset, hook: Callable[[], object]) -> None:
        self.dataset, self.hook, self.labels = dataset, hook, dataset.labels

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> Batch:
        self.hook()
        return self.dataset.batch(indices, epoch)


def signal_at(count: int, number: int) -> Callable[[], None]:
    """A hook that sends this process a signal when it is called for the ``count``-th time."""
    calls = iter(range(1, 10**9))

    def hook() -> None:
        if next(calls) == count:
            os.kill(os.getpid(), number)

    return hook


def log_lines(run_dir: Path) -> list[dict[str, Any]]:
    """The log, without the times that no two runs share."""
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, moments, random state, place, best model and log are the same, bit for bit."""
    (tensors_a, facts_a), (tensors_b, facts_b) = (load_tensors(run / "checkpoints" / "last.safetensors") for run in (a, b))
    assert tensors_a.keys() == tensors_b.keys()
    for name, tensor in tensors_a.items():
        assert tensor.numpy().tobytes() == tensors_b[name].numpy().tobytes(), name
    for name in ("step", "epoch", "position", "validated", "best"):
        assert facts_a["state"][name] == facts_b["state"][name], name
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert log_lines(a) == log_lines(b)
