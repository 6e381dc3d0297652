"""``iiae data``, and features from file to report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import features_file, output_of, picture, refuse, succeed

from iiae_fast import data, presets


class TestData:
    def test_sheet_and_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "sheet.png"
        succeed("data", "digits-cdcb", "--image-size", "16", "--count", "5", "--out", out)
        text = capsys.readouterr().out
        assert "1,293" in text
        assert "360" in text
        assert "contact sheet of 5 training pairs" in text  # from all over the set, not its first
        config = presets.get("digits-cdcb", image_size=16).data
        assert np.array_equal(picture(out), data.contact_sheet(data.load(config).train, 5).transpose(2, 0, 1))

    def test_features_have_no_sheet(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = features_file(tmp_path)
        found = output_of(capsys, "data", "features", "--root", path)
        assert found["contact_sheet"] is None
        assert found["splits"][0]["split"] == "train"
        assert "features have no picture" in refuse(capsys, "data", "features", "--root", path, "--out", tmp_path / "x.png")


def test_feature_family_goes_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, path = tmp_path / "run", features_file(tmp_path)
    small = ("--model.feature-dim", "16", "--model.n-shared", "4", "--model.n-exclusive", "4", "--model.n-decoder", "8")
    codes = ("--model.shared-dim", "4", "--model.exclusive-dim", "3", "--optim.epochs", "2", "--quiet", "--threads", "1")
    succeed("train", "sketchy", *small, *codes, "--data-root", path, "--run-dir", run_dir)
    found = output_of(capsys, "evaluate", run_dir)
    assert found["metric"] == "cosine"
    assert set(found["retrieval"]["gallery"]["shared"]["by_class"]["x_to_y"]) >= {"map@all"}
    succeed("evaluate", run_dir)
    assert "map@all" in capsys.readouterr().out
    succeed("translate", run_dir, "--count", "5", "--out", tmp_path / "y.npy")
    assert np.load(tmp_path / "y.npy").shape == (5, 16)
    np.save(tmp_path / "in.npy", np.load(path)["x"][:7])
    succeed("embed", run_dir, tmp_path / "in.npy", "--out", tmp_path / "codes.npy")
    assert np.load(tmp_path / "codes.npy").shape == (7, 4)
    succeed("report", run_dir)
    assert "map@all" in (run_dir / "report.html").read_text()
    bad = np.load(tmp_path / "in.npy")
    bad[3, 2] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    assert "not finite in row 3" in refuse(capsys, "embed", run_dir, tmp_path / "bad.npy", "--out", tmp_path / "codes.npy")
