"""What a run does, step by step."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy_runs import CLASSES, FeaturePairs, Hooked, assert_same_run, digits, features, log_lines

import iiae_fast
from iiae_fast import data, objectives, training
from iiae_fast.config import TrainingOptions
from iiae_fast.data import Splits
from iiae_fast.errors import ConfigError, DataError, NonFiniteLossError
from iiae_fast.storage import load_json, load_tensors
from iiae_fast.training.run import noise_seed, rank
from iiae_fast.training.setup import validation_interval

CHECKPOINT = Path("checkpoints") / "last.safetensors"
TERMS = ("total", "rec_x", "rec_y", "kl_x", "kl_y", "kl_s", "kl_s_rx", "kl_s_ry")


def plain_steps(preset: iiae_fast.Preset, splits: Splits, steps: int) -> tuple[iiae_fast.IIAE, list[dict[str, float]]]:
    """The same training written out plainly."""
    torch.manual_seed(preset.optim.seed)
    model = iiae_fast.IIAE(preset.model).train()
    if preset.model.family != "feature":
        model.to(memory_format=torch.channels_last)
    optim = preset.optim
    adam = torch.optim.Adam(model.parameters(), lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
    sampler = data.sampler_for(splits.train, optim, preset.data)
    epoch_steps = len(sampler.batches(0))
    history = []
    for step in range(steps):
        epoch, position = divmod(step, epoch_steps)
        arrays = splits.train.batch(sampler.batches(epoch)[position], epoch)
        x, y, labels = (torch.tensor(array) for array in arrays)
        if x.dim() == 4:
            x, y = (images.contiguous(memory_format=torch.channels_last) for images in (x, y))
        if optim.lr_decay == "cosine":
            adam.param_groups[0]["lr"] = optim.lr * (1 + math.cos(math.pi * step / (epoch_steps * optim.epochs))) / 2
        out = model(x, y, seed=noise_seed(optim.seed, step))
        terms = objectives.compute(out, x, y, preset.objective, step, labels, len(splits.train))
        adam.zero_grad()
        terms.total.backward()
        adam.step()
        history.append({name: value.item() for name, value in terms.named().items()})
    return model, history


@pytest.mark.parametrize("family", ["feature", "spatial"])
def test_steps_are_those_written_out_plainly(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    preset = digits(epochs=1) if family == "spatial" else features(epochs=1, lr_decay="cosine")
    splits = data.load(preset.data) if family == "spatial" else request.getfixturevalue("feature_splits")
    result = training.train(preset, tmp_path, log_every=5, progress=False, options=TrainingOptions("fp32"))
    assert result.finished
    assert result.epoch == 1
    model, history = plain_steps(preset, splits, result.step)
    tensors, _ = load_tensors(tmp_path / CHECKPOINT)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[f"model/{name}"]), name
    lines = [line for line in log_lines(tmp_path) if "event" not in line]
    assert [line["step"] for line in lines] == list(range(5, result.step + 1, 5))
    for line in lines:
        interval = history[line["step"] - 5 : line["step"]]
        for name in interval[0]:
            assert line[name] == pytest.approx(np.mean([row[name] for row in interval]), rel=1e-6), name
        assert line["kl_annealing"] == pytest.approx(1 - math.exp(-(line["step"] - 1) / preset.objective.kl_annealing_steps))
    if preset.optim.lr_decay == "cosine":
        assert lines[0]["lr"] > lines[-1]["lr"] > 0
        assert lines[-1]["lr"] == pytest.approx(preset.optim.lr * (1 + math.cos(math.pi * (result.step - 1) / result.step)) / 2)


def test_the_run_directory(tmp_path: Path, feature_splits: Splits) -> None:
    run = tmp_path / "a" / "b"
    result = training.train(features(), run, progress=False)
    assert result.run_dir == run
    assert result.finished
    assert not result.interrupted
    lines = log_lines(run)
    train_lines = [line for line in lines if "event" not in line]
    assert [line["step"] for line in train_lines] == [20, 40, 60]
    assert {*TERMS, "classification", "lr", "kl_annealing", "epoch", "step"} == set(train_lines[0])
    valid_lines = [line for line in lines if line.get("event") == "validation"]
    assert [line["step"] for line in valid_lines] == [30, 60]
    # The best model is the one at the step that the log says, and loads with its facts.
    best = [line for line in valid_lines if line["best"]][-1]
    assert result.best is not None
    assert result.best["step"] == best["step"]
    assert result.best["value"] == (best["x_to_y"] + best["y_to_x"]) / 2
    config = load_json(run / "config.json")
    assert config["training"]["step"] == best["step"]
    assert config["preset"] == features().to_dict()
    model = iiae_fast.load(run)
    found = training.evaluate(model, feature_splits.valid)
    assert found["shared"]["x_to_y"] == best["x_to_y"]
    assert found["shared"]["y_to_x"] == best["y_to_x"]
    assert found["exclusive"]["x_to_y"] == best["exclusive_x_to_y"]
    assert any((run / "tensorboard").iterdir())


def test_tensorboard_holds_the_log_and_hides_what_was_undone(tmp_path: Path, feature_splits: Splits) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    training.train(features(), tmp_path, progress=False)
    (tmp_path / CHECKPOINT).unlink()
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    time.sleep(1.1)  # event files are named by the second
    training.train(features(), tmp_path, progress=False)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = [line for line in log_lines(tmp_path) if "event" not in line]
    for name in ("rec_x", "lr", "kl_annealing"):
        points = events.Scalars(f"train/{name}")
        assert [point.step for point in points] == [line["step"] for line in lines]
        assert [point.value for point in points] == pytest.approx([line[name] for line in lines])
    assert [point.step for point in events.Scalars("validation/x_to_y")] == [30, 60]


def test_without_tensorboard(
    tmp_path: Path, feature_splits: Splits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    training.train(features(), tmp_path)
    assert capsys.readouterr().err.count("TensorBoard is not installed") == 1
    assert not (tmp_path / "tensorboard").exists()
    assert log_lines(tmp_path)


def test_progress_goes_to_stderr_and_only_when_asked(
    tmp_path: Path, feature_splits: Splits, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iiae_fast.training.progress._LINE_SECONDS", 0.0)
    training.train(features(), tmp_path / "shown", log_every=1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "epoch 2/2  step 60/60  loss " in shown.err
    assert "pairs/s" in shown.err
    assert "left" in shown.err
    training.train(features(), tmp_path / "quiet", progress=False)
    assert capsys.readouterr() == ("", "")


def test_without_validation_pairs_the_last_model_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "load", lambda config: Splits(FeaturePairs(40), FeaturePairs(0), FeaturePairs(8)))
    result = training.train(features(), tmp_path, progress=False)
    assert result.best is None
    assert result.finished
    last, _ = load_tensors(tmp_path / CHECKPOINT)
    for name, tensor in iiae_fast.load(tmp_path).state_dict().items():
        assert torch.equal(tensor, last[f"model/{name}"])


@pytest.mark.parametrize("name", ["dvcca", "vae", "beta_vae", "total_correlation", "hsic"])
def test_objectives_without_cross_terms_choose_by_loss(tmp_path: Path, feature_splits: Splits, name: Any) -> None:
    preset = replace(features(), objective=replace(features().objective, name=name))
    result = training.train(preset, tmp_path, progress=False)
    assert result.best is not None
    assert result.best["metric"] == "loss"
    lines = [line for line in log_lines(tmp_path) if line.get("event") == "validation"]
    assert result.best["value"] == min(line["total"] for line in lines)


def test_ranking_of_validations() -> None:
    def recall(value: float, loss: float) -> tuple[float, float]:
        return rank({"metric": "recall@1", "value": value, "loss": loss, "step": 1})

    assert recall(0.9, 5.0) > recall(0.8, 1.0)
    assert recall(0.9, 4.0) > recall(0.9, 5.0)
    assert not recall(0.9, 5.0) > recall(0.9, 5.0)  # of equals the first stays
    assert rank({"metric": "loss", "value": 1.0, "loss": 1.0}) > rank({"metric": "loss", "value": 2.0, "loss": 2.0})


def test_validation_interval() -> None:
    assert validation_interval(20, 64, 0) is None
    assert validation_interval(20, 64, 144) == 20  # an epoch
    assert validation_interval(2, 8, 100) == 50  # short epochs share one
    assert validation_interval(6750, 8, 6000) == 6750
    assert validation_interval(6750, 8, 100) == 1000  # a long epoch has several
    assert validation_interval(6750, 8, 1000) == 2500


def test_same_seed_same_run_whatever_the_speed_of_the_data(
    tmp_path: Path, feature_splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.train(features(), tmp_path / "a", progress=False)
    random = np.random.default_rng()
    slow = Hooked(feature_splits.train, lambda: time.sleep(random.exponential(0.004)))
    monkeypatch.setattr(data, "load", lambda config: replace(feature_splits, train=slow))
    state = torch.get_rng_state()
    training.train(features(), tmp_path / "b", progress=False, checkpoint_seconds=0)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert torch.equal(state, torch.get_rng_state()), "the caller's random state changed"
    training.train(features(seed=1), tmp_path / "c", progress=False)
    assert log_lines(tmp_path / "c") != log_lines(tmp_path / "a")


def test_noise_seeds_are_a_pure_function() -> None:
    seeds = [noise_seed(seed, step) for seed in (0, 1, 2**63 - 1) for step in range(1000)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert noise_seed(7, 11) == 3932936240103076808


def test_a_nan_in_the_data_is_named(tmp_path: Path, feature_splits: Splits) -> None:
    first = 16  # in a batch that follows so many others
    row = data.sampler_for(feature_splits.train, features().optim, features().data).batches(0)[first, 0]
    feature_splits.train.x[row] = np.nan  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteLossError, match=rf"(rec_x|kl_x|kl_s) became nan at step {first + 1} of 60") as caught:
        training.train(features(), tmp_path, progress=False, log_every=7, checkpoint_seconds=0)
    assert f"last good checkpoint is {tmp_path / CHECKPOINT} (step {first})" in str(caught.value)
    assert "lower optim.lr (it is 0.01)" in str(caught.value)
    tensors, metadata = load_tensors(tmp_path / CHECKPOINT)
    assert metadata["state"]["step"] == first
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert all(math.isfinite(value) for line in log_lines(tmp_path) for value in line.values() if isinstance(value, float))


def test_a_diverging_run_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"became (nan|inf) at step \d+ of 80\. No checkpoint was written yet"):
        training.train(digits(lr=1e30), tmp_path, progress=False)
    assert not (tmp_path / CHECKPOINT).exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_validation_pairs_whose_codes_overflow_are_named(tmp_path: Path, feature_splits: Splits) -> None:
    feature_splits.valid.x[3] = 3e38  # type: ignore[attr-defined]
    message = r"(rec|kl)_\w+ of the validation pairs became (nan|inf) at step 30 of 60\. The last good .* \(step \d+\)"
    with pytest.raises(NonFiniteLossError, match=message):
        training.train(features(), tmp_path, progress=False, checkpoint_seconds=0)
    assert not (tmp_path / "model.safetensors").exists()


def test_non_finite_weights_are_never_saved(tmp_path: Path, feature_splits: Splits) -> None:
    # The first loss is finite, the weights after it are not, and a checkpoint is due then.
    with pytest.raises(NonFiniteLossError, match=r"model/\S+ is not finite at step 1 of 60\. The last good .* \(step 0\)"):
        training.train(features(lr=1e39), tmp_path, progress=False, checkpoint_seconds=0)
    assert load_tensors(tmp_path / CHECKPOINT)[1]["state"]["step"] == 0


class _Synchronizations(TorchDispatchMode):
    """Counts what would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(
            word in str(func) for word in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default", "masked_select")
        ):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["feature", "spatial"])
def test_steps_do_not_synchronize(tmp_path: Path, family: str, request: pytest.FixtureRequest) -> None:
    from iiae_fast.training.run import Run

    preset = digits() if family == "spatial" else features()
    if family == "feature":
        request.getfixturevalue("feature_splits")
    counts: list[list[str]] = []
    step = Run._step

    def counted(self: Any, batch: Any) -> None:
        with _Synchronizations() as mode:
            step(self, batch)
        counts.append(mode.found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_step", counted)
        training.train(preset, tmp_path, progress=False)
    assert len(counts) >= 60
    assert not any(counts), counts[0]


def test_labels_must_fit_the_classifier(tmp_path: Path, feature_splits: Splits) -> None:
    fewer = replace(features(), model=replace(features().model, classes=CLASSES - 1))
    with pytest.raises(ConfigError, match=r"model\.classes=3: the labels go from 0 to 3"):
        training.train(fewer, tmp_path / "a", progress=False)
    none = replace(features(), model=replace(features().model, classes=0))
    with pytest.raises(ConfigError, match=r"objective\.class_weight=0\.5: needs a model"):
        training.train(none, tmp_path / "b", progress=False)
    feature_splits.train.labels = None
    with pytest.raises(ConfigError, match=r"objective\.class_weight=0\.5: needs class labels"):
        training.train(features(), tmp_path / "c", progress=False)
    assert not any((tmp_path / name).exists() for name in "abc")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device='tpu'"),
        ({"device": "cuda:99"}, "device='cuda:99': no such CUDA device"),
        ({"threads": 0}, "threads=0"),
        ({"threads": 10**12}, "threads=1000000000000: accepted is a whole number from 1 to 4,096"),
        ({"log_every": 0}, "log_every=0"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds=-1.0"),
        ({"stop_after": float("nan")}, "stop_after=nan"),
    ],
)
def test_bad_arguments(tmp_path: Path, feature_splits: Splits, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        training.train(features(), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_data_of_another_shape(tmp_path: Path, feature_splits: Splits) -> None:
    wider = replace(features(), model=replace(features().model, feature_dim=7))
    with pytest.raises(ConfigError, match=r"data's x has shape \(6,\), the model takes \(7,\)"):
        training.train(wider, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_is_a_file(tmp_path: Path, feature_splits: Splits) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        training.train(features(), tmp_path / "run", progress=False)


@pytest.mark.parametrize("part", ["train", "valid"])
def test_errors_of_the_data_come_through(
    tmp_path: Path, feature_splits: Splits, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail() -> None:
        raise DataError("photo.png: truncated")

    broken = replace(feature_splits, **{part: Hooked(getattr(feature_splits, part), fail)})
    monkeypatch.setattr(data, "load", lambda config: broken)
    with pytest.raises(DataError, match=r"photo\.png: truncated"):
        training.train(features(), tmp_path, progress=False)
