"""Paired data: real images and features of two domains, split, coloured and batched as pure functions of a seed.

Importing this package needs numpy alone; scikit-learn (embedded digits) and Pillow (image files) load when first used.
"""

from __future__ import annotations

from iiae_fast.config import DataConfig
from iiae_fast.data.digits import load_digits_cdcb
from iiae_fast.data.features import load_features
from iiae_fast.data.folders import load_side_by_side, load_two_folders, load_views
from iiae_fast.data.mnist import load_mnist_cdcb
from iiae_fast.data.preview import contact_sheet, describe
from iiae_fast.data.roots import data_root
from iiae_fast.data.samplers import ClassBalancedPairs, EpochSampler, ShuffledBatches, sampler_for
from iiae_fast.data.types import Batch, Gallery, PairedDataset, Splits

__all__ = [
    "Batch",
    "ClassBalancedPairs",
    "EpochSampler",
    "Gallery",
    "PairedDataset",
    "ShuffledBatches",
    "Splits",
    "contact_sheet",
    "data_root",
    "describe",
    "load",
    "sampler_for",
]

_LOADERS = {
    "digits-cdcb": load_digits_cdcb,
    "mnist-cdcb": load_mnist_cdcb,
    "side-by-side": load_side_by_side,
    "two-folders": load_two_folders,
    "views": load_views,
    "features": load_features,
}


def load(config: DataConfig) -> Splits:
    """The splits that ``config`` describes; ``DataConfig.kind`` names the loader.

    Raises:
        DataError: A file or folder is missing, corrupt, or not laid out as this kind expects; the message names it.
        MissingExtraError: A package that this kind needs is not installed.
    """
    return _LOADERS[config.kind](config)
