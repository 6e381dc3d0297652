"""What a command works on: a split of the run's data, image files, or arrays."""

from __future__ import annotations

__all__ = ["Source", "Split", "check_seed", "open_source", "read_array", "split_source"]

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from iiae_fast.config import DataConfig, ModelConfig
from iiae_fast.errors import DataError, InputError

if TYPE_CHECKING:
    from iiae_fast.data import PairedDataset

Split = Literal["train", "valid", "test"]

_CHECKED_ROWS = 4096


@dataclass(frozen=True)
class Source:
    """Samples of one or both domains.

    Attributes:
        names: One for each sample.
        fetch: Positions ``(B,)`` → ``{"x": …, "y": …}`` or one of the two: images uint8 ``(B, C, H, W)``, features float32
            ``(B, F)``.
        identity: Of the sample at a position; changes when the file that it comes from does.
    """

    names: Sequence[str]
    fetch: Callable[[np.ndarray], dict[str, np.ndarray]]
    identity: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.names)


def split_source(dataset: PairedDataset, config: DataConfig, name: str, count: int | None = None) -> Source:
    """The pairs of a split, or its first ``count``; ``config`` is what the data set was loaded by.

    Raises:
        DataError: The split is empty.
    """
    if not len(dataset):
        raise DataError(f"the {name} split of this run's data is empty")

    def fetch(rows: np.ndarray) -> dict[str, np.ndarray]:
        batch = dataset.batch(rows)
        return {"x": batch.x, "y": batch.y}

    total = len(dataset) if count is None else min(count, len(dataset))
    names = [f"{name}_{row:05}" for row in range(total)]
    return Source(names, fetch, lambda row: f"{config} {names[row]}")


def check_seed(seed: int) -> None:
    """Refuse a seed that torch's generators do not take."""
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: accepted is a whole number from 0 to 2**63 − 1")


def open_source(paths: Sequence[Path], domains: tuple[str, ...], config: ModelConfig) -> Source:
    """Samples from files: images (files, or folders of them), one ``.npy`` array, or a ``.npz`` with arrays named x and y.

    Arrays hold images uint8 ``(N, C, H, W)`` at the model's size, or features float32 ``(N, F)``.

    Args:
        paths: At least one.
        domains: Which domains are wanted: one, or both (from a ``.npz`` only).
        config: Of the model that will take them.

    Raises:
        DataError: A file is missing, damaged, or does not fit the model.
        InputError: These files cannot serve these domains.
    """
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes & {".npy", ".npz"}:
        if len(paths) > 1:
            raise InputError(f"{paths[0]}: arrays come in one file, {len(paths)} were given")
        return _from_array(paths[0], domains, config)
    if len(domains) > 1:
        raise InputError(f"a code of pairs needs x and y: give a split or a .npz file with both, not {paths[0]}")
    if config.family == "feature":
        raise InputError(f"{paths[0]}: a model of features takes a .npy or .npz file")
    from iiae_fast.data.images import ImageStore, list_images

    files = [file for path in paths for file in (list_images(path) if path.is_dir() else [path])]
    store = ImageStore(files, config.image_size, keep=False)
    names = [file.stem for file in files]
    return Source(names, lambda rows: {domains[0]: store[rows][:, 0]}, lambda row: _version(files[row]))


def _version(path: Path) -> str:
    """What changes when a file does."""
    facts = path.stat()
    return f"{path.name} {facts.st_size} {facts.st_mtime_ns}"


def read_array(path: Path) -> Any:
    """The array of a ``.npy`` file, mapped from disk, or numpy's view of a ``.npz`` file. Nothing is unpickled.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npy or .npz file ({error})") from None


def _from_array(path: Path, domains: tuple[str, ...], config: ModelConfig) -> Source:
    loaded = read_array(path)
    if isinstance(loaded, np.ndarray):
        if len(domains) > 1:
            raise InputError(f"{path}: one array; a code of pairs needs a .npz file with x and y")
        arrays = {domains[0]: loaded}
    else:
        missing = [domain for domain in domains if domain not in loaded.files]
        if missing:
            raise DataError(f"{path}: holds {', '.join(loaded.files) or 'nothing'}, but no array {missing[0]}")
        arrays = {domain: loaded[domain] for domain in domains}
    for name, array in arrays.items():
        _check(path, name, array, config)
    count = len(arrays[domains[0]])
    if any(len(array) != count for array in arrays.values()):
        raise DataError(
            f"{path}: x has {len(arrays['x'])} rows and y {len(arrays['y'])}; row i of one belongs to row i of the other"
        )
    names, version = [f"{row:05}" for row in range(count)], _version(path)
    return Source(
        names, lambda rows: {name: array[rows] for name, array in arrays.items()}, lambda row: f"{version} {names[row]}"
    )


def _check(path: Path, name: str, array: np.ndarray, config: ModelConfig) -> None:
    dtype = "float32" if config.family == "feature" else "uint8"
    shape = config.input_shape
    if array.dtype != dtype or array.ndim != len(shape) + 1 or array.shape[1:] != shape or not len(array):
        accepted = f"{dtype} (N, {', '.join(map(str, shape))}) with N at least 1"
        raise DataError(f"{path}: {name} is {array.dtype} {array.shape}, this model takes {accepted}")
    if dtype == "float32":
        # in parts, since a mapped array may be larger than memory
        parts = [np.isfinite(array[start : start + _CHECKED_ROWS]).all(axis=1) for start in range(0, len(array), _CHECKED_ROWS)]
        bad = np.flatnonzero(~np.concatenate(parts))
        if len(bad):
            raise DataError(f"{path}: {name} is not finite in row {bad[0]} ({len(bad)} of {len(array)} rows)")
