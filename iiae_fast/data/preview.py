"""What a data set holds, as a table and as a picture."""

from __future__ import annotations

__all__ = ["contact_sheet", "describe"]

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from iiae_fast.data.types import PairedDataset, Splits
from iiae_fast.errors import DataError


class Row(NamedTuple):
    """One line of ``describe``: a split, its pairs, the shape and dtype of one x and one y, its classes (0: no labels)."""

    split: str
    pairs: int
    x: str
    y: str
    classes: int


def describe(splits: Splits) -> list[Row]:
    """The splits, one row each, and the two galleries of feature data (``pairs`` is their number of rows)."""

    def form(array: np.ndarray) -> str:
        return f"{' × '.join(map(str, array.shape[1:]))} {array.dtype}"

    rows = []
    for name, dataset in (("train", splits.train), ("valid", splits.valid), ("test", splits.test)):
        batch = dataset.batch(np.arange(min(1, len(dataset))))
        classes = 0 if dataset.labels is None else len(np.unique(dataset.labels))
        rows.append(Row(name, len(dataset), form(batch.x), form(batch.y), classes))
    if splits.gallery is not None:
        gallery = splits.gallery
        rows.append(Row("gallery x", len(gallery.x), form(gallery.x), "", len(np.unique(gallery.x_labels))))
        rows.append(Row("gallery y", len(gallery.y), "", form(gallery.y), len(np.unique(gallery.y_labels))))
    return rows


def contact_sheet(dataset: PairedDataset, n: int, epoch: int | None = None, columns: int = 8) -> npt.NDArray[np.uint8]:
    """Pairs from all over the data set as one picture: each pair's X above its Y, ``columns`` pairs beside each other.

    Args:
        dataset: Image pairs.
        n: How many pairs, evenly spaced; fewer where the data set has fewer.
        epoch: As for ``PairedDataset.batch``.
        columns: Pairs per line.

    Returns:
        uint8 (height, width, 3), with two white pixels between pairs.

    Raises:
        DataError: The data set has no images, or no pairs.
        ValueError: ``n`` or ``columns`` is below 1.
    """
    if n < 1 or columns < 1:
        raise ValueError(f"n={n}, columns={columns}: accepted are whole numbers of at least 1")
    if not len(dataset):
        raise DataError("there are no pairs to show")
    n = min(n, len(dataset))
    batch = dataset.batch(np.arange(n) * len(dataset) // n, epoch)
    if batch.x.dtype != np.uint8:
        raise DataError("features have no picture; a contact sheet needs images")
    tiles = np.concatenate([batch.x, batch.y], axis=2).transpose(0, 2, 3, 1)  # (B, 2H, W, 3)
    count, height, width, channels = tiles.shape
    columns = min(columns, count)
    lines, gap = -(-count // columns), 2
    sheet = np.full((lines * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet
