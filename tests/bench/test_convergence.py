"""Whole runs beside the plain port's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from iiae_fast import load, training
from iiae_fast.bench import convergence
from iiae_fast.bench.command import main
from iiae_fast.bench.training import copy_state, give_weights, plain_model
from iiae_fast.config import ModelConfig
from iiae_fast.errors import InputError
from iiae_fast.model import IIAE

TOY = ["convergence", "--preset", "digits-cdcb", "--image-size", "16", "--epochs", "3", "--seeds", "1", "--target", "0.001"]


def test_runs_are_compared_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TOY, "--runs", str(tmp_path), "--contestants", "iiae_fast", "plain"]
    assert main(command) == 0
    first = capsys.readouterr().out
    runs = {run["contestant"]: run for run in (json.loads(line) for line in first.splitlines() if line.startswith("{"))}
    assert set(runs) == {"iiae_fast", "plain"}
    for name, run in runs.items():
        assert 0 <= run["x_to_y"] <= 1
        assert run["cpu_seconds"] > 0
        assert run["target_step"] > 0
        assert run["target_cpu_seconds"] <= run["cpu_seconds"]
        log = [json.loads(line) for line in (tmp_path / f"{name}-0" / "log.jsonl").read_text().splitlines()]
        totals = [line["total"] for line in log if "event" not in line]
        assert totals[-1] < 0.9 * totals[0], "it learned"
    assert load(tmp_path / "plain-0").config == load(tmp_path / "iiae_fast-0").config

    def trains(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train", trains)
    monkeypatch.setattr(convergence, "train_plain", trains)
    assert main(command) == 0
    assert capsys.readouterr().out == first
    page = (tmp_path / "curves.html").read_text()
    assert page.count("<svg") == 8
    assert page.count('class="line" stroke="#0b6bcb"') == page.count('class="line" stroke="#c0392b"') == 8


def test_a_run_ends_with_the_epoch_that_finds_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contestants = ["--contestants", "iiae_fast", "plain"]
    for until, epochs in ((0.001, 1), (1.0, 3)):  # digits of a few epochs are never all found
        runs = tmp_path / str(epochs)
        assert main([*TOY, "--until", str(until), "--runs", str(runs), *contestants]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        assert [run["contestant"] for run in found] == ["iiae_fast", "plain"]
        assert len({run["steps"] for run in found}) == 1
        for run in found:
            log = [json.loads(line) for line in (runs / run["run"] / "log.jsonl").read_text().splitlines()]
            validated = [line["step"] for line in log if line.get("event") == "validation"]
            assert run["steps"] == validated[-1]
            assert run["steps"] % epochs == 0
            assert (min(run["x_to_y"], run["y_to_x"]) >= until) == (epochs == 1)
            assert run["cpu_seconds"] > 0


def test_a_run_stops_with_the_epoch_that_reaches_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contestants = ["iiae_fast", "plain", "plain-compiled"]
    assert main([*TOY, "--stop", "--runs", str(tmp_path), "--contestants", *contestants]) == 0  # the target is 0.1 %
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [run["contestant"] for run in found] == contestants
    for run in found:
        assert run["steps"] == run["target_step"]
        assert run["target_cpu_seconds"] == run["cpu_seconds"]
    plain, compiled = ((tmp_path / f"{name}-0" / "log.jsonl").read_text().splitlines() for name in contestants[1:])
    first = [json.loads(lines[0]) for lines in (plain, compiled)]
    assert first[0]["total"] == pytest.approx(first[1]["total"], rel=0.2), "the same training but for its noise"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "sketchy"], "image_size"),
        (["--seeds", "0"], "--seeds=0"),
        (["--batch", "1"], "--batch=1"),
        (["--until", "0"], "--until 0"),
        (["--x"], "--x"),
    ],
)
def test_bad_options(options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(["convergence", *options])


def test_a_plain_model_becomes_the_packages_and_back() -> None:
    config = ModelConfig("spatial", image_size=32, n_shared=4, n_exclusive=2, n_decoder=3)
    torch.manual_seed(0)
    plain, ours = plain_model(config).train(), IIAE(config)
    x, y = torch.rand(2, 4, *config.input_shape) * 2 - 1
    plain(x, y)  # moves BatchNorm's statistics
    copy_state(plain, ours)
    back = plain_model(config)
    give_weights(ours, back)
    for one, other in zip(plain.parameters(), back.parameters(), strict=True):
        assert torch.equal(one, other)
    out = ours.eval()(x, y, sample=False)
    expected = plain.eval()(x, y, sample=False)
    torch.testing.assert_close(out.x_hat, expected.x_hat, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.r_y.mean, expected.r_y[0], rtol=1e-4, atol=1e-5)
