"""``iiae embed`` and ``iiae search``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import output_of, refuse, succeed
from emulation.runtime import emulate
from PIL import Image
from tiny_run import tiny_preset

import iiae_fast
from iiae_fast import data, retrieval, training


class TestEmbedAndSearch:
    @pytest.mark.parametrize("code", ["shared_x", "shared_y", "exclusive_x", "exclusive_y"])
    def test_codes_of_a_split_are_the_models(self, code: str, run_dir: Path, tmp_path: Path) -> None:
        out = tmp_path / "codes.npy"
        succeed("embed", run_dir, "test", "--code", code, "--out", out, "--batch-size", "256")
        codes = training.encode(iiae_fast.load(run_dir), data.load(tiny_preset().data).test)
        written = np.load(out)
        assert written.dtype == np.float32
        assert np.array_equal(written, getattr(codes, code))

    def test_joint_code_takes_both_domains(self, run_dir: Path, tmp_path: Path) -> None:
        batch = data.load(tiny_preset().data).test.batch(np.arange(5))
        np.savez(tmp_path / "pairs.npz", x=batch.x, y=batch.y)
        succeed("embed", run_dir, tmp_path / "pairs.npz", "--code", "joint", "--out", tmp_path / "codes.npy")
        with torch.inference_mode():
            # The same memory layout as the command's: another one rounds differently.
            x, y = (torch.from_numpy(a).contiguous(memory_format=torch.channels_last) for a in (batch.x, batch.y))
            expected = iiae_fast.load(run_dir).encode_shared(x=x, y=y)
        assert np.array_equal(np.load(tmp_path / "codes.npy"), expected.numpy())

    def test_folder_and_array_give_the_same_codes(self, run_dir: Path, tmp_path: Path) -> None:
        batch = data.load(tiny_preset().data).test.batch(np.arange(4))
        (tmp_path / "images").mkdir()
        for index, image in enumerate(batch.y):
            Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "images" / f"{index}.png")
        np.save(tmp_path / "images.npy", batch.y)
        succeed("embed", run_dir, tmp_path / "images", "--code", "shared_y", "--out", tmp_path / "a.npy")
        succeed("embed", run_dir, tmp_path / "images.npy", "--code", "shared_y", "--out", tmp_path / "b.npy")
        assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))

    @pytest.mark.parametrize(
        ("array", "says"),
        [
            (np.zeros((2, 3, 8, 8), np.uint8), "uint8 (N, 3, 16, 16)"),
            (np.zeros((2, 3, 16, 16), np.float32), "float32 (2, 3, 16, 16), this model takes uint8"),
            (np.zeros((0, 3, 16, 16), np.uint8), "N at least 1"),
        ],
    )
    def test_array_that_does_not_fit_is_refused(
        self, array: np.ndarray, says: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.save(tmp_path / "in.npy", array)
        assert says in refuse(capsys, "embed", run_dir, tmp_path / "in.npy", "--out", tmp_path / "codes.npy")

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("nowhere",), "nowhere"),
            (("test", "--batch-size", "0"), "--batch-size 0"),
            (("test", "--out", "codes.csv"), "--out codes.csv"),
            (("test", "--threads", "0"), "--threads 0"),
            (("test", "--threads", "1000000000000"), "--threads 1000000000000: accepted is a whole number from 1 to 4,096"),
        ],
    )
    def test_bad_options_are_refused(
        self, options: tuple[str, ...], says: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert says in refuse(capsys, "embed", run_dir, *options)

    def test_search_is_the_librarys(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rng = np.random.default_rng(0)
        database, queries = (rng.standard_normal((n, 6), dtype=np.float32) for n in (50, 7))
        np.save(tmp_path / "d.npy", database)
        np.save(tmp_path / "q.npy", queries)
        options = (
            "search",
            tmp_path / "d.npy",
            tmp_path / "q.npy",
            "--k",
            "4",
            "--metric",
            "cosine",
            "--out",
            tmp_path / "h.npz",
        )
        printed = output_of(capsys, *options)
        expected = retrieval.search(queries, database, 4, metric="cosine")
        with np.load(tmp_path / "h.npz") as written:
            assert np.array_equal(written["indices"], expected.indices)
            assert np.array_equal(written["distances"], expected.distances)
        assert printed["indices"] == expected.indices.tolist()
        succeed(*options)
        assert f"{expected.indices[6, 3]}  {expected.distances[6, 3]:.6g}" in capsys.readouterr().out

    def test_search_on_a_device(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = np.random.default_rng(0).standard_normal((50, 6), dtype=np.float32)
        np.save(tmp_path / "d.npy", rows)
        with emulate() as device:
            found = output_of(capsys, "search", tmp_path / "d.npy", tmp_path / "d.npy", "--k", "3", "--device", "cuda")
            assert device.sizes  # it was there
        assert found["indices"] == retrieval.search(rows, rows, 3).indices.tolist()

    def test_search_can_leave_out_the_query_itself(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save(tmp_path / "d.npy", np.arange(10, dtype=np.float32)[:, None])
        found = output_of(capsys, "search", tmp_path / "d.npy", tmp_path / "d.npy", "--k", "1", "--exclude-self")
        assert found["indices"] == [[1], [0], [1], [2], [3], [4], [5], [6], [7], [8]]

    def test_places_without_a_row_are_null_in_json(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save(tmp_path / "d.npy", np.arange(2, dtype=np.float32)[:, None])
        found = output_of(capsys, "search", tmp_path / "d.npy", tmp_path / "d.npy", "--k", "2", "--exclude-self")
        assert found == {"distances": [[1.0, None], [1.0, None]], "indices": [[1, -1], [0, -1]]}

    def test_values_without_distances_are_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save(tmp_path / "d.npy", np.full((3, 2), 1e30, np.float32))
        assert "queries row 0 has a squared norm of 2e+60" in refuse(
            capsys, "search", tmp_path / "d.npy", tmp_path / "d.npy", "--k", "1"
        )

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("--k", "0"), "k=0"),
            (("--k", "11"), "k=11"),
            (("--threads", "0"), "threads=0"),
            (("--threads", "1000000000000"), "threads=1000000000000: accepted is a whole number from 1 to 4,096"),
            (("--out", "x.npy"), "--out x.npy"),
            (("--device", "warp"), "device='warp': accepted are 'cpu' and 'cuda'"),
        ],
    )
    def test_bad_searches_are_refused(
        self, options: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.save(tmp_path / "d.npy", np.zeros((10, 2), np.float32))
        assert says in refuse(capsys, "search", tmp_path / "d.npy", tmp_path / "d.npy", *options)
