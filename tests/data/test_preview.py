"""The table and the picture of a data set."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from iiae_fast.data import Gallery, Splits, contact_sheet, describe
from iiae_fast.data.features import FeaturePairs
from iiae_fast.data.images import ImagePairs
from iiae_fast.errors import DataError

SOURCE = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)


def pairs(n: int, labels=None) -> ImagePairs:
    return ImagePairs(lambda rows: (SOURCE[rows], 255 - SOURCE[rows]), np.arange(n), labels, seed=0)


def test_describe_gives_sizes_shapes_and_classes():
    rows = describe(Splits(pairs(10, np.arange(10) % 3), pairs(0), pairs(4)))
    assert [tuple(row) for row in rows] == [
        ("train", 10, "3 × 4 × 4 uint8", "3 × 4 × 4 uint8", 3),
        ("valid", 0, "3 × 4 × 4 uint8", "3 × 4 × 4 uint8", 0),
        ("test", 4, "3 × 4 × 4 uint8", "3 × 4 × 4 uint8", 0),
    ]


def test_describe_lists_galleries():
    x, labels = np.zeros((3, 5), np.float32), np.array([0, 1, 1])
    features = FeaturePairs(x, x, np.arange(3), np.arange(3), labels)
    rows = describe(Splits(features, features, features, Gallery(x, x[:2], labels, labels[:2])))
    assert [tuple(row) for row in rows[3:]] == [("gallery x", 3, "5 float32", "", 2), ("gallery y", 2, "", "5 float32", 2)]


def test_contact_sheet_shows_evenly_spaced_pairs_x_above_y():
    sheet = contact_sheet(pairs(10), 5, columns=3)
    assert sheet.shape == (2 * 10 - 2, 3 * 6 - 2, 3)
    assert sheet.dtype == np.uint8
    for place, index in enumerate([0, 2, 4, 6, 8]):
        tile = sheet[(place // 3) * 10 :, (place % 3) * 6 :][:8, :4].transpose(2, 0, 1)
        assert_array_equal(tile[:, :4], SOURCE[index])
        assert_array_equal(tile[:, 4:], 255 - SOURCE[index])
    assert (sheet[10:, 12:] == 255).all()
    assert contact_sheet(pairs(2), 100).shape == (8, 2 * 6 - 2, 3)


def test_contact_sheet_refuses_what_it_cannot_show():
    features = FeaturePairs(*[np.zeros((1, 5), np.float32)] * 2, *[np.arange(1)] * 2, np.zeros(1, np.int64))
    with pytest.raises(DataError, match="features have no picture"):
        contact_sheet(features, 4)
    with pytest.raises(DataError, match="no pairs to show"):
        contact_sheet(pairs(0), 4)
    with pytest.raises(ValueError, match="n=0, columns=8: accepted"):
        contact_sheet(pairs(2), 0)
