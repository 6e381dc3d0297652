"""The CD/CB recipe: against the published images, and what the pairs promise."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from paths import DATA, needs_data

from iiae_fast.config import DataConfig
from iiae_fast.data import load
from iiae_fast.data.cdcb import CDCBPairs, colours, render, resize_bicubic_legacy
from iiae_fast.data.mnist import read_idx

GLYPHS = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = np.arange(12) % 10


def pairs(**settings: object) -> CDCBPairs:
    return CDCBPairs(GLYPHS, LABELS, np.arange(12), stream="test", **{"size": 32, "seed": 0, **settings})


def published_samples() -> tuple[np.ndarray, ...]:
    """Published images (N, 3, 256, 512), their glyphs, background and digit colours."""
    image = pytest.importorskip("PIL.Image")
    folder = DATA / "mnist_cdcb_samples"
    digits = read_idx(DATA / "mnist" / "t10k-images-idx3-ubyte.gz", 3)
    with (folder / "colours.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (folder / row["file"]).exists()]
    images = np.stack([np.asarray(image.open(folder / row["file"])).transpose(2, 0, 1) for row in rows])
    background = np.array([[row[f"bg_{c}"] for c in "rgb"] for row in rows]).astype(np.uint8)
    digit = np.array([[row[f"digit_{c}"] for c in "rgb"] for row in rows]).astype(np.uint8)
    return images, digits[[int(row["t10k_index"]) for row in rows]], background, digit


@needs_data
def test_published_samples_are_reproduced_bit_for_bit():
    images, glyphs, background, digit = published_samples()
    assert len(images) == 60
    x, y = render(glyphs, background, digit, 256)
    assert_array_equal(x, images[..., :256])
    assert_array_equal(y, images[..., 256:])  # the contract allows 42 values off by one; the published order needs none


def resize_as_tensorflow_does(plane: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow 1's resize_bicubic of one plane, value by value, in its order of float32 operations."""
    f = np.float32
    a = f(-0.75)

    def weights(position: np.float32) -> tuple[int, list[np.float32]]:
        base = int(np.floor(position))
        step = int(np.rint((position - f(base)) * f(1024)))

        def near(k: int) -> np.float32:
            t = f(k) / f(1024)
            return ((a + f(2)) * t - (a + f(3))) * t * t + f(1)

        def far(k: int) -> np.float32:
            t = f(k) / f(1024) + f(1)
            return ((a * t - f(5) * a) * t + f(8) * a) * t - f(4) * a

        return base, [far(step), near(step), near(1024 - step), far(1024 - step)]

    def blend(values: list[np.float32], w: list[np.float32]) -> np.float32:
        return values[0] * w[0] + values[1] * w[1] + values[2] * w[2] + values[3] * w[3]

    source = plane.shape[0]
    image = plane.astype(f) * f(1 / 255)
    clamp = lambda i: min(max(i, 0), source - 1)  # noqa: E731
    out = np.empty((size, size), np.uint8)
    for row in range(size):
        top, row_weights = weights(f(row) * (f(source) / f(size)))
        for column in range(size):
            left, column_weights = weights(f(column) * (f(source) / f(size)))
            columns = [blend([image[clamp(top + i), clamp(left + j)] for i in range(-1, 3)], row_weights) for j in range(-1, 3)]
            value = min(max(blend(columns, column_weights), f(0)), f(1))
            out[row, column] = min(int(value * f(255.5)), 255)
    return out


@pytest.mark.parametrize("size", [16, 28, 32, 45])
def test_resize_follows_tensorflow_at_any_size(size):
    planes = GLYPHS[:2]
    expected = np.stack([resize_as_tensorflow_does(plane, size) for plane in planes])
    assert_array_equal(resize_bicubic_legacy(planes, size), expected)
    if size == 28:
        assert_array_equal(expected, planes)


def test_resize_does_not_depend_on_how_many_are_resized_together():
    many = np.tile(GLYPHS, (30, 1, 1))  # more than one working block
    assert_array_equal(resize_bicubic_legacy(many, 32)[-5:], resize_bicubic_legacy(many[-5:], 32))
    assert resize_bicubic_legacy(many[:0], 32).shape == (0, 32, 32)


def test_render_colours_the_background_of_x_and_the_digit_of_y():
    glyph = np.array([[[0, 102, 103, 255]] * 4], np.uint8)  # the mask begins at 103
    background, digit = np.array([[10, 20, 30]], np.uint8), np.array([[200, 100, 50]], np.uint8)
    x, y = render(glyph, background, digit, 4)
    assert_array_equal(x[0, :, 0], [[10, 10, 103, 255], [20, 20, 103, 255], [30, 30, 103, 255]])
    assert_array_equal(y[0, :, 0], [[0, 102, 200, 200], [0, 102, 100, 100], [0, 102, 50, 50]])


def test_colours_are_uniform_and_independent():
    background, digit = colours(0, "train colours", 0, np.arange(20000))
    drawn = np.concatenate([background, digit], axis=1).astype(float)
    assert drawn.min() == 0
    assert drawn.max() == 255
    assert_array_equal(np.abs(drawn.mean(0) - 127.5) < 2.7, True)  # five standard errors
    correlation = np.corrcoef(drawn.T) - np.eye(6)
    assert np.abs(correlation).max() < 0.036  # five standard errors


def test_pairs_are_a_pure_function_of_seed_epoch_and_index():
    first = pairs(recolour=True, augment=True)
    whole = first.batch(np.arange(12), epoch=3)
    again = pairs(recolour=True, augment=True).batch(np.array([7, 2]), epoch=3)
    assert_array_equal(again.x, whole.x[[7, 2]])
    assert_array_equal(again.y, whole.y[[7, 2]])
    assert_array_equal(again.labels, whole.labels[[7, 2]])
    for other in (
        first.batch(np.arange(12), epoch=4),
        pairs(recolour=True, augment=True, seed=1).batch(np.arange(12), epoch=3),
    ):
        assert (other.x != whole.x).any(axis=(1, 2, 3)).all()
        assert (other.y != whole.y).any(axis=(1, 2, 3)).all()


def test_canonical_pairs_have_fixed_colours_and_unmoved_glyphs():
    canonical = pairs(recolour=True, augment=True).batch(np.arange(12))
    plain = pairs()
    for batch in (plain.batch(np.arange(12)), plain.batch(np.arange(12), epoch=5)):
        assert_array_equal(batch.x, canonical.x)
        assert_array_equal(batch.y, canonical.y)


def test_augmentation_moves_both_domains_alike():
    glyphs = np.zeros((64, 32, 32), np.uint8)
    glyphs[:, 12:20, 14:18] = 255
    dataset = CDCBPairs(glyphs, np.zeros(64), np.arange(64), stream="test", size=32, seed=0, augment=True)
    x, y, _ = dataset.batch(np.arange(64), epoch=0)
    background, digit = colours(0, "test colours", None, np.arange(64))
    ink_x = (x != background[:, :, None, None]).any(axis=1)
    ink_y = (y == digit[:, :, None, None]).all(axis=1)
    assert_array_equal(ink_x, ink_y)
    sizes = ink_y.sum(axis=(1, 2))
    assert sizes.min() > 20  # 32 pixels, scaled by at most 8 %
    assert sizes.max() < 45
    row, column = (np.moveaxis(np.indices((32, 32))[:, None] * ink_y, 0, 0).sum(axis=(2, 3)) / sizes)[:2]
    assert 1 < np.abs(row - 15.5).max() < 3  # shifts of up to 2 pixels
    assert 1 < np.abs(column - 15.5).max() < 3


def test_swap_exchanges_the_domains():
    x, y, labels = pairs().batch(np.arange(12))
    swapped = pairs(swap=True).batch(np.arange(12))
    assert_array_equal(swapped.x, y)
    assert_array_equal(swapped.y, x)
    assert_array_equal(swapped.labels, labels)


@pytest.mark.parametrize("size", [32, 64])
def test_digits_have_360_fixed_test_pairs(size):
    pytest.importorskip("sklearn")
    splits = load(DataConfig("digits-cdcb", image_size=size))
    other = load(DataConfig("digits-cdcb", image_size=size, seed=1))
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (1293, 144, 360)
    batch = splits.test.batch(np.arange(360))
    assert batch.x.shape == batch.y.shape == (360, 3, size, size)
    assert batch.x.dtype == batch.y.dtype == np.uint8
    assert_array_equal(batch.labels, splits.test.labels)
    assert_array_equal(splits.test.labels, other.test.labels)  # the glyphs are fixed, the colours follow the seed
    assert (batch.x != other.test.batch(np.arange(360)).x).any()
    assert len(np.unique(batch.y.reshape(360, -1), axis=0)) == 360
    # Every digit lands in exactly one split.
    counts = sum(np.bincount(split.labels) for split in (splits.train, splits.valid, splits.test))
    assert_array_equal(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
