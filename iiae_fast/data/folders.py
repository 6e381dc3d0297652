"""Paired image folders: side by side in one file, two folders of equal names, or views of objects."""

from __future__ import annotations

__all__ = ["load_side_by_side", "load_two_folders", "load_views"]

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from iiae_fast.config import DataConfig
from iiae_fast.data import draws
from iiae_fast.data.images import ImagePairs, ImageStore, list_images
from iiae_fast.data.roots import data_root
from iiae_fast.data.types import Splits
from iiae_fast.errors import DataError

UInt8 = npt.NDArray[np.uint8]

_VIEW = re.compile(r"obj(\d+)__(\d+)\.png")
_VIEWS_ROOT = "multiview/coil100"


class _Source(NamedTuple):
    """N pairs: how many, and how to get some."""

    n: int
    fetch: Callable[[np.ndarray], tuple[UInt8, UInt8]]


def _required_folder(config: DataConfig) -> Path:
    if config.root is None:
        raise DataError(f"data of kind {config.kind} needs a root: the folder that holds it")
    return _folder(config.root)


def _folder(explicit: str) -> Path:
    root = data_root(explicit)
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder")
    return root


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the published splits, by "train", "valid" and "test"; the root itself is "train" where it has none.

    A ``val`` (or ``valid``) folder without a ``test`` folder is the test set, as for pix2pix's maps.
    """
    found = {name: root / name for name in ("train", "val", "valid", "test") if (root / name).is_dir()}
    if not found:
        return {"train": root}
    if "train" not in found:
        raise DataError(f"{root}: holds {' and '.join(found)} but no folder train")
    if "val" in found and "valid" in found:
        raise DataError(f"{root}: holds both val and valid; keep one of them")
    if "val" in found:
        found["valid"] = found.pop("val")
    if "test" not in found and "valid" in found:
        found["test"] = found.pop("valid")
    return found


def _splits(config: DataConfig, sources: dict[str, _Source]) -> Splits:
    """Hold out from the training pairs, by the seed, what has no folder of its own."""
    train = sources["train"]
    rows = {name: np.arange(source.n) for name, source in sources.items()}
    for name, fraction in (("test", config.test_fraction), ("valid", config.valid_fraction)):
        if name not in sources:
            kept, held = draws.partition(len(rows["train"]), fraction, config.seed, name)
            rows["train"], rows[name] = rows["train"][kept], rows["train"][held]

    def pairs(name: str, augment: bool = False) -> ImagePairs:
        fetch = sources.get(name, train).fetch
        return ImagePairs(fetch, rows[name], seed=config.seed, augment=augment, swap=config.swap)

    return Splits(train=pairs("train", config.augment), valid=pairs("valid"), test=pairs("test"))


def load_side_by_side(config: DataConfig) -> Splits:
    """Images that hold X in their left and Y in their right half, as pix2pix publishes them.

    ``root/train/``, ``root/val/`` (or ``valid/``) and ``root/test/``; without ``test`` the ``val`` folder is the test set.
    Without ``val`` the validation pairs, and without any folder the test pairs too, are held out by the seed. Halves are cut
    before they are resized, so neither bleeds into the other.

    Raises:
        DataError: A folder is missing or empty, or a file is no image, is damaged, or has an odd width.
    """

    def source(folder: Path) -> _Source:
        store = ImageStore(list_images(folder), config.image_size, halves=True)

        def fetch(rows: np.ndarray) -> tuple[UInt8, UInt8]:
            both = store[rows]
            return both[:, 0], both[:, 1]

        return _Source(len(store), fetch)

    folders = _split_folders(_required_folder(config))
    return _splits(config, {name: source(folder) for name, folder in folders.items()})


def _by_stem(folder: Path) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in by_stem:
            raise DataError(f"{path}: has the same name as {by_stem[path.stem].name}, so its partner is not unique")
        by_stem[path.stem] = path
    return by_stem


def load_two_folders(config: DataConfig) -> Splits:
    """Images of X in one folder and of Y in another, paired by their names without suffix.

    ``root/{train,val,test}/{x,y}/`` with the splits as for ``load_side_by_side``, or ``root/{x,y}/`` for all.

    Raises:
        DataError: A folder is missing or empty, an image has no partner, or a file is no image or damaged.
    """

    def source(folder: Path) -> _Source:
        x, y = _by_stem(folder / "x"), _by_stem(folder / "y")
        for have, lack, side in ((x, y, "y"), (y, x, "x")):
            for stem, path in have.items():
                if stem not in lack:
                    raise DataError(f"{path}: has no partner named {stem} in {folder / side}")
        x_store, y_store = (ImageStore([side[stem] for stem in sorted(x)], config.image_size) for side in (x, y))
        return _Source(len(x_store), lambda rows: (x_store[rows][:, 0], y_store[rows][:, 0]))

    folders = _split_folders(_required_folder(config))
    return _splits(config, {name: source(folder) for name, folder in folders.items()})


def load_views(config: DataConfig) -> Splits:
    """Views of objects, ``objK__A.png`` (object K at A degrees, as COIL-100 names them), split by object.

    X is the object at 0 degrees, Y the same object at every other angle there is: one pair per other view, labelled K.
    ``config.root`` (None: ``multiview/coil100`` in the data folder) holds the files.

    Raises:
        DataError: A file has another name, is damaged, or an object lacks its view at 0 degrees or any other view.
    """
    root = _folder(_VIEWS_ROOT if config.root is None else config.root)
    paths = list_images(root)
    positions: dict[int, dict[int, int]] = {}  # object → angle → position in paths
    for position, path in enumerate(paths):
        name = _VIEW.fullmatch(path.name)
        if name is None:
            raise DataError(f"{path}: expected a name like obj12__45.png (object 12 at 45 degrees)")
        number, angle = int(name[1]), int(name[2])
        if angle in positions.setdefault(number, {}):
            raise DataError(f"{path}: a second view of object {number} at {angle} degrees")
        positions[number][angle] = position
    pairs = []
    for number in sorted(positions):
        views = positions[number]
        if 0 not in views:
            raise DataError(f"{root}: object {number} has no view at 0 degrees (obj{number}__0.png)")
        if len(views) == 1:
            raise DataError(f"{root}: object {number} has a single view, so there is no pair of it")
        pairs += [(number, views[0], views[angle]) for angle in sorted(views) if angle != 0]
    labels, x_at, y_at = np.array(pairs).T

    store = ImageStore(paths, config.image_size)
    objects = np.array(sorted(positions))
    kept, test = draws.partition(len(objects), config.test_fraction, config.seed, "test")
    trained, valid = draws.partition(len(kept), config.valid_fraction, config.seed, "valid")

    def split(chosen: np.ndarray, augment: bool = False) -> ImagePairs:
        rows = np.flatnonzero(np.isin(labels, chosen))
        return ImagePairs(
            lambda at: (store[x_at[at]][:, 0], store[y_at[at]][:, 0]),
            rows,
            labels,
            seed=config.seed,
            augment=augment,
            swap=config.swap,
        )

    return Splits(
        train=split(objects[kept[trained]], config.augment), valid=split(objects[kept[valid]]), test=split(objects[test])
    )
