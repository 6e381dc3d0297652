"""Coloured background / coloured digit: pairs made from grey glyphs, as MNIST-CD/CB was made from MNIST.

X ("CB") is the glyph on a coloured background, Y ("CD") the same glyph in a colour; the colours are independent, so that
the glyph's shape is all that the two share. The recipe, worked out from the published images
(github.com/agonzgarc/cross-domain-disen, DATA/MNISTCDCB), reproduces them bit for bit:

    mask = glyph > 0.4            (grey 103 … 255)
    X    = glyph where mask, background colour elsewhere          (strokes keep their grey, 255 is white)
    Y    = digit colour where mask (flat), glyph elsewhere        (the faint fringe keeps its grey)

both enlarged with TensorFlow 1's ``resize_images(BICUBIC)`` and converted back to uint8.
"""

from __future__ import annotations

__all__ = ["CDCBPairs", "colours", "render", "resize_bicubic_legacy"]

import functools

import numpy as np
import numpy.typing as npt

from iiae_fast.data import draws
from iiae_fast.data.types import Batch, ResidentArrays

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_FOREGROUND = 103  # the least grey value above 0.4 of 255


def _cubic_table(steps: int) -> Float32:
    """Keys' cubic kernel with a = −0.75 at t and 1 + t for t = 0, 1/steps … 1, (steps + 1, 2), in float32 throughout."""
    a = np.float32(-0.75)
    t = np.arange(steps + 1, dtype=np.float32) / np.float32(steps)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    t = t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.stack([near, far], axis=1)


@functools.lru_cache(maxsize=16)
def _taps(source: int, target: int) -> tuple[npt.NDArray[np.int64], Float32]:
    """Positions (target, 4) and weights (target, 4) of TensorFlow 1's bicubic resize of one axis.

    align_corners=False without half-pixel centres: target pixel i lies at i · source / target, so that the picture sits a
    little up and left of a centred resize. Weights come from a table of 1,024 steps; positions are clamped to the edge.
    """
    steps = 1024
    table = _cubic_table(steps)
    at = np.arange(target, dtype=np.float32) * (np.float32(source) / np.float32(target))
    base = np.floor(at)
    step = np.rint((at - base) * steps).astype(np.int64)
    weights = np.stack([table[step, 1], table[step, 0], table[steps - step, 0], table[steps - step, 1]], axis=1)
    positions = np.clip(base.astype(np.int64)[:, None] + np.arange(-1, 3), 0, source - 1)
    return positions, weights


def _resize_leading(rows: Float32, target: int, out: Float32) -> None:
    """Resize axis 0: rows (source, n) → out (target, n). The order of the float32 sums is TensorFlow's."""
    positions, weights = _taps(len(rows), target)
    product = np.empty_like(out[0])
    for position, weight, total in zip(positions, weights, out):
        np.multiply(rows[position[0]], weight[0], out=total)
        for tap in (1, 2, 3):
            if weight[tap]:  # adding an exact zero changes nothing
                np.multiply(rows[position[tap]], weight[tap], out=product)
                np.add(total, product, out=total)


def resize_bicubic_legacy(images: UInt8, size: int) -> UInt8:
    """Resize as TensorFlow 1's ``resize_images(BICUBIC)`` does, bit for bit: uint8 (..., h, w) → (..., size, size).

    uint8 → float32 (times 1/255), columns then rows, clip to [0, 1], floor(255.5 · value) but at most 255.
    """
    *lead, height, width = images.shape
    planes = images.reshape(-1, height, width)
    out = np.empty((len(planes), size, size), np.uint8)
    block = max(64, 2**18 // (size * size))  # a working set that fits the second-level cache, but vectors that are long enough
    for start in range(0, len(planes), block):
        part = planes[start : start + block]
        n = len(part)
        # The resized axis leads, so that every tap is one contiguous vector: (h; n, w) → (size; n, w), (w; n, size) → …
        values = part.transpose(1, 0, 2).reshape(height, n * width) * np.float32(1 / 255)
        tall = np.empty((size, n * width), np.float32)
        _resize_leading(values, size, tall)
        values = tall.reshape(size, n, width).transpose(2, 1, 0).reshape(width, n * size)
        wide = np.empty((size, n * size), np.float32)
        _resize_leading(values, size, wide)
        np.clip(wide, 0, 1, out=wide)
        wide *= np.float32(255.5)
        columns = wide.astype(np.uint8).reshape(size, n, size)  # the cast floors
        for plane in range(n):
            out[start + plane] = np.ascontiguousarray(columns[:, plane]).T  # four times as fast as one big transpose
    return out.reshape(*lead, size, size)


def render(glyphs: UInt8, background: UInt8, digit: UInt8, size: int) -> tuple[UInt8, UInt8]:
    """Colour and enlarge glyphs.

    Args:
        glyphs: Grey uint8 (B, h, w), 255 is ink.
        background: RGB of X's background, uint8 (B, 3).
        digit: RGB of Y's digit, uint8 (B, 3).
        size: Side of the images.

    Returns:
        X and Y, uint8 (B, 3, size, size).
    """
    grey, mask = glyphs[:, None], (glyphs >= _FOREGROUND)[:, None]
    pairs = np.empty((2, len(glyphs), 3, *glyphs.shape[1:]), np.uint8)
    pairs[0] = np.where(mask, grey, background[:, :, None, None])
    pairs[1] = np.where(mask, digit[:, :, None, None], grey)
    if glyphs.shape[1:] != (size, size):  # at its own size the resize changes nothing
        pairs = resize_bicubic_legacy(pairs, size)
    return pairs[0], pairs[1]


def colours(seed: int, stream: str, epoch: int | None, indices: np.ndarray) -> tuple[UInt8, UInt8]:
    """Background and digit colours, uint8 (B, 3) each: every channel uniform on 0 … 255, all independent."""
    drawn = (draws.bits(seed, stream, epoch, indices, 6) >> np.uint64(56)).astype(np.uint8)
    return drawn[:, :3], drawn[:, 3:]


def _jitter(glyphs: UInt8, drawn: npt.NDArray[np.float64]) -> UInt8:
    """Move, turn and scale glyphs (B, h, w) a little, by drawn (B, 4) from [0, 1): bilinear, zero outside.

    Shifts of up to 1/16 of the side, turns of up to 8 degrees, scales of 0.92 … 1.08.
    """
    count, height, width = glyphs.shape
    offset = (2 * drawn - 1).astype(np.float32)
    angle = offset[:, 2] * np.float32(np.deg2rad(8))
    scale = 1 + np.float32(0.08) * offset[:, 3]
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    u = np.arange(width, dtype=np.float32)[None, None, :] - ((width - 1) / 2 + offset[:, 0] * (width / 16))[:, None, None]
    v = np.arange(height, dtype=np.float32)[None, :, None] - ((height - 1) / 2 + offset[:, 1] * (height / 16))[:, None, None]
    cos, sin = cos[:, None, None], sin[:, None, None]
    # Coordinates in a copy with a border of one zero pixel.
    column = np.clip(cos * u + sin * v + (width + 1) / 2, 0, width + np.float32(0.999))
    row = np.clip(cos * v - sin * u + (height + 1) / 2, 0, height + np.float32(0.999))
    padded = np.zeros((count, height + 2, width + 2), np.float32)
    padded[:, 1:-1, 1:-1] = glyphs
    left, top = column.astype(np.int32), row.astype(np.int32)
    right, down = column - left, row - top
    at = (np.arange(count, dtype=np.int32)[:, None, None] * (height + 2) + top) * (width + 2) + left
    flat = padded.ravel()
    upper = flat[at] * (1 - right) + flat[at + 1] * right
    lower = flat[at + width + 2] * (1 - right) + flat[at + width + 3] * right
    moved: UInt8 = np.rint(upper * (1 - down) + lower * down).astype(np.uint8)
    return moved


class CDCBPairs:
    """Coloured pairs of grey glyphs, rendered when they are asked for.

    Args:
        glyphs: All glyphs of the source, uint8 (M, h, w).
        labels: Their classes, integers (M,).
        rows: Which of them this split has, (N,).
        stream: Name of the source ("train", "t10k"): a glyph's colours depend on it and on its row there, not on the split.
        size: Side of the images.
        seed: Of colours and shifts.
        recolour: Training colours change with the epoch.
        augment: Training glyphs are moved, turned and scaled a little, the same for both domains.
        swap: Exchange the domains.
    """

    def __init__(
        self,
        glyphs: UInt8,
        labels: np.ndarray,
        rows: np.ndarray,
        *,
        stream: str,
        size: int,
        seed: int,
        recolour: bool = False,
        augment: bool = False,
        swap: bool = False,
    ) -> None:
        self.labels: npt.NDArray[np.int64] | None = labels[rows].astype(np.int64)
        self._glyphs, self._rows, self._stream = glyphs, rows, stream
        self._size, self._seed = size, seed
        self._recolour, self._augment, self._swap = recolour, augment, swap

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: np.ndarray, epoch: int | None = None) -> Batch:
        """Pairs, uint8 (B, 3, size, size); see ``PairedDataset.batch``."""
        rows = self._rows[indices]
        glyphs = self._glyphs[rows]
        if self._augment and epoch is not None:
            glyphs = _jitter(glyphs, draws.uniform(self._seed, f"{self._stream} shifts", epoch, rows, 4))
        background, digit = colours(self._seed, f"{self._stream} colours", epoch if self._recolour else None, rows)
        x, y = render(glyphs, background, digit, self._size)
        assert self.labels is not None
        return Batch(y, x, self.labels[indices]) if self._swap else Batch(x, y, self.labels[indices])

    def resident(self, limit: int | None) -> ResidentArrays | None:
        """See ``PairedDataset``."""
        if self._recolour or self._augment or (limit is not None and len(self) * 6 * self._size**2 > limit):
            return None
        return ResidentArrays(*self.batch(np.arange(len(self))))
