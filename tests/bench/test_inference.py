"""The inference benchmark at its smallest: everyone competes, what is wrong is refused, figures hang together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from iiae_fast.bench import inference
from iiae_fast.bench.registry import OURS, RIVALS, Settings, Unavailable
from iiae_fast.errors import InputError


def test_cases() -> None:
    (case,) = inference.cases(Settings(toy=True, quick=True))
    assert [contestant.name for contestant in case.contestants] == ["onnx fp32", "onnx int8", "eager"]
    assert {contestant.name for contestant in case.contestants} <= {*OURS, *RIVALS}
    for contestant in case.contestants:
        result = contestant.make()()
        check = contestant.check or case.check
        assert check(result) == ""
        assert check(result * 1.5).startswith("relative error 0.")
        assert check(result * float("nan")) != ""
    assert case.work.items == 2
    assert case.work.flops is not None
    assert case.work.flops > 1e5


def test_sessions_are_left_out_where_nothing_can_be_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with ONNX Runtime alone: the rest is measured."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    (case,) = inference.cases(Settings(toy=True, quick=True))
    for contestant in case.contestants[:2]:
        with pytest.raises(Unavailable, match=r"onnxscript is not installed; install it with: pip install 'iiae_fast\[onnx\]'"):
            contestant.make()
    case.contestants[2].make()()


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (80, 3, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "samples.npy", samples)
    common = ["--image-size", "16", "--batches", "1", "3", "--seconds", "0", "--threads", "1"]
    threads = torch.get_num_threads()
    try:
        assert inference.main([*common, "--samples", str(tmp_path / "samples.npy"), "--json"]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["batch"], row["contestant"]) for row in rows] == [
        (batch, name) for batch in (1, 3) for name in ("eager", "onnx fp32", "onnx int8")
    ]
    for row in rows:
        assert 0 < row["p50"] <= row["p99"]
        assert row["cpu"] > 0
        assert row["runs"] == 10
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["p50"])
        if row["contestant"] == "eager":
            assert row["speedup"] == 1
            assert row["parity"] is None
        else:
            assert row["parity"]["samples"] == 80 - 64  # none that int8 ranges were calibrated on
    assert rows[1]["parity"]["max_relative_error"] < 1e-4 < rows[2]["parity"]["max_relative_error"]


def test_bad_arguments(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((64, 3, 16, 16), np.float32))
    for arguments, message in [
        (["--batches", "0"], "--batches 0: accepted is a whole number"),
        (["--threads", "-1"], "--threads -1: accepted is a whole number"),
        (
            ["--image-size", "16", "--samples", str(tmp_path / "few.npy")],
            r"holds \(64, 3, 16, 16\), accepted are more than 64 rows",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            inference.main(arguments)
    ended = subprocess.run(
        [sys.executable, "-m", "iiae_fast.bench.inference", "--threads", "0"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("iiae_fast.bench.inference: --threads 0")
