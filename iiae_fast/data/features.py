"""Feature vectors of two domains with class labels, from one npz file."""

from __future__ import annotations

__all__ = ["FeaturePairs", "load_features"]

import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iiae_fast.config import DataConfig
from iiae_fast.data import draws
from iiae_fast.data.roots import data_root
from iiae_fast.data.types import Batch, Gallery, ResidentArrays, Splits
from iiae_fast.errors import DataError

_PAIRS = ("x", "y", "labels")
_GALLERY = ("test_x", "test_y", "test_x_labels", "test_y_labels")


class FeaturePairs:
    """Pairs of feature vectors.

    Args:
        x: Features of X, float32 (N, F).
        y: Features of Y, float32 (M, F).
        x_rows: Row of ``x`` for every pair.
        y_rows: Row of ``y`` for every pair.
        labels: Class of every pair, int64.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, x_rows: np.ndarray, y_rows: np.ndarray, labels: np.ndarray) -> None:
        self.labels: npt.NDArray[np.int64] | None = labels
        self._x, self._y, self._x_rows, self._y_rows = x, y, x_rows, y_rows

    def __len__(self) -> int:
        return len(self._x_rows)

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> Batch:
        """Pairs, float32 (B, F), the same in every epoch."""
        assert self.labels is not None
        return Batch(self._x[self._x_rows[indices]], self._y[self._y_rows[indices]], self.labels[indices])

    def resident(self, limit: int | None) -> ResidentArrays | None:
        """See ``PairedDataset``."""
        if limit is not None and len(self) * 2 * self._x[0].nbytes > limit:
            return None
        return ResidentArrays(self._x[self._x_rows], self._y[self._y_rows], self.labels)


def _read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file whose names are as expected. Nothing is unpickled."""
    if not path.is_file():
        raise DataError(f"{path}: expected an npz file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(f"{path}: a single array; expected an npz file with {', '.join(_PAIRS)}")
        with loaded as file:
            given = set(file.files)
            expected = {*_PAIRS, *_GALLERY} if given & set(_GALLERY) else set(_PAIRS)
            if given != expected:
                wrong = [f"lacks {name}" for name in sorted(expected - given)]
                wrong += [f"holds an unknown array {name}" for name in sorted(given - expected)]
                raise DataError(
                    f"{path}: {', '.join(wrong)}; accepted are {', '.join(_PAIRS)} and optionally {', '.join(_GALLERY)}"
                )
            return {name: file[name] for name in file.files}
    except DataError:
        raise
    # RuntimeError: zip versions, compressions and encryption that Python does not read.
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable npz file ({error})") from error


def _features(path: Path, name: str, array: np.ndarray) -> npt.NDArray[np.float32]:
    if array.dtype != np.float32 or array.ndim != 2 or array.size == 0:
        raise DataError(f"{path}: {name} is {array.dtype} {array.shape}, accepted is float32 (rows, features), not empty")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        value = array[bad[0]][~np.isfinite(array[bad[0]])][0]
        raise DataError(f"{path}: {name} holds {value} in row {bad[0]} ({len(bad)} of {len(array)} rows are not finite)")
    return array


def _labels(path: Path, name: str, array: np.ndarray, of: str, rows: int) -> npt.NDArray[np.int64]:
    if array.dtype.kind not in "iu" or array.shape != (rows,):
        raise DataError(f"{path}: {name} is {array.dtype} {array.shape}, accepted is integers ({rows},), one per row of {of}")
    return array.astype(np.int64)


def _partners(x_labels: np.ndarray, y_labels: np.ndarray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For every x of a class that y has too, a y of that class: each class's y in turn."""
    x_rows, y_rows = [], []
    for label in np.intersect1d(x_labels, y_labels):
        members, partners = np.flatnonzero(x_labels == label), np.flatnonzero(y_labels == label)
        x_rows.append(members)
        y_rows.append(np.resize(partners, len(members)))
    return np.concatenate(x_rows), np.concatenate(y_rows)


def load_features(config: DataConfig) -> Splits:
    """Feature pairs for zero-shot retrieval, from an npz file (read without unpickling).

    Arrays ``x`` and ``y``, float32 (N, F), whose rows are pairs, and ``labels``, whole numbers (N,). With ``test_x`` (A, F),
    ``test_y`` (B, F), ``test_x_labels`` (A,) and ``test_y_labels`` (B,) these are the test galleries, of any two sizes;
    all pairs are for training. Without, round(test_fraction · classes) classes, chosen by the seed, are unseen: their pairs
    are the test set. The validation pairs are held out of the training pairs.

    ``Splits.gallery`` is what to rank. ``Splits.test`` holds row pairs for the loss: where there are galleries, every
    ``test_x`` row with one ``test_y`` row of its class.

    Raises:
        DataError: No such file, other arrays than these, another dtype or shape, a NaN or an infinity (array and first bad
            row are named), or galleries without a common class.
    """
    if config.root is None:
        raise DataError("data of kind features needs a root: the npz file")
    path = data_root(config.root)
    arrays = _read(path)
    x, y = _features(path, "x", arrays["x"]), _features(path, "y", arrays["y"])
    if x.shape != y.shape:
        raise DataError(f"{path}: x is {x.shape} and y is {y.shape}; their rows are pairs, so the shapes must be equal")
    labels = _labels(path, "labels", arrays["labels"], "x and y", len(x))
    if "test_x" in arrays:
        test_x, test_y = _features(path, "test_x", arrays["test_x"]), _features(path, "test_y", arrays["test_y"])
        for name, array in (("test_x", test_x), ("test_y", test_y)):
            if array.shape[1] != x.shape[1]:
                raise DataError(f"{path}: {name} has {array.shape[1]} features per row, x and y have {x.shape[1]}")
        test_x_labels = _labels(path, "test_x_labels", arrays["test_x_labels"], "test_x", len(test_x))
        test_y_labels = _labels(path, "test_y_labels", arrays["test_y_labels"], "test_y", len(test_y))
        if not len(np.intersect1d(test_x_labels, test_y_labels)):
            raise DataError(f"{path}: test_x_labels and test_y_labels have no class in common")
        seen = np.arange(len(x))
    else:
        classes = np.unique(labels)
        _, unseen = draws.partition(len(classes), config.test_fraction, config.seed, "test")
        held = np.isin(labels, classes[unseen])
        seen, rows = np.flatnonzero(~held), np.flatnonzero(held)
        test_x, test_y, test_x_labels, test_y_labels = x[rows], y[rows], labels[rows], labels[rows]

    if config.swap:
        x, y = y, x
        test_x, test_y, test_x_labels, test_y_labels = test_y, test_x, test_y_labels, test_x_labels
    kept, held_out = draws.partition(len(seen), config.valid_fraction, config.seed, "valid")

    def split(rows: np.ndarray) -> FeaturePairs:
        return FeaturePairs(x, y, rows, rows, labels[rows])

    if "test_x" in arrays:
        x_rows, y_rows = _partners(test_x_labels, test_y_labels)
    else:
        x_rows = y_rows = np.arange(len(test_x))
    return Splits(
        train=split(seen[kept]),
        valid=split(seen[held_out]),
        test=FeaturePairs(test_x, test_y, x_rows, y_rows, test_x_labels[x_rows]),
        gallery=Gallery(test_x, test_y, test_x_labels, test_y_labels),
    )
