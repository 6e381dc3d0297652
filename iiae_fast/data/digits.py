"""The embedded data: scikit-learn's 1,797 real handwritten digits (8×8, UCI "optdigits" test set) as CD/CB pairs."""

from __future__ import annotations

__all__ = ["TEST_PAIRS", "load_digits_cdcb"]

import numpy as np
import numpy.typing as npt

from iiae_fast.config import DataConfig
from iiae_fast.data import draws
from iiae_fast.data.cdcb import CDCBPairs
from iiae_fast.data.types import Splits
from iiae_fast.errors import require

TEST_PAIRS = 360
_CANVAS = 32


def _enlarge(images: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Digits (N, 8, 8) of 0 … 16 → smooth grey glyphs uint8 (N, 32, 32).

    A border of one blank pixel lets strokes that touch the edge end smoothly; then a centred Catmull–Rom resize (Keys'
    cubic with a = −0.5), in float64 so that every machine rounds alike.
    """
    padded = np.pad(images / 16, ((0, 0), (1, 1), (1, 1)))
    source = padded.shape[1]
    at = (np.arange(_CANVAS) + 0.5) * source / _CANVAS - 0.5
    t = np.abs(at[:, None] - np.arange(source))
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    matrix = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    enlarged = matrix @ padded @ matrix.T
    glyphs: npt.NDArray[np.uint8] = np.rint(np.clip(enlarged, 0, 1) * 255).astype(np.uint8)
    return glyphs


def load_digits_cdcb(config: DataConfig) -> Splits:
    """Splits of the embedded digits.

    The 360 test glyphs are the same whatever the seed (29 to 48 of each class), so that results can be compared; their
    colours, the validation split and everything of training follow ``config.seed``.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    source = require("sklearn.datasets", "train").load_digits()
    glyphs, labels = _enlarge(source.images), source.target
    order = draws.permutation(len(glyphs), 0, "digits test")
    train, test = np.sort(order[TEST_PAIRS:]), np.sort(order[:TEST_PAIRS])
    kept, held = draws.partition(len(train), config.valid_fraction, config.seed, "valid")

    def split(rows: np.ndarray, training: bool) -> CDCBPairs:
        return CDCBPairs(
            glyphs,
            labels,
            rows,
            stream="digits",
            size=config.image_size,
            seed=config.seed,
            recolour=training and config.recolour,
            augment=training and config.augment,
            swap=config.swap,
        )

    return Splits(train=split(train[kept], True), valid=split(train[held], False), test=split(test, False))
