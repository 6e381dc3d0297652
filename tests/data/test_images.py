"""Image files: what is accepted, what is refused by name, how pairs are resized, held out and augmented."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from paths import DATA, needs_data

from iiae_fast.config import DataConfig
from iiae_fast.data import images, load
from iiae_fast.data.images import ImagePairs, ImageStore
from iiae_fast.errors import DataError

Image = pytest.importorskip("PIL.Image")


def picture(seed: int, width: int = 16, height: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, pixels) -> np.ndarray:
    """Save losslessly; returns the pixels as (3, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels.transpose(2, 0, 1)


def side_by_side(root, counts: dict[str, int]) -> dict[str, np.ndarray]:
    return {
        split: np.stack([write(root / split / f"{i}.png", picture(100 * k + i, width=32)) for i in range(n)])
        for k, (split, n) in enumerate(counts.items())
    }


def config(kind: str, root, **settings) -> DataConfig:
    return DataConfig(kind, root=str(root), **{"image_size": 16, **settings})


def everything(dataset, epoch=None):
    return dataset.batch(np.arange(len(dataset)), epoch)


def test_side_by_side_halves_are_x_and_y(tmp_path):
    pixels = side_by_side(tmp_path, {"train": 5, "val": 2, "test": 3})
    splits = load(config("side-by-side", tmp_path))
    for name, dataset in (("train", splits.train), ("val", splits.valid), ("test", splits.test)):
        x, y, labels = everything(dataset)
        assert_array_equal(x, pixels[name][..., :16])
        assert_array_equal(y, pixels[name][..., 16:])
        assert labels is None
    swapped = everything(load(config("side-by-side", tmp_path, swap=True)).test)
    assert_array_equal(swapped.x, pixels["test"][..., 16:])
    assert_array_equal(swapped.y, pixels["test"][..., :16])


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        ({"train": 10, "val": 3, "test": 2}, (10, 3, 2)),
        ({"train": 10, "valid": 3, "test": 2}, (10, 3, 2)),
        ({"train": 10, "test": 2}, (8, 2, 2)),  # facades: valid is held out
        ({"train": 10, "val": 3}, (8, 2, 3)),  # maps: val is the test set
        ({"train": 10}, (6, 2, 2)),  # test and valid are held out: 0.2 of 10, 0.25 of the 8 left
        ({".": 10}, (6, 2, 2)),
    ],
)
def test_splits_follow_the_folders_that_there_are(tmp_path, folders, sizes):
    side_by_side(tmp_path, folders)
    settings = {"valid_fraction": 0.25 if len(folders) == 1 else 0.2, "test_fraction": 0.2}
    splits = load(config("side-by-side", tmp_path, **settings))
    assert (len(splits.train), len(splits.valid), len(splits.test)) == sizes
    held = np.concatenate([everything(split).x for split in (splits.train, splits.valid, splits.test)])
    assert len(np.unique(held.reshape(len(held), -1), axis=0)) == len(held)
    again, other = (load(config("side-by-side", tmp_path, seed=seed, **settings)) for seed in (0, 1))
    assert_array_equal(everything(again.train).x, everything(splits.train).x)
    if len(folders) < 3:
        assert (everything(other.train).x != everything(splits.train).x).any()


@needs_data
@pytest.mark.parametrize(("name", "sizes"), [("facades", (360, 40, 106)), ("multiview/coil100", (25 * 23, 3 * 23, 7 * 23))])
def test_real_folders_load(name, sizes):
    kind = "views" if name.startswith("multiview") else "side-by-side"
    splits = load(DataConfig(kind, root=str(DATA / name), image_size=32))
    counts = [len(split) for split in (splits.train, splits.valid, splits.test)]
    assert sum(counts) == sum(sizes) - (9 if kind == "views" else 0)  # COIL-100's source lacks nine of these views
    assert np.all(np.subtract(sizes, counts) >= 0)
    x, y, _ = splits.test.batch(np.array([3, 5]))
    assert x.shape == y.shape == (2, 3, 32, 32)
    assert (x != y).any()


def test_images_of_any_size_are_brought_to_the_wanted_one(tmp_path):
    big = write(tmp_path / "train" / "a.png", picture(0, width=64, height=32))
    write(tmp_path / "train" / "b.png", picture(1, width=10, height=7))
    x, y, _ = everything(load(config("side-by-side", tmp_path, valid_fraction=0.0, test_fraction=0.0)).train)
    assert x.shape == y.shape == (2, 3, 16, 16)
    areas = big[..., 32:].reshape(3, 16, 2, 16, 2).mean(axis=(2, 4))  # shrinking averages areas
    assert np.abs(y[0] - areas).max() <= 1  # Pillow rounds after each of the two axes


def test_two_folders_pair_by_stem(tmp_path):
    x = np.stack([write(tmp_path / "x" / f"{name}.png", picture(i)) for i, name in enumerate("abcde")])
    y = np.stack([write(tmp_path / "y" / f"{name}.bmp", picture(10 + i)) for i, name in enumerate("abcde")])
    splits = load(config("two-folders", tmp_path, test_fraction=0.2, valid_fraction=0.0))
    batch = everything(splits.train)
    rows = [int(np.flatnonzero((x == image).all(axis=(1, 2, 3)))[0]) for image in batch.x]
    assert len(rows) == 4
    assert_array_equal(batch.y, y[rows])


def test_two_folders_take_split_folders(tmp_path):
    for split, n in (("train", 4), ("val", 1), ("test", 2)):
        for i in range(n):
            write(tmp_path / split / "x" / f"{i}.png", picture(i))
            write(tmp_path / split / "y" / f"{i}.png", picture(i))
    splits = load(config("two-folders", tmp_path))
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (4, 1, 2)


def test_views_pair_view_0_with_every_other_and_split_by_object(tmp_path):
    for number in range(1, 11):
        for angle in (0, 5, 90)[: 2 if number == 4 else 3]:
            write(tmp_path / f"obj{number}__{angle}.png", np.full((16, 16, 3), number * 20 + angle // 5, np.uint8))
    splits = load(config("views", tmp_path, test_fraction=0.2, valid_fraction=0.25))
    seen = []
    for split, objects in ((splits.train, 6), (splits.valid, 2), (splits.test, 2)):
        x, y, labels = everything(split)
        assert len(np.unique(labels)) == objects
        assert_array_equal(x[:, 0, 0, 0], labels * 20)
        assert set((y[:, 0, 0, 0] - labels * 20).tolist()) <= {1, 18}
        seen += labels.tolist()
    assert sorted(seen) == sorted([n for n in range(1, 11) for _ in range(1 if n == 4 else 2)])


def test_augmentation_flips_and_shifts_both_domains_alike_and_purely():
    source = np.stack([picture(i, 64, 64).transpose(2, 0, 1) for i in range(40)])
    dataset = ImagePairs(lambda rows: (source[rows], 255 - source[rows]), np.arange(40), seed=0, augment=True)
    x, y, _ = everything(dataset, epoch=2)
    assert_array_equal(y, 255 - x)
    assert_array_equal(everything(dataset).x, source)
    assert_array_equal(dataset.batch(np.array([9, 3]), epoch=2).x, x[[9, 3]])
    assert (everything(dataset, epoch=3).x != x).any()
    flips, shifts = 0, set()
    for image, original in zip(x, source):
        matches = [
            (flip, dy, dx)
            for flip in (False, True)
            for dy in range(-4, 5)
            for dx in range(-4, 5)
            if np.array_equal(
                image[:, 4:-4, 4:-4], np.roll(original, (-dy, -dx), (1, 2))[:, 4:-4, :: -1 if flip else 1][:, :, 4:-4]
            )
        ]
        assert len(matches) == 1  # every result is one flip and one shift of at most 15/256 of the side
        flips += matches[0][0]
        shifts.add(matches[0][1:])
    assert 8 < flips < 32
    assert len(shifts) > 20


def test_shifted_borders_are_reflected():
    row = np.arange(6, dtype=np.uint8).reshape(1, 1, 1, 6)
    moved = images._flip_and_shift(row, np.array([False]), np.array([[0, -2]]))
    assert moved.ravel().tolist() == [2, 1, 0, 1, 2, 3]
    moved = images._flip_and_shift(row, np.array([True]), np.array([[0, 2]]))
    assert moved.ravel().tolist() == [3, 4, 5, 4, 3, 2]


def test_sets_above_the_memory_bound_are_decoded_as_needed(tmp_path, monkeypatch):
    pixels = np.stack([write(tmp_path / f"{i}.png", picture(i)) for i in range(4)])
    paths = sorted(tmp_path.iterdir())
    kept = ImageStore(paths, 16)
    monkeypatch.setattr(images, "MEMORY_BOUND", 3 * 3 * 16 * 16)
    lazy = ImageStore(paths, 16)
    for path in paths[1:]:
        path.unlink()
    assert_array_equal(kept[np.array([3, 1])][:, 0], pixels[[3, 1]])
    assert_array_equal(lazy[np.array([0])][:, 0], pixels[:1])
    with pytest.raises(DataError, match=r"3\.png: no such file"):
        lazy[np.array([3])]


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    grey = picture(0)[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([picture(1), np.zeros((16, 16), np.uint8)])).save(tmp_path / "b.png")
    Image.fromarray(grey // 64 * 64).convert("P").save(tmp_path / "c.png")
    store = ImageStore(images.list_images(tmp_path), 16)[np.arange(3)][:, 0]
    assert_array_equal(store[0], np.stack([grey] * 3))
    assert_array_equal(store[1], np.full((3, 16, 16), 255))  # transparent: white paper
    assert_array_equal(store[2], np.stack([grey // 64 * 64] * 3))


def spoil_text(folder):
    (folder / "Thumbs.db").write_text("not an image")
    return r"Thumbs\.db: not an image"


def spoil_truncated(folder):
    Image.fromarray(picture(9, 32)).save(folder / "z.jpg")
    (folder / "z.jpg").write_bytes((folder / "z.jpg").read_bytes()[:-300])
    return r"z\.jpg: damaged image"


def spoil_png_byte(folder):
    content = bytearray((folder / "0.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / "0.png").write_bytes(bytes(content))
    return r"0\.png: damaged image"


def spoil_odd_width(folder):
    write(folder / "odd.png", picture(0, width=31))
    return r"odd\.png: width 31 is odd"


def spoil_depth(folder):
    Image.fromarray(np.zeros((16, 32), np.uint16)).save(folder / "deep.png")
    return r"deep\.png: pixel format I(;16)?, accepted are images of 8 bits per channel"


def spoil_folder(folder):
    (folder / "inner").mkdir()
    return "inner: a folder among images"


def spoil_empty(folder):
    for path in folder.iterdir():
        path.unlink()
    return "train: holds no images"


def spoil_both_valid(folder):
    for name in ("val", "valid"):
        (folder.parent / name).mkdir()
    return "holds both val and valid"


def spoil_no_train(folder):
    folder.rename(folder.parent / "test")
    return "holds test but no folder train"


SPOILERS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_bad_file_or_folder_is_named(tmp_path, spoil):
    side_by_side(tmp_path, {"train": 3})
    message = spoil(tmp_path / "train")
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}.*{message}") as caught:
        load(config("side-by-side", tmp_path))
    assert "\n" not in str(caught.value)


def test_names_that_begin_with_a_dot_are_passed_over(tmp_path):
    side_by_side(tmp_path, {"train": 3})
    (tmp_path / "train" / ".DS_Store").write_text("not an image")
    splits = load(config("side-by-side", tmp_path, valid_fraction=0.0, test_fraction=0.0))
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (3, 0, 0)
    assert everything(splits.valid).x.shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("x/lonely.png", r"x/lonely\.png: has no partner named lonely in .*y$"),
        ("y/lonely.png", r"y/lonely\.png: has no partner named lonely in .*x$"),
        ("x/a.bmp", r"x/a\.png: has the same name as a\.bmp"),
    ],
)
def test_two_folders_name_a_missing_or_doubled_partner(tmp_path, extra, message):
    for name in ("x/a.png", "y/a.png", extra):
        write(tmp_path / name, picture(0))
    with pytest.raises(DataError, match=message):
        load(config("two-folders", tmp_path))


def test_two_folders_need_both_folders(tmp_path):
    write(tmp_path / "x" / "a.png", picture(0))
    with pytest.raises(DataError, match="y: no such folder"):
        load(config("two-folders", tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["obj1__0.png", "obj1__5.png", "view.png"], r"view\.png: expected a name like obj12__45\.png"),
        (["obj1__0.png", "obj1__5.png", "obj2__5.png"], r"object 2 has no view at 0 degrees \(obj2__0\.png\)"),
        (["obj1__0.png", "obj1__5.png", "obj1__05.png"], "a second view of object 1 at 5 degrees"),
        (["obj1__0.png", "obj1__5.png", "obj2__0.png"], "object 2 has a single view"),
    ],
)
def test_views_name_what_is_wrong(tmp_path, names, message):
    for name in names:
        write(tmp_path / name, picture(0))
    with pytest.raises(DataError, match=message):
        load(config("views", tmp_path))


@pytest.mark.parametrize("kind", ["side-by-side", "two-folders", "views", "mnist-cdcb", "features"])
def test_an_absent_root_is_named(tmp_path, kind):
    with pytest.raises(DataError, match=r"root=.*gone: no such file or folder"):
        load(config(kind, tmp_path / "gone"))


@pytest.mark.parametrize("kind", ["side-by-side", "two-folders", "features"])
def test_kinds_without_a_default_folder_ask_for_a_root(kind):
    with pytest.raises(DataError, match=f"data of kind {kind} needs a root"):
        load(DataConfig(kind))


@pytest.mark.parametrize("kind", ["side-by-side", "two-folders", "views", "mnist-cdcb"])
def test_a_file_in_place_of_a_folder_is_named(tmp_path, kind):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: expected a folder"):
        load(config(kind, tmp_path / "file"))
