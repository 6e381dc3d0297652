"""MNIST-CD/CB from the original idx files."""

from __future__ import annotations

__all__ = ["load_mnist_cdcb", "read_idx"]

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iiae_fast.config import DataConfig
from iiae_fast.data import draws
from iiae_fast.data.cdcb import CDCBPairs
from iiae_fast.data.roots import data_root
from iiae_fast.data.types import Splits
from iiae_fast.errors import DataError

_LIMIT = 2**30  # bytes; MNIST's largest file has 47 million


def read_idx(path: Path, dims: int) -> npt.NDArray[np.uint8]:
    """Read an idx file of unsigned bytes (yann.lecun.com/exdb/mnist), gzipped where the name ends in ``.gz``.

    Args:
        path: The file.
        dims: Dimensions it must have: 3 for images, 1 for labels.

    Returns:
        uint8, of the shape its header says.

    Raises:
        DataError: It cannot be read, is damaged or truncated, has another magic number, or bytes left over.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_LIMIT + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged or truncated gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > _LIMIT:
        raise DataError(f"{path}: holds more than {_LIMIT} bytes, which no MNIST file does")
    magic = bytes([0, 0, 8, dims])
    if content[:4] != magic:
        found = content[:4].hex() or "nothing"
        raise DataError(f"{path}: not an idx file of {dims}-dimensional bytes: begins with {found}, expected {magic.hex()}")
    header = 4 + 4 * dims
    if len(content) < header:
        raise DataError(f"{path}: truncated in its header: {len(content)} bytes, expected at least {header}")
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4))
    expected = header + math.prod(shape)
    if len(content) != expected:
        what = "truncated" if len(content) < expected else "longer than its header says"
        raise DataError(f"{path}: {what}: {len(content)} bytes, expected {expected} for shape {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    """``name`` in ``folder``, gzipped or not."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(f"{folder}: holds neither {name}.gz nor {name}")


def _read_split(folder: Path, prefix: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images (N, 28, 28) and labels (N,) of ``train`` or ``t10k``."""
    image_path, label_path = _find(folder, f"{prefix}-images-idx3-ubyte"), _find(folder, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(images) == 0 or images.shape[1:] != (28, 28):
        raise DataError(f"{image_path}: shape {images.shape}, expected (N, 28, 28) with N of at least 1")
    if len(labels) != len(images):
        raise DataError(f"{label_path}: {len(labels)} labels for the {len(images)} images of {image_path.name}")
    return images, labels


def load_mnist_cdcb(config: DataConfig) -> Splits:
    """Splits of MNIST-CD/CB: train and valid from MNIST's 60,000 training digits, test from its 10,000 test digits.

    ``config.root`` (None: the data folder) holds the four idx files, or a folder ``mnist`` that does. Images are rendered
    as they are asked for: at the published 256×256 the set would take 27 GB.

    Raises:
        DataError: A file is missing or damaged.
    """
    root = data_root(config.root)
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder with MNIST's idx files")
    folder = root / "mnist" if (root / "mnist").is_dir() else root

    def split(stream: str, source: tuple[np.ndarray, np.ndarray], rows: np.ndarray, training: bool = False) -> CDCBPairs:
        return CDCBPairs(
            *source,
            rows,
            stream=stream,
            size=config.image_size,
            seed=config.seed,
            recolour=training and config.recolour,
            augment=training and config.augment,
            swap=config.swap,
        )

    train, test = _read_split(folder, "train"), _read_split(folder, "t10k")
    kept, held = draws.partition(len(train[0]), config.valid_fraction, config.seed, "valid")
    return Splits(
        train=split("train", train, kept, training=True),
        valid=split("train", train, held),
        test=split("t10k", test, np.arange(len(test[0]))),
    )
