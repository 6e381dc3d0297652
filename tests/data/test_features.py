"""Feature files: splits by class, galleries, every refusal; and the features made from real sketches."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from paths import DATA, needs_data

from iiae_fast.config import DataConfig
from iiae_fast.data import load
from iiae_fast.errors import DataError

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(10), 6)


def arrays(gallery: bool = False) -> dict[str, np.ndarray]:
    content = {name: RNG.standard_normal((60, 4), dtype=np.float32) for name in ("x", "y")} | {"labels": LABELS}
    if gallery:
        content |= {"test_x": RNG.standard_normal((5, 4), dtype=np.float32), "test_x_labels": np.array([20, 21, 20, 21, 22])}
        content |= {"test_y": RNG.standard_normal((3, 4), dtype=np.float32), "test_y_labels": np.array([21, 20, 20])}
    return content


def write(path, content) -> DataConfig:
    np.savez(path, **content)
    return DataConfig("features", root=str(path), valid_fraction=0.25, test_fraction=0.3)


def everything(dataset, epoch=None):
    return dataset.batch(np.arange(len(dataset)), epoch)


def test_classes_are_split_into_seen_and_unseen_by_the_seed(tmp_path):
    content = arrays()
    splits = load(write(tmp_path / "f.npz", content))
    unseen = set(splits.test.labels)
    assert (len(splits.train), len(splits.valid), len(splits.test), len(unseen)) == (32, 10, 18, 3)
    assert not unseen & (set(splits.train.labels) | set(splits.valid.labels))
    x, y, labels = everything(splits.test, epoch=1)
    rows = np.flatnonzero(np.isin(LABELS, sorted(unseen)))
    assert_array_equal(x, content["x"][rows])
    assert_array_equal(y, content["y"][rows])
    assert_array_equal(labels, LABELS[rows])
    assert x.dtype == np.float32
    assert labels.dtype == np.int64
    assert_array_equal(splits.gallery.x, x)
    assert_array_equal(splits.gallery.y_labels, labels)
    pairs = np.concatenate([np.hstack(everything(split)[:2]) for split in (splits.train, splits.valid, splits.test)])
    expected = np.hstack([content["x"], content["y"]])
    assert_array_equal(pairs[np.argsort(pairs[:, 0])], expected[np.argsort(expected[:, 0])])


def test_given_galleries_of_unequal_size_are_kept_apart(tmp_path):
    content = arrays(gallery=True)
    config = write(tmp_path / "f.npz", content)
    splits = load(config)
    assert (len(splits.train), len(splits.valid)) == (45, 15)
    for name in ("x", "y", "x_labels", "y_labels"):
        assert_array_equal(getattr(splits.gallery, name), content[f"test_{name}"])
    x, y, labels = everything(splits.test)
    assert labels.tolist() == [20, 20, 21, 21]  # class 22 has no y
    assert_array_equal(x, content["test_x"][[0, 2, 1, 3]])
    assert_array_equal(y, content["test_y"][[1, 2, 0, 0]])

    swapped = load(DataConfig("features", root=config.root, swap=True))
    assert_array_equal(swapped.gallery.x, content["test_y"])
    assert_array_equal(swapped.gallery.x_labels, content["test_y_labels"])
    assert len(swapped.test) == 3


def changed(gallery=False, **changes):
    content = arrays(gallery) | changes
    return {name: array for name, array in content.items() if array is not None}


def with_nan(rows: int, bad: int, value: float) -> np.ndarray:
    array = np.zeros((rows, 4), np.float32)
    array[bad:, 2] = value
    return array


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(y=with_nan(60, 41, np.nan)), r"y holds nan in row 41 \(19 of 60 rows are not finite\)"),
        (changed(x=with_nan(60, 7, -np.inf)), "x holds -inf in row 7"),
        (changed(True, test_y=with_nan(3, 2, np.inf)), "test_y holds inf in row 2"),
        (changed(labels=None), "lacks labels; accepted are x, y, labels"),
        (changed(z=np.zeros(3)), "holds an unknown array z"),
        (changed(True, test_y_labels=None), "lacks test_y_labels"),
        (changed(x=np.zeros((60, 4))), r"x is float64 \(60, 4\), accepted is float32"),
        (changed(x=np.zeros(60, np.float32)), r"x is float32 \(60,\), accepted is float32 \(rows, features\)"),
        (changed(x=np.zeros((0, 4), np.float32)), "not empty"),
        (changed(y=np.zeros((60, 5), np.float32)), r"x is \(60, 4\) and y is \(60, 5\)"),
        (changed(labels=LABELS[:-1]), r"labels is int64 \(59,\), accepted is integers \(60,\), one per row of x and y"),
        (changed(labels=LABELS.astype(np.float32)), "labels is float32"),
        (changed(True, test_x=np.zeros((5, 3), np.float32)), "test_x has 3 features per row, x and y have 4"),
        (changed(True, test_y_labels=np.array([1, 2, 3])), "have no class in common"),
    ],
)
def test_bad_arrays_are_named_with_what_is_accepted(tmp_path, content, message):
    config = write(tmp_path / "f.npz", content)
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}.*f\\.npz: .*{message}"):
        load(config)


def test_files_that_are_no_npz_are_refused_without_unpickling(tmp_path):
    path = tmp_path / "f.npz"
    config = write(path, arrays())
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[200] ^= 0xFF  # in the data of x
    for content in (whole[:-50], bytes(damaged), b"", b"plain text"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"f\.npz: not a readable npz file"):
            load(config)
    np.savez(path, x=np.array([object()]), y=np.zeros(1), labels=np.zeros(1))
    with pytest.raises(DataError, match="not a readable npz file"):
        load(config)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match="a single array; expected an npz file with x, y, labels"):
        load(DataConfig("features", root=str(tmp_path / "single.npy")))
    with pytest.raises(DataError, match="expected an npz file"):
        load(DataConfig("features", root=str(tmp_path)))


def test_gradient_histograms_find_orientations():
    pytest.importorskip("PIL")
    from iiae_fast.data.sketches import gradient_histograms

    images = np.zeros((4, 3, 64, 64), np.uint8)
    images[1, :, :, ::4] = 255  # vertical strokes: horizontal gradients, orientation 0
    images[2, :, ::4] = 255  # horizontal strokes: orientation 4 of 8
    images[3] = np.minimum(4 * np.add.outer(np.arange(64), np.arange(64)), 255)[None]  # a diagonal ramp: orientation 2
    rows = gradient_histograms(images)
    assert rows.shape == (4, 512)
    assert rows.dtype == np.float32
    assert not rows[0].any()
    np.testing.assert_allclose((rows[1:] ** 2).mean(axis=1), 1, rtol=1e-5)
    by_orientation = (rows.reshape(4, 8, 64) ** 2).sum(axis=2)
    assert by_orientation[1:].argmax(axis=1).tolist() == [0, 4, 2]
    assert (by_orientation[1:].max(axis=1) > 0.99 * by_orientation[1:].sum(axis=1)).all()


def test_sketch_features_pair_by_class_and_keep_unseen_classes_apart(tmp_path):
    image = pytest.importorskip("PIL.Image")
    from iiae_fast.data.sketches import sketch_features

    counts = {"sketch": {"ape": 2, "bee": 1, "cow": 3, "dog": 1}, "photo": {"ape": 3, "bee": 2, "cow": 1, "elk": 1}}
    for domain, classes in counts.items():
        for name, n in classes.items():
            (tmp_path / domain / name).mkdir(parents=True)
            for i in range(n):
                image.fromarray(RNG.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(tmp_path / domain / name / f"{i}.png")
    used = sketch_features(str(tmp_path), tmp_path / "f.npz", unseen=["bee"])
    assert used == (["ape", "cow"], ["bee"], ["dog", "elk"])
    splits = load(DataConfig("features", root=str(tmp_path / "f.npz"), valid_fraction=0.0))
    assert splits.train.labels.tolist() == [0, 0, 0, 2, 2, 2]
    x, y, _ = everything(splits.train)
    assert [len(np.unique(side[part], axis=0)) for part in (slice(3), slice(3, 6)) for side in (x, y)] == [2, 3, 3, 1]
    assert (splits.gallery.x_labels.tolist(), splits.gallery.y_labels.tolist()) == ([1], [1, 1])
    with pytest.raises(DataError, match="no class dog with both sketches and photos"):
        sketch_features(str(tmp_path), tmp_path / "f.npz", unseen=["dog"])
    with pytest.raises(DataError, match="3 of 3 classes are unseen"):
        sketch_features(str(tmp_path), tmp_path / "f.npz", unseen=["ape", "bee", "cow"])
    with pytest.raises(DataError, match="does not exist"):
        sketch_features(str(tmp_path), tmp_path / "absent" / "f.npz")
    with pytest.raises(DataError, match="sketch: no such folder"):
        sketch_features(str(tmp_path / "photo"), tmp_path / "f.npz")


@needs_data
@pytest.mark.slow
def test_features_of_real_sketches_rank_above_chance(tmp_path):
    pytest.importorskip("PIL")
    from iiae_fast.data.sketches import ECCV_UNSEEN, sketch_features

    used = sketch_features(str(DATA / "sketches" / "sketchy125"), tmp_path / "f.npz", unseen=ECCV_UNSEEN)
    assert (len(used.seen), len(used.unseen), len(used.left_out)) == (32, 7, 86)
    gallery = load(DataConfig("features", root=str(tmp_path / "f.npz"))).gallery
    assert (len(gallery.x), len(gallery.y)) == (70, 175)
    nearest = gallery.y_labels[np.argmax(gallery.x @ gallery.y.T, axis=1)]  # rows have equal norms: cosine
    assert (nearest == gallery.x_labels).mean() > 0.25  # chance is 1/7
