"""Who may train where, and what a refused run leaves behind."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_runs import features

from iiae_fast import data, presets, training
from iiae_fast.config import OptimConfig
from iiae_fast.data import Splits
from iiae_fast.errors import ConfigError, OutOfMemoryError
from iiae_fast.model import IIAE
from iiae_fast.training.checkpoint import CHECKPOINT_FILE
from iiae_fast.training.interrupts import Interrupts
from iiae_fast.training.lock import RunLock
from iiae_fast.training.step import TrainingStep

HOLDER = """
import sys
from pathlib import Path
from iiae_fast.training.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_trainer_is_refused(tmp_path: Path, feature_splits: Splits) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            for resume in (False, True):
                with pytest.raises(ConfigError, match="another process trains in it"):
                    training.train(features(), tmp_path, resume=resume, progress=False)
        finally:
            other.kill()
    assert not any(tmp_path.iterdir())
    assert training.train(features(), tmp_path, progress=False).finished, "a killed trainer holds nothing"


def test_a_directory_that_appears_meanwhile_is_locked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunLock(run) as late:
        with RunLock(run) as first:
            first.make()
            with pytest.raises(ConfigError, match="another process trains in it"):
                late.make()
        late.make()


def test_a_model_without_a_run_is_not_trained_over(tmp_path: Path, feature_splits: Splits) -> None:
    IIAE(features().model).save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"run_dir=.*config\.json"):
            training.train(features(), tmp_path, resume=resume, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_model_whose_checkpoint_is_gone_is_not_trained_over(tmp_path: Path, feature_splits: Splits) -> None:
    training.train(features(), tmp_path, progress=False)
    (tmp_path / CHECKPOINT_FILE).unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(
        ConfigError, match=r"holds the model of a run .*checkpoints/last\.safetensors is missing.* put the checkp"
    ):
        training.train(features(), tmp_path, resume=True, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_no_model_is_saved_before_a_checkpoint(tmp_path: Path, feature_splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at its first model, a run goes on from the checkpoint before it, and ends as if nothing had been."""
    training.train(features(), tmp_path / "unbroken", progress=False)
    save = IIAE.save

    def killed(model: IIAE, directory: Path, **facts: Any) -> None:
        assert (tmp_path / "run" / CHECKPOINT_FILE).exists()
        save(model, directory, **facts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(IIAE, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train(features(), tmp_path / "run", progress=False)
    assert training.train(features(), tmp_path / "run", resume=True, progress=False).finished
    names = ("model.safetensors", "config.json")
    assert all((tmp_path / "run" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes() for name in names)


def test_kernels_that_cannot_run_are_refused_before_anything_is_written(
    tmp_path: Path, feature_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iiae_fast.kernels._backend.INTERPRETED", False)
    with pytest.raises(ConfigError, match="backend='triton': inputs on cpu"):
        training.train(features(), tmp_path / "run", progress=False, device="cpu", backend="triton")
    assert not (tmp_path / "run").exists()


def test_numpys_whole_numbers_are_whole_numbers(tmp_path: Path, feature_splits: Splits) -> None:
    plain, numpys = features(1), features(1, seed=np.int64(0), batch_size=np.int32(8))
    assert numpys == features(1, batch_size=8)
    assert type(numpys.optim.seed) is int
    result = training.train(plain, tmp_path, progress=False, log_every=np.int64(10), threads=np.int16(1))
    assert result.finished
    for bad in (True, 1.0, "1"):
        with pytest.raises(ConfigError, match="seed="):
            OptimConfig(seed=bad)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="log_every="):
            training.train(plain, tmp_path / "bad", log_every=bad, progress=False)  # type: ignore[arg-type]


def test_a_signal_handler_prints_nothing() -> None:
    said: list[str] = []
    with Interrupts(said.append) as interrupts:
        interrupts._receive(2, None)
        assert not said
        assert interrupts.announce()
        assert interrupts.announce()
    assert len(said) == 1
    assert said[0].startswith("SIGINT: finishing")


@pytest.mark.parametrize("name", ["facades", "maps", "cars"])
def test_presets_without_a_published_validation_keep_all_training_pairs(name: str) -> None:
    assert presets.get(name).data.valid_fraction == 0


def test_out_of_memory_suggests_a_batch_that_fits(
    tmp_path: Path, feature_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingStep, "compute", fail)
    wanted = replace(features(), optim=replace(features().optim, batch_size=64))
    monkeypatch.setattr(data, "sampler_for", lambda *_: data.ShuffledBatches(120, 64, 0))
    with pytest.raises(
        OutOfMemoryError, match=r"step 1: a step of 64 pairs needs about .* MB.*optim\.batch_size=32 .*accumulate=2"
    ):
        training.train(wanted, tmp_path, progress=False)

    def other(*_: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(TrainingStep, "compute", other)
    with pytest.raises(RuntimeError, match="something else"):
        training.train(wanted, tmp_path, progress=False)
