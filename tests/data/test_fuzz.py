"""Damaged files of every format: whatever the bytes, they load or end in one DataError of one line that names the file."""

from __future__ import annotations

import gzip
import io
import warnings

import numpy as np
import pytest

from iiae_fast.data.features import _read
from iiae_fast.data.images import ImageStore
from iiae_fast.data.mnist import read_idx
from iiae_fast.errors import DataError

IDX = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]) + bytes(24)


def image(form: str) -> bytes:
    pil = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    pil.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def npz() -> bytes:
    stream = io.BytesIO()
    rows = np.zeros((3, 4), np.float32)
    np.savez(stream, x=rows, y=rows, labels=np.arange(3))
    return stream.getvalue()


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, or with up to five bytes replaced, half of the time among the first 300."""
    if rng.random() < 0.3:
        return content[: rng.integers(len(content))]
    changed = bytearray(content)
    reach = min(len(content), 300) if rng.random() < 0.5 else len(content)
    for _ in range(rng.integers(1, 6)):
        changed[rng.integers(reach)] = rng.integers(256)
    return bytes(changed)


FORMATS = {
    "a": (lambda: IDX, lambda path: read_idx(path, 3)),
    "a.gz": (lambda: gzip.compress(IDX), lambda path: read_idx(path, 3)),
    "a.npz": (npz, _read),
    "a.png": (lambda: image("PNG"), lambda path: ImageStore([path], 16)),
    "a.jpg": (lambda: image("JPEG"), lambda path: ImageStore([path], 16, halves=True)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_load_or_are_refused_by_name(tmp_path, name):
    make, read = FORMATS[name]
    whole, path, rng = make(), tmp_path / name, np.random.default_rng(0)
    refusals = []
    for _ in range(300):
        path.write_bytes(damaged(whole, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
                read(path)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    for message in refusals:
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
    path.write_bytes(whole)
    read(path)
