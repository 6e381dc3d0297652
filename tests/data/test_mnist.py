"""idx files: the real ones, and every way of being broken."""

from __future__ import annotations

import gzip
import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from paths import DATA, needs_data

from iiae_fast.config import DataConfig
from iiae_fast.data import load
from iiae_fast.data.mnist import read_idx
from iiae_fast.errors import DataError


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_mnist(folder, train=20, test=6, compress=True):
    rng = np.random.default_rng(0)
    for prefix, n in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 10)):
            content = idx(array)
            path = folder / f"{prefix}-{name}{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(content) if compress else content)
    return folder


@needs_data
def test_real_mnist_has_its_published_sizes():
    splits = load(DataConfig("mnist-cdcb", root=str(DATA), valid_fraction=0.1))
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (54000, 6000, 10000)
    assert_array_equal(np.bincount(splits.test.labels), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])
    batch = splits.test.batch(np.array([0, 9999]))
    assert batch.x.shape == batch.y.shape == (2, 3, 32, 32)
    assert_array_equal(batch.labels, [7, 6])


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_load_gzipped_and_raw_from_either_folder(tmp_path, compress):
    inner = tmp_path / "mnist"
    inner.mkdir()
    write_mnist(inner, compress=compress)
    for root in (tmp_path, inner):
        splits = load(DataConfig("mnist-cdcb", root=str(root), valid_fraction=0.25))
        assert (len(splits.train), len(splits.valid), len(splits.test)) == (15, 5, 6)


def test_training_and_test_digits_of_one_row_have_colours_of_their_own(tmp_path):
    splits = load(DataConfig("mnist-cdcb", root=str(write_mnist(tmp_path)), valid_fraction=0.0, recolour=False))
    assert (splits.train.batch(np.arange(6)).y.max((2, 3)) != splits.test.batch(np.arange(6)).y.max((2, 3))).any()


IMAGES = idx(np.zeros((3, 28, 28), np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.gz", gzip.compress(IMAGES, mtime=0)[:-20], "damaged or truncated gzip"),
        ("a.gz", b"plainly not gzip", "damaged or truncated gzip"),
        ("a.gz", gzip.compress(IMAGES, mtime=0)[:12] + b"\xff" * 40, "damaged or truncated gzip"),
        ("a.gz", b"", "begins with nothing, expected 00000803"),
        ("a", b"\0\0\x08\x01" + IMAGES[4:], "begins with 00000801, expected 00000803"),
        ("a", IMAGES[:10], "truncated in its header: 10 bytes, expected at least 16"),
        ("a", IMAGES[:-1], r"truncated: 2367 bytes, expected 2368 for shape \(3, 28, 28\)"),
        ("a", IMAGES + b"x", "longer than its header says: 2369 bytes"),
        ("a", IMAGES[:4] + b"\xff" * 12, "truncated: 16 bytes, expected"),
    ],
)
def test_broken_idx_files_are_named_with_what_is_wrong(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_idx(path, 3)


def test_absent_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.gz: cannot be read"):
        read_idx(tmp_path / "absent.gz", 3)
    with pytest.raises(DataError, match=r"holds neither train-images-idx3-ubyte\.gz nor train-images-idx3-ubyte"):
        load(DataConfig("mnist-cdcb", root=str(tmp_path)))


def test_a_wrong_count_or_shape_is_named(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(19, np.uint8))))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz: 19 labels for the 20 images"):
        load(DataConfig("mnist-cdcb", root=str(tmp_path)))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((2, 27, 28), np.uint8))))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: shape \(2, 27, 28\), expected \(N, 28, 28\)"):
        load(DataConfig("mnist-cdcb", root=str(tmp_path)))
