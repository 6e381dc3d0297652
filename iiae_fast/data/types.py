"""What the rest of the package knows of data: batches of pairs, data sets of pairs, splits."""

from __future__ import annotations

__all__ = ["Batch", "Gallery", "PairedDataset", "ResidentArrays", "Splits"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class Batch(NamedTuple):
    """B pairs; row i of ``x`` belongs to row i of ``y``.

    Attributes:
        x: Domain X: images uint8 (B, C, H, W), or features float32 (B, F). Images are never normalised here.
        y: Domain Y, alike.
        labels: Class labels int64 (B,), or None where the data has none.
    """

    x: np.ndarray
    y: np.ndarray
    labels: npt.NDArray[np.int64] | None


class ResidentArrays(NamedTuple):
    """All pairs of a data set at once, for keeping them where the model is.

    Attributes:
        x, y, labels: As in ``Batch``, of all N pairs; never written to.
        draw: ``(indices, epoch)`` to what augments those pairs: whether each is mirrored, bool (B,), and by how many rows and
            columns it is shifted, int64 (B, 2). None: pairs are the same in every epoch.
    """

    x: np.ndarray
    y: np.ndarray
    labels: npt.NDArray[np.int64] | None
    draw: Callable[[np.ndarray, int], tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]] | None = None


class PairedDataset(Protocol):
    """N pairs that are fetched by index.

    A data set whose pairs can be kept on a device also has ``resident(limit)``: its ``ResidentArrays``, or None where pairs are
    drawn anew in every epoch or all of them take more than ``limit`` bytes (None: as many as there are).

    Attributes:
        labels: Class labels int64 (N,), or None.
    """

    labels: npt.NDArray[np.int64] | None

    def __len__(self) -> int:
        """The number of pairs N."""

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> Batch:
        """The pairs at ``indices`` (B,), in that order.

        Args:
            indices: Whole numbers from 0 to N − 1.
            epoch: None gives the canonical pairs, as validated and tested with. A number (from 0) gives the training
                form: colours and augmentation are a pure function of (seed, epoch, index), so a resumed run sees the
                very same pairs.
        """


@dataclass(frozen=True)
class Gallery:
    """Test features of both domains when they are no row pairs: retrieval by class over galleries of any two sizes.

    Attributes:
        x: float32 (N, F).
        y: float32 (M, F).
        x_labels: int64 (N,).
        y_labels: int64 (M,).
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]
    x_labels: npt.NDArray[np.int64]
    y_labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """The three splits of one data set.

    Attributes:
        train: Pairs to learn from.
        valid: Pairs to choose the best checkpoint by; may be empty.
        test: Pairs that are only ever evaluated.
        gallery: Only for feature data: what to rank across domains by class. None for images, where ``test`` is ranked.
    """

    train: PairedDataset
    valid: PairedDataset
    test: PairedDataset
    gallery: Gallery | None = None
