"""Image files: decoding, keeping, flipping and shifting them."""

from __future__ import annotations

__all__ = ["MEMORY_BOUND", "ImagePairs", "ImageStore", "list_images", "read_image"]

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from iiae_fast.data import draws
from iiae_fast.data.types import Batch, ResidentArrays
from iiae_fast.errors import DataError, require

if TYPE_CHECKING:
    from PIL.Image import Image

UInt8 = npt.NDArray[np.uint8]

MEMORY_BOUND = 2**29
"""A split whose decoded images take at most this many bytes (512 MiB) is kept in memory, a larger one decoded as needed."""

# Modes whose conversion to RGB loses no depth; alpha is laid on white, as drawings on a transparent ground expect.
_OPAQUE, _ALPHA = ("1", "L", "P", "RGB", "CMYK", "YCbCr"), ("LA", "PA", "RGBA")


def list_images(folder: Path) -> list[Path]:
    """The files of ``folder`` by name. Names that begin with a dot are passed over; every other entry counts as an image.

    Raises:
        DataError: The folder is absent, holds nothing, or holds a folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder}: holds no images")
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path}: a folder among images")
    return paths


def read_image(source: Path | bytes, size: int) -> UInt8:
    """One image at one size, uint8 ``(3, size, size)``: as ``iiae embed`` reads the files of a folder.

    Args:
        source: A file, or its content.
        size: Side to which the image is brought, without regard to its aspect.

    Raises:
        DataError: It is no image, or damaged.
        MissingExtraError: Pillow is not installed.
    """
    return _resize(_open(source), size)


def _open(source: Path | bytes) -> Image:
    """Decode one file, or its content, to RGB, upright."""
    path, file = (source, source) if isinstance(source, Path) else ("image", BytesIO(source))
    pil, ops = require("PIL.Image", "train"), require("PIL.ImageOps", "train")
    try:
        with pil.open(file) as opened:
            opened.load()
            image: Image = ops.exif_transpose(opened)
    except pil.UnidentifiedImageError as error:
        advice = " (to leave a file aside, begin its name with a dot)" if isinstance(source, Path) else ""
        raise DataError(f"{path}: not an image{advice}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, SyntaxError, EOFError, pil.DecompressionBombError) as error:
        raise DataError(f"{path}: damaged image ({error})") from error
    if image.mode in _ALPHA or "transparency" in image.info:
        image = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image.convert("RGBA"))
    elif image.mode not in _OPAQUE:
        raise DataError(f"{path}: pixel format {image.mode}, accepted are images of 8 bits per channel")
    return image.convert("RGB")


def _resize(image: Image, size: int) -> UInt8:
    """RGB image → (3, size, size). Shrinks by area averages, as the published loader does; enlarges by bicubic."""
    pil = require("PIL.Image", "train")
    if image.size != (size, size):
        shrinks = min(image.size) >= size
        image = image.resize((size, size), pil.Resampling.BOX if shrinks else pil.Resampling.BICUBIC)
    pixels: UInt8 = np.asarray(image).transpose(2, 0, 1)
    return pixels


class ImageStore:
    """The decoded images of a list of files, at one size.

    Up to ``MEMORY_BOUND`` everything is decoded at once, so that a damaged file shows before training starts. Above it, or
    with ``keep=False``, files are decoded when they are asked for, and a damaged one shows then.

    Args:
        paths: The files.
        size: Side to which images are brought, without regard to their aspect.
        halves: Each file holds two images side by side.
        keep: False where every image is asked for only once.

    Raises:
        DataError: A file is no image, is damaged, or has an odd width where it holds two halves.
        MissingExtraError: Pillow is not installed.
    """

    def __init__(self, paths: Sequence[Path], size: int, halves: bool = False, keep: bool = True) -> None:
        self.paths, self.size, self._halves = list(paths), size, halves
        self._kept: UInt8 | None = None
        if keep and len(self.paths) * (2 if halves else 1) * 3 * size * size <= MEMORY_BOUND:
            self._kept = self._decode(np.arange(len(self.paths)))

    def __len__(self) -> int:
        return len(self.paths)

    def _decode(self, rows: np.ndarray) -> UInt8:
        parts = 2 if self._halves else 1
        out = np.empty((len(rows), parts, 3, self.size, self.size), np.uint8)

        def fill(target: UInt8, row: int) -> None:
            path = self.paths[row]
            image = _open(path)
            width, height = image.size
            if width % parts:
                raise DataError(f"{path}: width {width} is odd, so it does not hold two images side by side")
            width //= parts
            for part in range(parts):
                target[part] = _resize(image.crop((part * width, 0, (part + 1) * width, height)), self.size)

        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
            for _ in pool.map(fill, out, rows):
                pass  # raises the error of the first bad file in order
        return out

    def __getitem__(self, rows: np.ndarray) -> UInt8:
        """uint8 (B, P, 3, size, size): P is 2 for side-by-side files, else 1."""
        return self._decode(rows) if self._kept is None else self._kept[rows]


def _reflected(size: int, shift: int) -> npt.NDArray[np.int64]:
    """Positions shift … shift + size − 1 of an axis that is continued by reflection at both ends."""
    last = size - 1
    positions: npt.NDArray[np.int64] = last - np.abs(last - np.abs(np.arange(size) + shift))
    return positions


def _flip_and_shift(images: UInt8, flip: npt.NDArray[np.bool_], shift: npt.NDArray[np.int64]) -> UInt8:
    """Mirror (B, C, H, W) where ``flip`` (B,), after a move of (rows, columns) ``shift`` (B, 2)."""
    out = np.empty_like(images)
    height, width = images.shape[2:]
    for target, image, mirrored, (down, right) in zip(out, images, flip, shift):
        columns = _reflected(width, right)
        target[:] = image[:, _reflected(height, down)].take(columns[::-1] if mirrored else columns, axis=2)
    return out


class ImagePairs:
    """Pairs of images.

    Args:
        fetch: Positions (B,) of pairs in the source → images of X and of Y, uint8 (B, 3, H, W) each.
        rows: The source's pairs that this split has, (N,).
        labels: Class of every pair of the source, or None.
        seed: Of the augmentation.
        augment: Training pairs are mirrored (half of them) and shifted, as pix2pix's jitter does: by up to 15/256 of the
            side each way, the border filled by reflection. Both images of a pair alike.
        swap: Exchange the domains.
    """

    def __init__(
        self,
        fetch: Callable[[np.ndarray], tuple[UInt8, UInt8]],
        rows: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        seed: int,
        augment: bool = False,
        swap: bool = False,
    ) -> None:
        self.labels: npt.NDArray[np.int64] | None = None if labels is None else labels[rows].astype(np.int64)
        self._fetch, self._rows = fetch, rows
        self._seed, self._augment, self._swap = seed, augment, swap

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> Batch:
        """Pairs, uint8 (B, 3, H, W); see ``PairedDataset.batch``."""
        rows = self._rows[indices]
        x, y = self._fetch(rows)
        if self._augment and epoch is not None and len(rows):
            flip, shift = self._draw(indices, epoch, x.shape[-1])
            x, y = _flip_and_shift(x, flip, shift), _flip_and_shift(y, flip, shift)
        labels = None if self.labels is None else self.labels[indices]
        return Batch(y, x, labels) if self._swap else Batch(x, y, labels)

    def resident(self, limit: int | None) -> ResidentArrays | None:
        """See ``PairedDataset``."""
        if not len(self):
            return None
        sample = self._fetch(self._rows[:1])[0]
        if limit is not None and len(self) * 2 * sample.nbytes > limit:
            return None
        x, y = self._fetch(self._rows)
        draw = partial(self._draw, size=sample.shape[-1]) if self._augment else None
        return ResidentArrays(y, x, self.labels, draw) if self._swap else ResidentArrays(x, y, self.labels, draw)

    def _draw(self, indices: np.ndarray, epoch: int, size: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Which of the pairs are mirrored, and by how many rows and columns they are shifted."""
        reach = round(size * 15 / 256)
        drawn = draws.uniform(self._seed, "flips and shifts", epoch, self._rows[indices], 3)
        return drawn[:, 0] < 0.5, (drawn[:, 1:] * (2 * reach + 1)).astype(np.int64) - reach
