"""``iiae embed`` on many samples: streaming, damaged samples, resumption, codes that are no numbers; and all without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import output_of, refuse, succeed
from PIL import Image

import iiae_fast
from iiae_fast import export
from iiae_fast.cli import codes_file

BATCH = ("--batch-size", "4")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported shared encoder of y."""
    from tiny_run import tiny_run

    return export.to_onnx(iiae_fast.load(tiny_run()), "shared_y", tmp_path_factory.mktemp("onnx") / "shared_y.onnx")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 18 images of random pixels."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(18):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def expected(encoder: Path, images: Path, tmp_path: Path) -> np.ndarray:
    """The codes of these images, embedded without incident."""
    succeed("embed", encoder, images, "--out", tmp_path / "expected.npy", *BATCH)
    assert not (tmp_path / "expected.npy.partial").exists()
    codes: np.ndarray = np.load(tmp_path / "expected.npy")
    assert (codes.shape, codes.dtype) == ((18, 256), np.float32)
    return codes


def count_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that are encoded from now on."""
    sizes: list[int] = []
    append = codes_file.CodesFile.append

    def counted(self: codes_file.CodesFile, codes: np.ndarray, identities: list[str]) -> None:
        sizes.append(len(codes))
        append(self, codes, identities)

    monkeypatch.setattr(codes_file.CodesFile, "append", counted)
    return sizes


def test_a_damaged_image_is_named_and_what_was_done_is_kept(
    encoder: Path,
    images: Path,
    expected: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("embed", encoder, images, "--out", tmp_path / "codes.npy", *BATCH)
    damaged = images / "13.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    for _ in range(2):  # again and again, and nothing is lost
        message = refuse(capsys, *command)
        assert f"{damaged}: " in message
        assert f"12 of 18 codes are kept in {tmp_path / 'codes.npy.partial'}, and the same command goes on after" in message
        assert not (tmp_path / "codes.npy").exists()
    damaged.write_bytes(whole)
    sizes = count_encoded(monkeypatch)
    facts = output_of(capsys, *command)
    assert facts == {"code": "shared_y", "rows": 18, "dim": 256, "out": str(tmp_path / "codes.npy"), "resumed": 12}
    assert sizes == [4, 2]
    assert np.array_equal(np.load(tmp_path / "codes.npy"), expected)
    assert not (tmp_path / "codes.npy.partial").exists()


def test_a_damaged_image_may_be_left_aside(
    encoder: Path, images: Path, expected: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("embed", encoder, images, "--out", tmp_path / "codes.npy", *BATCH)
    (images / "13.png").write_bytes(b"no image")
    assert "begin its name with a dot" in refuse(capsys, *command)
    (images / "13.png").rename(images / ".13.png")
    assert output_of(capsys, *command)["resumed"] == 12
    np.testing.assert_allclose(np.load(tmp_path / "codes.npy"), np.delete(expected, 13, axis=0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", ["image", "name", "model"])
def test_rows_of_anything_else_are_computed_anew(
    change: str, encoder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resuming must give what a first attempt gives, whatever changed in between."""
    whole = (images / "17.png").read_bytes()
    (images / "17.png").write_bytes(b"")
    refuse(capsys, "embed", encoder, images, "--out", tmp_path / "codes.npy", *BATCH)
    (images / "17.png").write_bytes(whole)
    kept = {"image": 5, "name": 0, "model": 0}[change]
    if change == "image":
        (images / "05.png").write_bytes((images / "06.png").read_bytes())
    elif change == "name":
        (images / "00.png").rename(images / "16a.png")
    else:
        encoder = altered_encoder(encoder, tmp_path / "other.onnx")
    assert output_of(capsys, "embed", encoder, images, "--out", tmp_path / "codes.npy", *BATCH)["resumed"] == kept
    succeed("embed", encoder, images, "--out", tmp_path / "afresh.npy", *BATCH)
    np.testing.assert_allclose(np.load(tmp_path / "codes.npy"), np.load(tmp_path / "afresh.npy"), rtol=0, atol=1e-5)


def altered_encoder(source: Path, path: Path) -> Path:
    """The same graph of a model with one other weight."""
    from tiny_run import tiny_run

    model = iiae_fast.load(tiny_run())
    with torch.no_grad():
        next(model.shared_y.parameters()).mul_(1.5)
    return export.to_onnx(model, "shared_y", path)


def test_an_interrupted_write_is_cut_back_to_whole_rows(
    encoder: Path, images: Path, expected: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("embed", encoder, images, "--out", tmp_path / "codes.npy", *BATCH)
    partial = tmp_path / "codes.npy.partial"
    for name, keep, resumed in (("codes.npy", 128 + 4 * 256 * 7 + 13, 7), ("samples", 16 * 5 + 3, 5), ("codes.npy", 60, 0)):
        (images / "17.png").rename(tmp_path / "17.png")
        (images / "17.png").write_bytes(b"")
        refuse(capsys, *command)
        (tmp_path / "17.png").replace(images / "17.png")
        with (partial / name).open("r+b") as file:
            file.truncate(keep)
        assert output_of(capsys, *command)["resumed"] == resumed
        np.testing.assert_allclose(np.load(tmp_path / "codes.npy"), expected, rtol=0, atol=1e-5)


def test_two_at_once_are_refused(encoder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with codes_file.CodesFile(tmp_path / "codes.npy", "another"):
        message = refuse(capsys, "embed", encoder, images, "--out", tmp_path / "codes.npy")
    assert f"{tmp_path / 'codes.npy'}: another process is writing it" in message


def test_arrays_and_splits_resume_too(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "in.npy", rng.integers(0, 256, (10, 3, 16, 16), dtype=np.uint8))
    for source in ("test", tmp_path / "in.npy"):
        command = ("embed", run_dir, source, "--out", tmp_path / "codes.npy")
        succeed(*command)
        finished = np.load(tmp_path / "codes.npy")
        (tmp_path / "codes.npy").unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(codes_file.CodesFile, "finish", interrupt)
            capsys.readouterr()
            assert iiae_fast.cli.main([str(argument) for argument in command]) == 130
        assert output_of(capsys, *command)["resumed"] == len(finished)
        assert np.array_equal(np.load(tmp_path / "codes.npy"), finished)


def interrupt(file: codes_file.CodesFile) -> None:
    raise KeyboardInterrupt


def test_codes_that_are_not_finite(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = iiae_fast.load(run_dir)
    with torch.no_grad():
        next(model.shared_x.parameters())[0, 0, 0, 0] = float("nan")
    model.save(run_dir, preset=iiae_fast.presets.get("digits-cdcb", image_size=16).to_dict())
    message = refuse(capsys, "embed", run_dir, "test", "--out", tmp_path / "codes.npy")
    assert f"{run_dir}: the code shared_x of sample test_00000 is not finite (256 of 256 in this batch)" in message
    message = refuse(capsys, "translate", run_dir, "--out", tmp_path / "sheet.png")
    assert "translation of sample test_00000 to y is not finite" in message
    graph = export.to_onnx(model, "shared_x", tmp_path / "shared_x.onnx")
    np.save(tmp_path / "in.npy", np.zeros((3, 3, 16, 16), np.uint8))
    message = refuse(capsys, "embed", graph, tmp_path / "in.npy", "--out", tmp_path / "codes.npy")
    assert f"{graph}: the code shared_x of sample 00000 is not finite (3 of 3 in this batch)" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "run", "shared_x.onnx"]


@pytest.mark.parametrize("parent", ["file", "/proc"])
def test_an_output_that_cannot_be_written(
    parent: str,
    encoder: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Below a file, and in a file system where even root may not write: said before anything is encoded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    if parent == "/proc" and not Path(parent).is_dir():
        pytest.skip("no /proc here")
    monkeypatch.setattr(export.Session, "__call__", None)
    assert parent in refuse(capsys, "embed", encoder, images, "--out", f"{parent}/deep/codes.npy")


# The program, where torch and the rest of what a small deployment lacks cannot be imported.
WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {"torch", "triton", "onnx", "onnxscript", "safetensors", "sklearn", "matplotlib", "scipy"}:
            raise ModuleNotFoundError(f"{name} was imported", name=name)

sys.meta_path.insert(0, Absent)
from iiae_fast.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_small_deployment_embeds_and_searches(
    encoder: Path, images: Path, expected: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def program(*arguments: object) -> None:
        done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""

    program("embed", encoder, images, "--out", tmp_path / "codes.npy", *BATCH)
    assert np.array_equal(np.load(tmp_path / "codes.npy"), expected)
    program("search", tmp_path / "codes.npy", tmp_path / "codes.npy", "--k", "3", "--out", tmp_path / "hits.npz")
    assert np.load(tmp_path / "hits.npz")["indices"][:, 0].tolist() == list(range(18))


def test_killed_at_any_moment(encoder: Path, images: Path, expected: np.ndarray, tmp_path: Path) -> None:
    """kill -9 after the first rows are on disk; the same command then ends with the same codes."""
    rows = [*range(18), *np.random.default_rng(1).integers(18, size=982).tolist()]
    for index in range(18, len(rows)):  # enough that it is still at work when the kill comes
        (images / f"x{index:04}.png").hardlink_to(images / f"{rows[index]:02}.png")
    command = [sys.executable, "-m", "iiae_fast", "embed", str(encoder), str(images), "--out", str(tmp_path / "codes.npy")]
    command += [*BATCH, "--threads", "1", "--json"]
    samples = tmp_path / "codes.npy.partial" / "samples"
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        deadline = time.monotonic() + 120
        while not (samples.exists() and samples.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert 0 < samples.stat().st_size < 16 * len(rows)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["resumed"] > 0
    np.testing.assert_allclose(np.load(tmp_path / "codes.npy"), expected[rows], rtol=0, atol=1e-5)
