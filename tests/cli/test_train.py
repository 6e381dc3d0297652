"""``iiae train`` and ``iiae evaluate``."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import output_of, refuse, succeed
from tiny_run import tiny_preset

import iiae_fast
from iiae_fast import data, training


class TestTrain:
    OPTIONS = (
        "--image-size", "16", "--model.n-shared", "4", "--model.n-exclusive", "4", "--model.n-decoder", "4",
        "--optim.batch-size", "128", "--device", "cpu", "--threads", "1", "--quiet", "--log-every", "5",
    )  # fmt: skip

    def test_makes_the_run_that_the_library_makes(
        self, tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "trained"
        result = output_of(capsys, "train", "digits-cdcb", *self.OPTIONS, "--optim.epochs", "3", "--run-dir", out)
        assert result["finished"]
        assert result["step"] == 30
        assert (out / "model.safetensors").read_bytes() == (run_dir / "model.safetensors").read_bytes()
        (command,) = (out / "commands.txt").read_text().splitlines()
        assert command.startswith("iiae train digits-cdcb --image-size 16")

    def test_run_directory_in_use_and_other_settings_are_refused(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "already holds a run" in refuse(capsys, "train", "digits-cdcb", *self.OPTIONS, "--run-dir", run_dir)
        message = refuse(
            capsys,
            "train",
            "digits-cdcb",
            *self.OPTIONS,
            "--run-dir",
            run_dir,
            "--optim.epochs",
            "3",
            "--optim.lr",
            "1",
            "--resume",
        )
        assert "optim.lr" in message

    def test_loss_that_is_not_finite_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = refuse(
            capsys,
            "train",
            "digits-cdcb",
            *self.OPTIONS,
            "--optim.lr",
            "1e30",
            "--optim.epochs",
            "1",
            "--run-dir",
            tmp_path / "bad",
        )
        assert "step" in message


class TestEvaluate:
    def test_json_is_the_librarys_measurement(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        found = output_of(capsys, "evaluate", run_dir, "--metric", "cosine", "--ks", "1", "7")["retrieval"]
        expected = training.evaluate(iiae_fast.load(run_dir), data.load(tiny_preset().data).test, metric="cosine", ks=(1, 7))
        leak = found.pop("leak")
        assert found == expected
        assert leak["x_to_y"]["hits"] == round(expected["exclusive"]["x_to_y"] * 360)

    def test_table_shows_both_codes_and_the_leak(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        succeed("evaluate", run_dir, "--split", "valid")
        text = capsys.readouterr().out
        assert "144 valid pairs, sqeuclidean" in text
        assert text.count("exclusive") == 2
        assert text.count("partners found") == 2

    def test_cutoff_below_one_is_refused(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--ks 1 0" in refuse(capsys, "evaluate", run_dir, "--ks", "1", "0")

    def test_unknown_device_is_refused(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "warp" in refuse(capsys, "evaluate", run_dir, "--device", "warp")
