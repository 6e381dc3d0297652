"""``iiae demo``."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
from command_line import output_of

from iiae_fast.cli import deploy


def test_demo_ends_with_results_and_does_not_train_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "demo"
    options = ("demo", "--run-dir", run_dir, "--image-size", "16", "--epochs", "1", "--threads", "1", "--quiet")
    printed = output_of(capsys, *options)
    results = json.loads((run_dir / "results.json").read_text())
    assert results == printed
    for code in ("shared", "exclusive"):
        for way in ("x_to_y", "y_to_x"):
            assert 0 <= results["retrieval"][code][way] <= 1
    assert results["retrieval"]["chance"] == pytest.approx(1 / 360)
    assert results["onnx"]["top1_agreement"] >= 0.999
    assert results["onnx"]["max_relative_error"] <= 1e-4
    assert set(results["onnx"]["graphs"]) == {"shared_x", "shared_y", "exclusive_x", "exclusive_y", "x_to_y", "y_to_x"}
    times = results["times"]
    assert 0 < times["training_seconds"] <= times["total_seconds"]
    assert results["environment"]["versions"]["torch"] == metadata.version("torch")
    weights, log = ((run_dir / name).read_bytes() for name in ("model.safetensors", "log.jsonl"))

    monkeypatch.setattr(
        deploy, "export_graphs", lambda *given, **options: deploy.read_parity(run_dir / "onnx")
    )  # the slow part
    again = output_of(capsys, *options)
    assert (run_dir / "model.safetensors").read_bytes() == weights
    assert (run_dir / "log.jsonl").read_bytes() == log
    assert again["retrieval"] == results["retrieval"]
    assert again["training"]["steps"] == results["training"]["steps"]
    assert (run_dir / "report.html").is_file()
