"""Gradient-histogram features of real sketches and photos: real data for the feature family without network weights.

The published experiment uses 512 features of a fine-tuned VGG-16. These are hand-made descriptors of the same size, far
weaker; figures reached with them say nothing about the published ones.
"""

from __future__ import annotations

__all__ = ["ECCV_UNSEEN", "gradient_histograms", "sketch_features"]

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from iiae_fast.data import draws
from iiae_fast.data.images import ImageStore, list_images
from iiae_fast.data.roots import data_root
from iiae_fast.errors import DataError

ECCV_UNSEEN = ("dolphin", "giraffe", "helicopter", "rhinoceros", "scissors", "tree", "wheelchair")
"""The classes of ``sketches/sketchy125`` with photos that are unseen in Sketchy's ECCV 2018 split (104 seen, 21 unseen)."""

_SIDE, _CELLS, _BINS = 64, 8, 8


class SketchClasses(NamedTuple):
    """Which classes ``sketch_features`` used, and which it left out because they have only sketches or only photos."""

    seen: list[str]
    unseen: list[str]
    left_out: list[str]


def gradient_histograms(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Histograms of gradient orientations (after Dalal and Triggs, CVPR 2005), one per cell.

    8×8 cells of 8×8 pixels, 8 unsigned orientations with linear interpolation between neighbours, weighted by magnitude;
    each cell divided by the norm of its 3×3 neighbourhood, square roots taken, rows scaled to a mean square of 1.

    Args:
        images: uint8 (N, 3, 64, 64).

    Returns:
        float32 (N, 512); rows of a blank image are zero.
    """
    grey = (images * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(axis=1) / 255
    down, right = np.gradient(grey, axis=(1, 2))
    magnitude = np.hypot(down, right)
    position = np.arctan2(down, right) / np.pi % 1 * _BINS
    cells = np.empty((len(images), _BINS, _CELLS, _CELLS))
    for orientation in range(_BINS):
        away = np.abs(position - orientation)
        share = magnitude * np.clip(1 - np.minimum(away, _BINS - away), 0, None)
        cells[:, orientation] = share.reshape(-1, _CELLS, _SIDE // _CELLS, _CELLS, _SIDE // _CELLS).sum(axis=(2, 4))
    energy = np.pad((cells**2).sum(axis=1), ((0, 0), (1, 1), (1, 1)))
    around = np.lib.stride_tricks.sliding_window_view(energy, (3, 3), axis=(1, 2)).sum(axis=(3, 4))
    rows = np.sqrt(cells / np.sqrt(around + 1e-2)[:, None]).reshape(len(images), -1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    features: npt.NDArray[np.float32] = (rows * np.sqrt(rows.shape[1]) / np.where(norms > 0, norms, 1)).astype(np.float32)
    return features


def sketch_features(
    root: str, out: str | Path, unseen: Iterable[str] | None = None, test_fraction: float = 0.2, seed: int = 0
) -> SketchClasses:
    """Make a feature file for data of kind "features" from folders of sketches and photos.

    Args:
        root: Folder that holds ``sketch/CLASS/`` and ``photo/CLASS/``; found as ``DataConfig.root`` is.
        out: The npz file to write. X are sketches, Y photos. Sketches and photos of a class are paired in turn, the fewer
            repeated, until each is in a pair; those of unseen classes make the test galleries, where none repeats.
        unseen: Classes kept for the test. None: round(test_fraction · classes) of them, drawn by the seed.
        test_fraction: Share of unseen classes where ``unseen`` is None.
        seed: Of that draw.

    Returns:
        The classes. Labels in the file count seen and unseen together, by name.

    Raises:
        DataError: A folder is missing or empty, a file is no image, or no class is seen or unseen.
    """
    base, target = data_root(root), Path(out)
    if not target.parent.is_dir():
        raise DataError(f"{target}: the folder {target.parent} does not exist")
    folders: dict[str, dict[str, Path]] = {}
    for domain in ("sketch", "photo"):
        if not (base / domain).is_dir():
            raise DataError(f"{base / domain}: no such folder")
        folders[domain] = {path.name: path for path in sorted((base / domain).iterdir()) if path.is_dir()}
    classes = sorted(folders["sketch"].keys() & folders["photo"].keys())
    left_out = sorted(folders["sketch"].keys() ^ folders["photo"].keys())
    if unseen is None:
        _, held = draws.partition(len(classes), test_fraction, seed, "unseen")
        chosen = {classes[i] for i in held}
    else:
        chosen = set(unseen)
    unknown = sorted(chosen - set(classes))
    if unknown:
        raise DataError(f"{base}: no class {unknown[0]} with both sketches and photos")
    if not chosen or len(chosen) == len(classes):
        raise DataError(f"{base}: {len(chosen)} of {len(classes)} classes are unseen; at least one must be, and one must not")

    arrays: dict[str, list[np.ndarray]] = {name: [] for name in ("x", "y", "labels", "test_x", "test_y")}
    arrays |= {"test_x_labels": [], "test_y_labels": []}
    for label, name in enumerate(classes):
        stores = [ImageStore(list_images(folders[domain][name]), _SIDE) for domain in ("sketch", "photo")]
        x, y = (gradient_histograms(store[np.arange(len(store))][:, 0]) for store in stores)
        if name in chosen:
            added = {"test_x": x, "test_y": y}
            added |= {f"{key}_labels": np.full(len(rows), label) for key, rows in list(added.items())}
        else:
            pairs = np.arange(max(len(x), len(y)))
            added = {"x": x[pairs % len(x)], "y": y[pairs % len(y)], "labels": np.full(len(pairs), label)}
        for key, rows in added.items():
            arrays[key].append(rows)
    contents: dict[str, Any] = {name: np.concatenate(parts) for name, parts in arrays.items()}
    with target.open("wb") as file:  # a file, not a name: numpy would add a suffix of its own
        np.savez(file, **contents)
    return SketchClasses([name for name in classes if name not in chosen], sorted(chosen), left_out)
