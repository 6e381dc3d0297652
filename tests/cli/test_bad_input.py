"""Bad input through the real program: exit code 2, one line on stderr that names the thing, no traceback."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import features_file
from PIL import Image


def iiae(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "iiae_fast", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def refused(folder: Path, *arguments: object) -> str:
    done = iiae(folder, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def idx_file(path: Path, array: np.ndarray, keep: int | None = None) -> None:
    """Write an idx file, or its first ``keep`` bytes, gzipped as MNIST is published."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress((header + array.tobytes())[:keep]))


def test_truncated_idx_file(tmp_path: Path) -> None:
    for name, count in (("train", 40), ("t10k", 20)):
        idx_file(tmp_path / f"{name}-images-idx3-ubyte.gz", np.zeros((count, 28, 28), np.uint8))
        idx_file(tmp_path / f"{name}-labels-idx1-ubyte.gz", np.zeros(count, np.uint8))
    idx_file(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((40, 28, 28), np.uint8), keep=10_000)
    assert "train-images-idx3-ubyte.gz" in refused(tmp_path, "data", "mnist-cdcb", "--root", tmp_path)


def test_truncated_gzip(tmp_path: Path) -> None:
    for name, count in (("train", 40), ("t10k", 20)):
        idx_file(tmp_path / f"{name}-images-idx3-ubyte.gz", np.zeros((count, 28, 28), np.uint8))
        idx_file(tmp_path / f"{name}-labels-idx1-ubyte.gz", np.zeros(count, np.uint8))
    damaged = tmp_path / "t10k-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert damaged.name in refused(tmp_path, "data", "mnist-cdcb", "--root", tmp_path)


def paired_folders(folder: Path) -> None:
    for domain in ("x", "y"):
        (folder / domain).mkdir()
        for index in range(8):
            Image.new("RGB", (20, 20), (index, 0, 0)).save(folder / domain / f"{index}.png")


def test_non_image_in_a_folder(tmp_path: Path) -> None:
    paired_folders(tmp_path)
    (tmp_path / "x" / "3.png").write_text("not an image")
    message = refused(tmp_path, "data", "two-folders", "--root", tmp_path)
    assert "3.png: not an image" in message


def test_odd_width_side_by_side_image(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32)).save(tmp_path / "even.png")
    Image.new("RGB", (65, 32)).save(tmp_path / "odd.png")
    message = refused(tmp_path, "data", "side-by-side", "--root", tmp_path)
    assert "odd.png" in message
    assert "65" in message


def test_nan_in_features(tmp_path: Path) -> None:
    path = features_file(tmp_path)
    arrays = dict(np.load(path))
    arrays["x"][17, 3] = np.nan
    np.savez(path, **arrays)
    message = refused(tmp_path, "train", "sketchy", "--model.feature-dim", "16", "--data-root", path, "--run-dir", "run")
    assert "row 17" in message
    assert not (tmp_path / "run").exists()


def test_unknown_preset(tmp_path: Path) -> None:
    assert "unknown preset 'mnist'; accepted are digits-cdcb" in refused(tmp_path, "train", "mnist", "--run-dir", "x")


@pytest.mark.parametrize("command", ["evaluate", "translate", "embed", "export", "report"])
def test_missing_run_directory(command: str, tmp_path: Path) -> None:
    assert "runs/nothing: no such run directory" in refused(tmp_path, command, "runs/nothing")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_model_with_one_byte_flipped(name: str, run_dir: Path, tmp_path: Path) -> None:
    path = run_dir / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = refused(tmp_path, "evaluate", run_dir)
    assert name in message


def test_checkpoint_with_one_byte_flipped(run_dir: Path, tmp_path: Path) -> None:
    path = run_dir / "checkpoints" / "last.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 0x10
    path.write_bytes(content)
    assert "last.safetensors: altered since it was written" in refused(
        tmp_path, "train", "digits-cdcb", "--image-size", "16", "--run-dir", run_dir, "--resume"
    )


def test_truncated_model(run_dir: Path, tmp_path: Path) -> None:
    path = run_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors: truncated" in refused(tmp_path, "embed", run_dir)


def test_damaged_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "shared_x.onnx").write_bytes(b"\x08\x0a" + bytes(500))
    assert "shared_x.onnx: truncated, or not an ONNX file" in refused(tmp_path, "embed", "shared_x.onnx", "test")


def test_wrong_option(tmp_path: Path) -> None:
    assert "--widht" in refused(tmp_path, "train", "digits-cdcb", "--widht", "3")


def test_unknown_metric(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 2), np.float32))
    message = refused(tmp_path, "search", "a.npy", "a.npy", "--metric", "manhattan")
    assert "manhattan" in message
    assert "sqeuclidean" in message


def test_codes_that_are_not_finite_or_of_other_sizes(tmp_path: Path) -> None:
    codes = np.zeros((9, 2), np.float32)
    np.save(tmp_path / "wide.npy", np.zeros((3, 5), np.float32))
    np.save(tmp_path / "good.npy", codes)
    codes[7, 1] = np.inf
    np.save(tmp_path / "bad.npy", codes)
    assert "7" in refused(tmp_path, "search", "bad.npy", "good.npy", "--k", "1")
    assert "queries have 5 columns; the database has 2" in refused(tmp_path, "search", "good.npy", "wide.npy", "--k", "1")
    (tmp_path / "text.npy").write_text("no array")
    assert "text.npy" in refused(tmp_path, "search", "good.npy", "text.npy")


@pytest.mark.parametrize("parent", ["file", "/proc"])
def test_unwritable_output(parent: str, tmp_path: Path) -> None:
    """Below a file, and in a file system where even root may not write."""
    (tmp_path / "file").write_text("")
    np.save(tmp_path / "a.npy", np.zeros((3, 2), np.float32))
    if parent == "/proc" and not Path(parent).is_dir():
        pytest.skip("no /proc here")
    message = refused(tmp_path, "search", "a.npy", "a.npy", "--k", "1", "--out", f"{parent}/deep/hits.npz")
    assert parent in message


def test_unwritable_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refused(tmp_path, "train", "digits-cdcb", "--image-size", "16", "--run-dir", "file/run", "--quiet")
    assert "file" in message


def test_damaged_log(run_dir: Path, tmp_path: Path) -> None:
    log = run_dir / "log.jsonl"
    log.write_text("no JSON\n" + log.read_text())
    assert "log.jsonl, line 1" in refused(tmp_path, "report", run_dir)


@pytest.mark.skipif(shutil.which("kill") is None, reason="needs POSIX signals")
def test_interrupted_training_saves_and_exits_with_130(tmp_path: Path) -> None:
    settings = "--image-size 16 --optim.epochs 10000 --threads 1 --log-every 1 --run-dir run --quiet"
    command = [sys.executable, "-m", "iiae_fast", "train", "digits-cdcb", *settings.split()]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log = tmp_path / "run" / "log.jsonl"
        deadline = time.monotonic() + 120
        while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "the same command with --resume goes on from there" in out
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").is_file()
