"""``iiae export``, ``iiae report`` and ``iiae import-official``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import features_file, output_of, refuse, succeed
from tiny_run import tiny_preset

import iiae_fast
from iiae_fast import data, export, official, training
from iiae_fast.config import ModelConfig
from iiae_fast.model import IIAE


class TestExportAndReport:
    def test_export_verifies_and_onnx_embeds_alike(
        self, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = output_of(capsys, "export", run_dir, "--graphs", "shared_x", "shared_y", "joint")
        assert [report["graph"] for report in found["graphs"]] == ["shared_x", "shared_y", "joint"]
        assert all(report["max_relative_error"] <= 1e-4 for report in found["graphs"])
        assert found["retrieval"]["queries"] == 720
        assert found["retrieval"]["top1_agreement"] >= 0.999
        assert found["retrieval"]["top10_agreement"] >= 0.999
        measured = training.evaluate(iiae_fast.load(run_dir), data.load(tiny_preset().data).test)
        assert found["retrieval"]["x_to_y"] == pytest.approx(measured["shared"]["x_to_y"], abs=0.003)

        for name in ("shared_x", "joint"):
            succeed("embed", run_dir / "onnx" / f"{name}.onnx", "test", "--out", tmp_path / "onnx.npy")
            succeed("embed", run_dir, "test", "--code", name, "--out", tmp_path / "torch.npy")
            ours, theirs = np.load(tmp_path / "onnx.npy"), np.load(tmp_path / "torch.npy")
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
        message = refuse(capsys, "embed", run_dir / "onnx" / "shared_x.onnx", "test", "--code", "shared_y")
        assert "holds graph shared_x" in message

        succeed("report", run_dir, "--neighbours", "3")
        page = (run_dir / "report.html").read_text()
        assert "same nearest row" in page
        assert page.count("data:image/png;base64,") == 9
        assert page.count('<svg class="chart"') >= 12
        assert {path.stem for path in (run_dir / "figures").iterdir()} >= {"reconstructions", "swaps_x", "style_x_to_y"}

    def test_uint8_graphs_take_file_images(self, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "graphs"
        output_of(capsys, "export", run_dir, "--graphs", "exclusive_y", "--input", "uint8", "--out", out, "--samples", "9")
        assert export.load(out / "exclusive_y.onnx").inputs[0].dtype == "uint8"
        succeed("embed", out / "exclusive_y.onnx", "test", "--out", tmp_path / "onnx.npy")
        codes = training.encode(iiae_fast.load(run_dir), data.load(tiny_preset().data).test)
        assert np.abs(np.load(tmp_path / "onnx.npy") - codes.exclusive_y).max() <= 1e-4 * np.abs(codes.exclusive_y).max()

    def test_int8_is_calibrated_on_training_pairs(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        graphs = ("shared_x", "shared_y", "x_to_y")
        found = output_of(capsys, "export", run_dir, "--graphs", *graphs, "--precision", "int8", "--calibration", "100")
        assert [report["precision"] for report in found["graphs"]] == ["int8"] * 3
        assert all(1e-5 < report["max_relative_error"] <= 1e-1 for report in found["graphs"])
        assert found["retrieval"]["top1_agreement"] >= 0.9  # of codes hardly trained
        assert 0.9 <= found["retrieval"]["top10_agreement"] < 1
        session = export.load(run_dir / "onnx" / "x_to_y.onnx")
        assert (session.metadata["calibration_samples"], session.metadata["run"]) == ("100", "run")
        message = refuse(capsys, "export", run_dir, "--graphs", "decode_y", "--precision", "int8")
        assert "graph decode_y has no layer but its last that cpu would run in int8" in message
        assert not (run_dir / "onnx" / "decode_y.onnx").exists()

    def test_heads_are_those_of_encoders(self, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        graphs = ("shared_x", "shared_y", "decode_x")
        found = output_of(capsys, "export", run_dir, "--graphs", *graphs, "--head", "gaussian", "--samples", "9")
        assert "retrieval" not in found  # which is by the means
        succeed("embed", run_dir / "onnx" / "shared_y.onnx", "test", "--out", tmp_path / "packed.npy")
        succeed("embed", run_dir, "test", "--code", "shared_y", "--out", tmp_path / "mean.npy")
        packed, mean = np.load(tmp_path / "packed.npy"), np.load(tmp_path / "mean.npy")
        assert packed.shape[1] == 2 * mean.shape[1]
        np.testing.assert_allclose(packed[:, : mean.shape[1]], mean, rtol=0, atol=1e-4 * np.abs(mean).max())

    def test_an_output_directory_that_cannot_be_written(
        self, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("")
        message = refuse(capsys, "export", run_dir, "--graphs", "exclusive_x", "--out", tmp_path / "file" / "onnx")
        assert str(tmp_path / "file") in message

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("--graphs", "joint", "joint"), "name each at most once"),
            (("--samples", "0"), "--samples 0"),
            (("--calibration", "-3"), "--calibration -3"),
            (("--max-batch", "0"), "max_batch=0"),
            (("--graphs", "decode_x", "--input", "uint8"), "input='uint8'"),
        ],
    )
    def test_bad_exports_are_refused(
        self, options: tuple[str, ...], says: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert says in refuse(capsys, "export", run_dir, *options)

    def test_report_without_export_or_log_still_comes(self, run_dir: Path, tmp_path: Path) -> None:
        (run_dir / "log.jsonl").unlink()
        succeed("report", run_dir, "--out", tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert "no training log" in page
        assert "iiae export" in page

    @pytest.mark.parametrize(("option", "value"), [("--neighbours", "0"), ("--seed", "-1"), ("--seed", str(2**64))])
    def test_bad_report_options_are_refused(
        self, option: str, value: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert f"{option} {value}: accepted is a whole number" in refuse(capsys, "report", run_dir, option, value)


class TestImportOfficial:
    CONFIG = ModelConfig("feature", feature_dim=16, n_shared=4, n_exclusive=4, n_decoder=8, shared_dim=4, exclusive_dim=3)

    def test_variables_become_a_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = IIAE(self.CONFIG).eval()
        monkeypatch.setattr(official, "read_checkpoint", lambda path: official.gather_variables(model))
        out, path = tmp_path / "imported", features_file(tmp_path)
        facts = output_of(
            capsys, "import-official", tmp_path / "model.ckpt", "--out", out, "--preset", "sketchy", "--data-root", path
        )
        assert facts["model"]["shared_dim"] == 4
        for name, tensor in iiae_fast.load(out).state_dict().items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(tensor, model.state_dict()[name])
        assert output_of(capsys, "evaluate", out)["retrieval"]["pairs"] == 40

    def test_without_a_preset_its_data_are_unknown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(official, "read_checkpoint", lambda path: official.gather_variables(IIAE(self.CONFIG)))
        succeed("import-official", tmp_path / "model.ckpt", "--out", tmp_path / "imported")
        assert "--preset" in refuse(capsys, "evaluate", tmp_path / "imported")
        assert "of the spatial family" in refuse(
            capsys, "import-official", tmp_path / "model.ckpt", "--out", tmp_path / "imported", "--preset", "maps"
        )

    def test_missing_checkpoint_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "nothing.ckpt" in refuse(capsys, "import-official", tmp_path / "nothing.ckpt", "--out", tmp_path / "imported")
