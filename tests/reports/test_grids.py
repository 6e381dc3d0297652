"""Contact sheets: what lies where, and that the model's pictures are the model's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import tiny_preset, tiny_run

import iiae_fast
from iiae_fast import data
from iiae_fast.data import Batch
from iiae_fast.model import IIAE
from iiae_fast.reports import grids


@pytest.fixture(scope="module")
def model() -> IIAE:
    return iiae_fast.load(tiny_run())


@pytest.fixture(scope="module")
def batch() -> Batch:
    return data.load(tiny_preset().data).test.batch(np.arange(4))


def contains(sheet: np.ndarray, image: np.ndarray) -> bool:
    """Whether an image (3, H, W), enlarged in whole blocks to 64 pixels, lies somewhere on the sheet."""
    factor = 64 // image.shape[-1]
    enlarged = image.transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1)
    rows, columns = np.nonzero((sheet[: -63 or None, : -63 or None] == enlarged[0, 0]).all(axis=2))
    return any(np.array_equal(sheet[r : r + 64, c : c + 64], enlarged) for r, c in zip(rows, columns))


def test_sheet_is_uint8_height_width_3_with_white_margins() -> None:
    image = np.full((3, 16, 16), 7, np.uint8)
    sheet = grids.compose([[grids.Tile(image), None], [grids.Tile(image, caption="#1")]], ["row", "two"], ["a", "b\nc"])
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    assert sheet.shape[2] == 3
    assert (sheet[0] == 255).all()
    assert (sheet[:, -1] == 255).all()
    assert contains(sheet, image)
    assert (sheet != 255).any(axis=2)[:, :30].any()  # the row labels


def test_frames_have_their_colours() -> None:
    image = np.zeros((3, 16, 16), np.uint8)
    sheet = grids.compose([[grids.Tile(image, grids.RIGHT), grids.Tile(image, grids.WRONG)]])
    found = {tuple(colour) for colour in sheet.reshape(-1, 3).tolist()}
    assert {grids.RIGHT, grids.WRONG} <= found


def test_labels_do_not_run_into_each_other() -> None:
    image = np.zeros((3, 16, 16), np.uint8)
    long = "a label much wider than its picture"
    narrow = grids.compose([[grids.Tile(image)] * 2], column_labels=["a", "b"])
    wide = grids.compose([[grids.Tile(image)] * 2], column_labels=[long, long])
    head = (wide[:12] != 255).any(axis=(0, 2))
    gaps = np.flatnonzero(np.diff(np.flatnonzero(head)) > 6)  # space between the two labels
    assert wide.shape[1] > narrow.shape[1]
    assert len(gaps) == 1


def test_grey_images_and_large_ones_are_drawn() -> None:
    assert grids.compose([[grids.Tile(np.zeros((1, 16, 16), np.uint8))]]).shape[2] == 3
    assert max(grids.compose([[grids.Tile(np.zeros((3, 256, 256), np.uint8))]]).shape) < 180


@pytest.mark.parametrize("shape", [(2, 16, 16), (16, 16)])
def test_other_channels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="drawn are"):
        grids.compose([[grids.Tile(np.zeros(shape, np.uint8))]])


def test_empty_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one tile"):
        grids.compose([[None]])


def test_to_images_inverts_the_input_scale() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    images = grids.to_images((values.float() / 127.5 - 1).reshape(1, 1, 16, 16))
    assert np.array_equal(images.reshape(-1), np.arange(256))
    assert grids.to_images(torch.tensor([-1.5, 1.5]).reshape(1, 1, 1, 2)).tolist() == [[[[0, 255]]]]


def test_png_round_trip(tmp_path: Path) -> None:
    sheet = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(grids.png_bytes(sheet)))), sheet)
    assert np.array_equal(np.asarray(Image.open(grids.save_png(tmp_path / "a" / "b.png", sheet))), sheet)


def test_reconstructions_show_inputs_and_decoded_means(model: IIAE, batch: Batch) -> None:
    sheet = grids.reconstructions(model, batch.x, batch.y)
    with torch.inference_mode():
        out = model(torch.from_numpy(batch.x), torch.from_numpy(batch.y), sample=False)
    for images in (batch.x, batch.y, grids.to_images(out.x_hat), grids.to_images(out.y_hat)):
        assert all(contains(sheet, image) for image in images)


def test_prior_translations_are_seeded_and_share_draws_by_column(model: IIAE, batch: Batch) -> None:
    sheet = grids.prior_translations(model, batch.x, batch.y, "y", samples=2, seed=3)
    assert np.array_equal(sheet, grids.prior_translations(model, batch.x, batch.y, "y", samples=2, seed=3))
    assert not np.array_equal(sheet, grids.prior_translations(model, batch.x, batch.y, "y", samples=2, seed=4))
    z_y = torch.randn(2, model.config.exclusive_dim, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        z_s = model.encode_shared(x=torch.from_numpy(batch.x))
        for draw in z_y:
            assert all(contains(sheet, image) for image in grids.to_images(model.decode_y(z_s, draw.expand(4, -1))))


def test_style_translations_are_the_models_own(model: IIAE, batch: Batch) -> None:
    sheet = grids.style_translations(model, batch.x, batch.y[:3], "y")
    with torch.inference_mode():
        for style in batch.y[:3]:
            translated = model.translate(x=torch.from_numpy(batch.x), style=torch.from_numpy(style[None]), to="y")
            assert all(contains(sheet, image) for image in grids.to_images(translated))


def test_swaps_take_content_by_row_and_the_exclusive_code_by_column(model: IIAE, batch: Batch) -> None:
    sheet = grids.code_swaps(model, batch.y, "y")
    y = torch.from_numpy(batch.y)
    with torch.inference_mode():
        z_s, z_y = model.encode_shared(y=y), model.encode_exclusive(y=y)
        swapped = grids.to_images(model.decode_y(z_s[[0]], z_y[[2]]))[0]
        other = grids.to_images(model.decode_y(z_s[[2]], z_y[[0]]))[0]
    assert contains(sheet, swapped)
    assert contains(sheet, other)


def test_neighbours_frame_the_partner_green_and_all_else_red() -> None:
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 16, 16), np.uint8)
    right = grids.neighbours(images[:1], images[1:2], [images[2:4]], np.array([7]), np.array([[7, 3]]))
    wrong = grids.neighbours(images[:1], images[1:2], [images[2:4]], np.array([7]), np.array([[4, 3]]))

    def count(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
        return int((sheet == colour).all(axis=2).sum())

    frame = count(right, grids.WRONG)
    assert count(right, grids.RIGHT) > 500
    assert frame > 500
    assert count(wrong, grids.RIGHT) == 0
    assert count(wrong, grids.WRONG) > 1.8 * frame
