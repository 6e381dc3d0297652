"""Contact sheets: what a model makes of images, as labelled grids (uint8, height × width × 3) ready for PNG.

Images come in as the data sets give them, uint8 ``(B, C, H, W)`` with 1 or 3 channels.
"""

from __future__ import annotations

__all__ = [
    "Tile",
    "code_swaps",
    "compose",
    "neighbours",
    "png_bytes",
    "prior_translations",
    "reconstructions",
    "save_png",
    "style_translations",
    "to_images",
]

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from iiae_fast.errors import require
from iiae_fast.storage import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from iiae_fast.model import IIAE

UInt8 = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Domain = Literal["x", "y"]

PAPER: Colour = (255, 255, 255)
INK: Colour = (70, 70, 70)
RIGHT: Colour = (22, 163, 74)
WRONG: Colour = (220, 38, 38)

_GAP = 4
_FRAME = 4
_TEXT = 13  # pixels


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        image: uint8 ``(C, H, W)``.
        frame: Colour of a frame around it, or None.
        caption: Short text below it.
    """

    image: UInt8
    frame: Colour | None = None
    caption: str = ""


def compose(
    rows: Sequence[Sequence[Tile | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    side: int | None = None,
) -> UInt8:
    """Lay tiles out as a table.

    Args:
        rows: Tiles by row; None leaves a place empty. Rows may have different lengths.
        row_labels: One for each row, or none at all.
        column_labels: One for each column, or none at all; ``"\\n"`` breaks a line.
        side: Pixels that the longer side of a tile takes. None: the images' own size, but at least 64 and at most 128.

    Returns:
        uint8 ``(H, W, 3)``, white where nothing is.

    Raises:
        ValueError: There is no tile, or an image has neither 1 nor 3 channels.
    """
    require("PIL", "train")
    from PIL import Image, ImageDraw, ImageFont

    tiles = [tile for row in rows for tile in row if tile is not None]
    if not tiles:
        raise ValueError("a sheet needs at least one tile")
    side = side or min(max(64, *(max(tile.image.shape[1:]) for tile in tiles)), 128)
    font = ImageFont.load_default(_TEXT)

    def extent(text: str) -> tuple[int, int]:
        left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=font)
        return int(right - left) + 1, int(bottom - top) + 1

    line = extent("Ag")[1] + 4
    caption_height = line if any(tile.caption for tile in tiles) else 0
    step_x, step_y = side + 2 * _FRAME + _GAP, side + 2 * _FRAME + _GAP + caption_height
    columns = max(len(row) for row in rows)
    margin_x = max((extent(label)[0] for label in row_labels), default=0) + (4 * _GAP if row_labels else _GAP)
    margin_y = max((line * (label.count("\n") + 1) for label in column_labels), default=0) + _GAP
    # A label may be wider than its column: columns grow to fit.
    step_x = max([step_x, *(extent(label)[0] + 2 * _GAP for label in column_labels)])

    sheet = Image.new("RGB", (margin_x + columns * step_x + _GAP, margin_y + len(rows) * step_y + _GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(column_labels):
        middle = margin_x + column * step_x + step_x // 2
        draw.multiline_text((middle, margin_y - _GAP), label, INK, font, anchor="md", align="center", spacing=2)
    for index, row in enumerate(rows):
        top = margin_y + index * step_y
        if row_labels:
            draw.text((margin_x - 2 * _GAP, top + (step_y - caption_height) // 2), row_labels[index], INK, font, anchor="rm")
        for column, tile in enumerate(row):
            if tile is None:
                continue
            left = margin_x + column * step_x + (step_x - side - 2 * _FRAME) // 2
            if tile.frame is not None:
                box = (left, top, left + side + 2 * _FRAME - 1, top + side + 2 * _FRAME - 1)
                draw.rectangle(box, outline=tile.frame, width=_FRAME - 1)
            picture = _picture(tile.image, side)
            offset = (left + _FRAME + (side - picture.width) // 2, top + _FRAME + (side - picture.height) // 2)
            sheet.paste(picture, offset)
            if tile.caption:
                middle = left + _FRAME + side // 2
                draw.text((middle, top + side + 2 * _FRAME + 1), tile.caption, tile.frame or INK, font, anchor="ma")
    return np.asarray(sheet)


def _picture(image: UInt8, side: int) -> Any:
    """A PIL image whose longer side is ``side``: enlarged in whole blocks of pixels, reduced smoothly."""
    from PIL import Image

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image of shape {image.shape}: drawn are (1, H, W) and (3, H, W)")
    picture = Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)))
    width, height = picture.size
    longer = max(width, height)
    size = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
    return picture.resize(size, Image.Resampling.NEAREST if side >= longer else Image.Resampling.BOX)


def png_bytes(sheet: UInt8) -> bytes:
    """``sheet``, uint8 ``(H, W, 3)``, as a PNG file."""
    require("PIL", "train")
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: str | Path, sheet: UInt8) -> Path:
    """Write ``sheet`` as a PNG file, whole or not at all."""
    path = Path(path)
    write_atomic(path, png_bytes(sheet))
    return path


def to_images(values: Tensor) -> UInt8:
    """Images in [−1, 1], ``(B, C, H, W)``, as uint8 ``(B, C, H, W)``: the inverse of v/127.5 − 1."""
    import torch

    images: UInt8 = ((values.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return images


def _tensor(model: IIAE, images: UInt8) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).to(next(model.parameters()).device)


def reconstructions(model: IIAE, x: UInt8, y: UInt8) -> UInt8:
    """Pairs above what the model rebuilds of them from the means of q(z_x|x), q(z_s|x,y), q(z_y|y); one pair a column."""
    import torch

    with torch.inference_mode():
        out = model(_tensor(model, x), _tensor(model, y), sample=False)
    rows = [[Tile(image) for image in images] for images in (x, to_images(out.x_hat), y, to_images(out.y_hat))]
    return compose(rows, ["x", "x rebuilt", "y", "y rebuilt"])


def prior_translations(model: IIAE, source: UInt8, partner: UInt8, to: Domain, samples: int = 6, seed: int = 0) -> UInt8:
    """Each source image translated with ``samples`` draws of the target's exclusive code from the prior N(0, I).

    Rows are source images, ``(B, C, H, W)``. Each column after the first is one draw, the same for all rows; the last column
    is the true partner.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(samples, model.config.exclusive_dim, generator=generator)
    with torch.inference_mode():
        z_s = _shared(model, source, "x" if to == "y" else "y")
        decoded = [to_images(_decoder(model, to)(z_s, z.to(z_s).expand(len(z_s), -1))) for z in draws]
    rows = [[Tile(image), *(Tile(column[row]) for column in decoded), Tile(partner[row])] for row, image in enumerate(source)]
    return compose(rows, column_labels=["x" if to == "y" else "y", *(f"sample {n + 1}" for n in range(samples)), f"true {to}"])


def style_translations(model: IIAE, content: UInt8, style: UInt8, to: Domain) -> UInt8:
    """Content (rows) carried into the target domain in the style of reference images of that domain (columns)."""
    import torch

    source: Domain = "x" if to == "y" else "y"
    with torch.inference_mode():
        z_s, z_style = _shared(model, content, source), _exclusive(model, style, to)
        decoded = _table(_decoder(model, to), z_s, z_style)
    return _cross_table(content, style, decoded, f"content {source}", f"style {to}")


def code_swaps(model: IIAE, images: UInt8, domain: Domain) -> UInt8:
    """Within one domain: z_s of the row's image decoded with the exclusive code of the column's; the diagonal rebuilds."""
    import torch

    with torch.inference_mode():
        decoded = _table(_decoder(model, domain), _shared(model, images, domain), _exclusive(model, images, domain))
    return _cross_table(images, images, decoded, "z_s of", f"z_{domain} of")


def _table(decoder: Callable[[Tensor, Tensor], Tensor], z_s: Tensor, z_exclusive: Tensor) -> list[UInt8]:
    """Rows of decoded images: row i has z_s[i] with every exclusive code."""
    return [to_images(decoder(z.expand(len(z_exclusive), -1), z_exclusive)) for z in z_s]


def _cross_table(rows: UInt8, columns: UInt8, decoded: list[UInt8], row_label: str, column_label: str) -> UInt8:
    head: list[Tile | None] = [None, *(Tile(image) for image in columns)]
    body: list[list[Tile | None]] = [[Tile(image), *map(Tile, line)] for image, line in zip(rows, decoded)]
    return compose([head, *body], [column_label, row_label, *[""] * (len(body) - 1)])


def _shared(model: IIAE, images: UInt8, domain: Domain) -> Tensor:
    return model.encode_shared(**{domain: _tensor(model, images)})


def _exclusive(model: IIAE, images: UInt8, domain: Domain) -> Tensor:
    return model.encode_exclusive(**{domain: _tensor(model, images)})


def _decoder(model: IIAE, domain: Domain) -> Callable[[Tensor, Tensor], Tensor]:
    return model.decode_x if domain == "x" else model.decode_y


def neighbours(
    queries: UInt8, partners: UInt8, hits: Sequence[UInt8], names: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]
) -> UInt8:
    """Queries with their true partners and nearest neighbours; right hits are framed green, wrong ones red.

    Args:
        queries: ``(Q, C, H, W)``.
        partners: The pairs' other halves, ``(Q, C, H, W)``.
        hits: For each query its k neighbours' images, nearest first, ``(k, C, H, W)`` each.
        names: Rows of the queries in their data set, ``(Q,)``.
        indices: Rows of the hits in theirs, ``(Q, k)``: a hit is right where it equals the query's row.
    """
    rows = [
        [
            Tile(query, caption=f"#{name}"),
            Tile(partner, caption=f"#{name}"),
            *(Tile(image, RIGHT if at == name else WRONG, f"#{at}") for image, at in zip(images, found)),
        ]
        for query, partner, images, name, found in zip(queries, partners, hits, names.tolist(), indices.tolist())
    ]
    return compose(rows, column_labels=["query", "partner", *(f"hit {rank + 1}" for rank in range(indices.shape[1]))])
