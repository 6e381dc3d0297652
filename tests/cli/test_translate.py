"""``iiae translate``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import picture, refuse, succeed
from PIL import Image
from tiny_run import tiny_preset

import iiae_fast
from iiae_fast import data
from iiae_fast.reports.grids import to_images


class TestTranslate:
    def test_images_become_one_file_each(self, run_dir: Path, tmp_path: Path) -> None:
        test = data.load(tiny_preset().data).test.batch(np.arange(3))
        sources = []
        for index, image in enumerate(test.x):
            sources.append(tmp_path / f"in{index}.png")
            Image.fromarray(image.transpose(1, 2, 0)).save(sources[-1])
        succeed("translate", run_dir, *sources, "--seed", "5", "--out", tmp_path / "out")
        model = iiae_fast.load(run_dir)
        with torch.inference_mode():
            expected = model.translate(x=torch.from_numpy(test.x), generator=torch.Generator().manual_seed(5))
        for index, image in enumerate(to_images(expected)):
            assert np.array_equal(picture(tmp_path / "out" / f"in{index}_to_y.png"), image)

    def test_style_reference_gives_its_exclusive_code(self, run_dir: Path, tmp_path: Path) -> None:
        test = data.load(tiny_preset().data).test.batch(np.arange(2))
        Image.fromarray(test.x[1].transpose(1, 2, 0)).save(tmp_path / "style.png")
        succeed("translate", run_dir, "--to", "x", "--count", "2", "--style", tmp_path / "style.png", "--out", tmp_path / "out")
        model = iiae_fast.load(run_dir)
        with torch.inference_mode():
            expected = model.translate(y=torch.from_numpy(test.y), style=torch.from_numpy(test.x[1:]), to="x")
        for index, image in enumerate(to_images(expected)):
            assert np.array_equal(picture(tmp_path / "out" / f"test_{index:05}_to_x.png"), image)

    def test_sheet_is_the_default_and_follows_the_seed(self, run_dir: Path, tmp_path: Path) -> None:
        succeed("translate", run_dir)
        first = (run_dir / "translated_to_y.png").read_bytes()
        succeed("translate", run_dir, "--out", tmp_path / "again.png")
        succeed("translate", run_dir, "--seed", "1", "--draws", "2", "--out", tmp_path / "other.png")
        assert (tmp_path / "again.png").read_bytes() == first
        assert (tmp_path / "other.png").read_bytes() != first

    def test_draws_get_files_of_their_own(self, run_dir: Path, tmp_path: Path) -> None:
        succeed("translate", run_dir, "--count", "2", "--draws", "2", "--out", tmp_path / "out")
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {f"test_0000{row}_to_y_{draw}.png" for row in (0, 1) for draw in (1, 2)}

    def test_samples_of_one_name_are_refused(self, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            Image.new("RGB", (16, 16)).save(tmp_path / folder / "same.png")
        message = refuse(capsys, "translate", run_dir, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
        assert "two samples are named same" in message

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("--count", "0"), "--count 0"),
            (("--draws", "0"), "--draws 0"),
            (("--seed", "-1"), "--seed -1"),
            (("--seed", str(2**64)), "--seed 18446744073709551616: accepted is a whole number from 0 to"),
            (("--style", "x.png", "--draws", "2"), "a style reference gives one"),
            (("--style", "nowhere.png"), "nowhere.png"),
            (("--out", "x.npy"), "a .png file or a directory"),
        ],
    )  # fmt: skip
    def test_bad_options_are_refused(
        self, options: tuple[str, ...], says: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert says in refuse(capsys, "translate", run_dir, *options)
