"""A run that is broken off ends as one that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_runs import Hooked, assert_same_run, digits, features, log_lines, signal_at

import iiae_fast
from iiae_fast import data, training
from iiae_fast.config import Preset
from iiae_fast.data import Splits
from iiae_fast.errors import CheckpointError, ConfigError, DataError
from iiae_fast.storage import load_json, load_tensors, save_tensors
from iiae_fast.training.progress import ProgressDisplay

CHECKPOINT = Path("checkpoints") / "last.safetensors"
KILLS = 10

# Trains in forked children, so that torch is imported once, and kills each by SIGKILL a random moment after the log has come to
# a goal that lies further on every time.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import sklearn.datasets
import torch
from iiae_fast import training
from iiae_fast.config import Preset

preset = Preset.from_dict(json.loads(sys.argv[1]))
run_dir, steps, kills = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
draw = random.Random(5)

def session():
    child = os.fork()
    if child == 0:
        try:
            options = dict(threads=1, checkpoint_seconds=0.1, log_every=7, progress=False)
            result = training.train(preset, run_dir, resume=True, **options)
            os._exit(0 if result.finished else 3)
        finally:
            os._exit(4)
    return child

def logged():
    try:
        return sum(1 for line in open(run_dir / "log.jsonl") if "event" not in line) * 7
    except FileNotFoundError:
        return 0

for kill in range(kills):
    child = session()
    goal = steps * kill / (kills + 1)
    while logged() < goal and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.003)
    time.sleep(draw.uniform(0, 0.25))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
child = session()
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    preset = digits(epochs=8)
    result = training.train(preset, tmp_path / "unbroken", threads=1, log_every=7, progress=False)
    assert result.finished
    assert result.step == 320
    arguments = [json.dumps(preset.to_dict()), str(tmp_path / "killed"), str(result.step), str(KILLS)]
    subprocess.run([sys.executable, "-c", KILLER, *arguments], check=True, timeout=300)
    assert_same_run(tmp_path / "unbroken", tmp_path / "killed")
    left = {path.name for path in (tmp_path / "killed").rglob("*") if path.name.startswith(".")}
    assert not left, "temporary files of killed writes remain"


@pytest.mark.parametrize("family", ["feature", "spatial"])
def test_breaking_off_and_resuming_changes_nothing(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    preset = digits(epochs=1) if family == "spatial" else features(epochs=2)
    splits = data.load(preset.data) if family == "spatial" else request.getfixturevalue("feature_splits")
    training.train(preset, tmp_path / "unbroken", log_every=7, progress=False)
    result = training.train(preset, tmp_path / "broken", log_every=7, progress=False, stop_after=0)
    assert (result.step, result.finished, result.interrupted) == (0, False, False)
    steps = [result.step]
    for batches in (9, 4, 5, 13, 10**6):
        hooked = replace(splits, train=Hooked(splits.train, signal_at(batches, signal.SIGTERM)))
        monkeypatch.setattr(data, "load", lambda config, hooked=hooked: hooked)
        result = training.train(preset, tmp_path / "broken", resume=True, log_every=7, progress=False)
        assert result.interrupted == (batches < 10**6)
        steps.append(result.step)
    assert steps == sorted(set(steps)), "every session got further"
    assert result.finished
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_seconds_add_up_over_sessions(tmp_path: Path, feature_splits: Splits) -> None:
    first = training.train(features(), tmp_path, progress=False, stop_after=0.1)
    second = training.train(features(), tmp_path, resume=True, progress=False)
    assert 0.1 <= first.seconds < second.seconds
    assert 0 < first.cpu_seconds < second.cpu_seconds
    assert second.pairs_per_second > 0


def test_resuming_a_finished_run_does_nothing(tmp_path: Path, feature_splits: Splits) -> None:
    training.train(features(), tmp_path, progress=False)
    before = (tmp_path / "model.safetensors").read_bytes(), log_lines(tmp_path)
    result = training.train(features(), tmp_path, resume=True, progress=False)
    assert result.finished
    assert result.step == 60
    assert before == ((tmp_path / "model.safetensors").read_bytes(), log_lines(tmp_path))


def test_raised_epochs_continue_as_the_longer_run(tmp_path: Path, feature_splits: Splits) -> None:
    training.train(features(epochs=4), tmp_path / "long", progress=False)
    training.train(features(epochs=2), tmp_path / "raised", progress=False)
    result = training.train(features(epochs=4), tmp_path / "raised", resume=True, progress=False)
    assert result.finished
    assert_same_run(tmp_path / "long", tmp_path / "raised")


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (features(lr=2e-2), "optim.lr"),
        (features(epochs=1), "optim.epochs"),
        (features(seed=1), "optim.seed"),
        (replace(features(), model=replace(features().model, shared_dim=5)), "model.shared_dim"),
        (replace(features(), objective=replace(features().objective, elbo_weight=0.3)), "objective.elbo_weight"),
        (replace(features(), data=replace(features().data, seed=1)), "data.seed"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, feature_splits: Splits, changed: Preset, name: str) -> None:
    training.train(features(), tmp_path, progress=False, stop_after=0)
    with pytest.raises(ConfigError, match=name):
        training.train(changed, tmp_path, resume=True, progress=False)


def test_epochs_of_a_decaying_schedule_stay(tmp_path: Path, feature_splits: Splits) -> None:
    training.train(features(epochs=2, lr_decay="cosine"), tmp_path, progress=False, stop_after=0)
    with pytest.raises(ConfigError, match=r"optim\.epochs is 3, the run to resume has 2; .*lr_decay"):
        training.train(features(epochs=3, lr_decay="cosine"), tmp_path, resume=True, progress=False)


def test_a_run_may_move(tmp_path: Path, feature_splits: Splits) -> None:
    training.train(features(), tmp_path, progress=False, stop_after=0)
    moved = replace(features(), name="other", data=replace(features().data, root="/elsewhere/toy.npz"))
    assert training.train(moved, tmp_path, resume=True, progress=False).finished


def test_other_data_is_refused(tmp_path: Path, feature_splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    training.train(features(), tmp_path, progress=False, stop_after=0)
    fewer = replace(feature_splits, train=feature_splits.valid)
    monkeypatch.setattr(data, "load", lambda config: fewer)
    with pytest.raises(DataError, match="20 training pairs, the run to resume had 120"):
        training.train(features(), tmp_path, resume=True, progress=False)


def test_a_directory_with_a_run_is_not_overwritten(tmp_path: Path, feature_splits: Splits) -> None:
    training.train(features(), tmp_path, progress=False, stop_after=0)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ConfigError, match="already holds a run"):
        training.train(features(), tmp_path, progress=False)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_resume_without_a_checkpoint_starts_anew(tmp_path: Path, feature_splits: Splits) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 20, "total": 1.0}\n')  # of a run that was killed before its first checkpoint
    result = training.train(features(), tmp_path, resume=True, progress=False)
    assert result.finished
    assert [line["step"] for line in log_lines(tmp_path)] == [20, 30, 40, 60, 60]


def test_damaged_checkpoints_are_refused(tmp_path: Path, feature_splits: Splits) -> None:
    training.train(features(), tmp_path, progress=False, stop_after=0.1)
    path = tmp_path / CHECKPOINT
    good = path.read_bytes()
    random = np.random.default_rng(0)
    offsets = [0, 7, 8, 40, len(good) - 1, *random.integers(0, len(good), 25).tolist()]
    damaged = [good[:at] + bytes([good[at] ^ (1 << int(random.integers(8)))]) + good[at + 1 :] for at in offsets]
    for content in [*damaged, good[:-1], good[: len(good) // 2], b"", good + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"last\.safetensors"):
            training.train(features(), tmp_path, resume=True, progress=False)
        assert path.read_bytes() == content
    path.write_bytes(good)
    assert training.train(features(), tmp_path, resume=True, progress=False).finished


@pytest.mark.parametrize("change", ["model file", "no weight", "no moment", "foreign", "other shape", "no random state"])
def test_whole_files_that_are_no_checkpoint_are_refused(tmp_path: Path, feature_splits: Splits, change: str) -> None:
    training.train(features(), tmp_path, progress=False, stop_after=0.1)
    path = tmp_path / CHECKPOINT
    tensors, metadata = load_tensors(path)
    if change == "model file":
        tensors, metadata = load_tensors(tmp_path / "model.safetensors")
    elif change == "no weight":
        del tensors["model/joint.tower.steps.0.layer.weight"]
    elif change == "no moment":
        del tensors["adam/exp_avg/joint.tower.steps.0.layer.weight"]
    elif change == "foreign":
        tensors["adam/exp_avg/nobody"] = tensors.pop("adam/exp_avg/joint.tower.steps.0.layer.weight")
    elif change == "other shape":
        name = "adam/exp_avg/joint.tower.steps.0.layer.weight"
        tensors[name] = tensors[name][1:]
    else:
        del tensors["rng/cpu"]
    save_tensors(path, tensors, metadata)
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        training.train(features(), tmp_path, resume=True, progress=False)


@pytest.mark.parametrize("part", ["train", "valid"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on(
    tmp_path: Path, feature_splits: Splits, monkeypatch: pytest.MonkeyPatch, number: int, part: str
) -> None:
    training.train(features(), tmp_path / "unbroken", progress=False)
    handlers = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]
    hooked = Hooked(getattr(feature_splits, part), signal_at(25 if part == "train" else 1, number))
    monkeypatch.setattr(data, "load", lambda config: replace(feature_splits, **{part: hooked}))
    result = training.train(features(), tmp_path / "broken", progress=False)
    assert result.interrupted
    assert not result.finished
    assert 22 <= result.step <= 30
    assert [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert iiae_fast.load(tmp_path / "broken").config == features().model  # what there is so far
    training.train(features(), tmp_path / "broken", resume=True, progress=False)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_a_second_signal_aborts(tmp_path: Path, feature_splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    def receive(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    # Both signals may arrive as one, so the second is sent by the first one's message.
    handler = signal.signal(signal.SIGINT, receive)
    try:
        hooked = Hooked(feature_splits.train, signal_at(25, signal.SIGINT))
        monkeypatch.setattr(data, "load", lambda config: replace(feature_splits, train=hooked))
        monkeypatch.setattr(ProgressDisplay, "say", lambda self, text: "again" in text and os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            training.train(features(), tmp_path, progress=False)
        assert signal.getsignal(signal.SIGINT) is receive
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not (tmp_path / CHECKPOINT).exists()


def test_threads_are_taken_from_the_checkpoint(tmp_path: Path, feature_splits: Splits) -> None:
    before = torch.get_num_threads()
    training.train(features(), tmp_path, threads=before + 1, progress=False, stop_after=0)
    training.train(features(), tmp_path, resume=True, progress=False, stop_after=0)
    assert load_tensors(tmp_path / CHECKPOINT)[1]["facts"]["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_torn_and_foreign_log_lines(tmp_path: Path, feature_splits: Splits) -> None:
    training.train(features(), tmp_path / "unbroken", progress=False)
    run = tmp_path / "torn"
    training.train(features(), run, progress=False, stop_after=0)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 20, "tot')
    training.train(features(), run, resume=True, progress=False)
    assert log_lines(run) == log_lines(tmp_path / "unbroken")
    text = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text("rubbish\n" + text)
    with pytest.raises(CheckpointError, match=r"log\.jsonl: line 1"):
        training.train(features(), run, resume=True, progress=False)


def test_run_file_is_readable(tmp_path: Path, feature_splits: Splits) -> None:
    training.train(features(), tmp_path, progress=False, stop_after=0)
    values = load_json(tmp_path / "run.json")
    assert Preset.from_dict(values["preset"]) == features()
    assert values["steps"] == 60
    assert values["train_pairs"] == 120
    assert values["batch_size"] == 4
