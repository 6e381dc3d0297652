"""The pictures of a report, computed from a model and its test pairs."""

from __future__ import annotations

__all__ = ["Figure", "Group", "neighbour_figures", "picture_groups"]

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from iiae_fast import retrieval
from iiae_fast.reports import grids

if TYPE_CHECKING:
    from iiae_fast.data import PairedDataset
    from iiae_fast.model import IIAE
    from iiae_fast.training import Codes

_HITS = 5
_PAIRS = 8  # pairs in a reconstruction grid
_ROWS = 6  # sources in a translation grid, side of a table of swaps


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        name: Of its file, without suffix.
        title: Short.
        caption: How to read it.
        sheet: uint8 ``(H, W, 3)``.
    """

    name: str
    title: str
    caption: str
    sheet: grids.UInt8

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(grids.png_bytes(self.sheet)).decode()

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.sheet.shape[1])

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.sheet.shape[0])


@dataclass(frozen=True)
class Group:
    """Figures under one heading."""

    title: str
    text: str
    figures: list[Figure]


def neighbour_figures(dataset: PairedDataset, codes: Codes, metric: str, count: int = 12) -> Group:
    """What the shared codes retrieve in both directions: failed queries first, then right ones, ``count`` in all."""
    found = []
    sides = (("x", "y", codes.shared_x, codes.shared_y), ("y", "x", codes.shared_y, codes.shared_x))
    for source, target, queries, database in sides:
        k = min(_HITS, len(database))
        hits = retrieval.search(queries, database, k, metric=metric).indices
        wrong = hits[:, 0] != np.arange(len(hits))
        failed = int(wrong.sum())
        order = np.argsort(~wrong, kind="stable")[:count]
        title = f"{source} to {target}: {failed:,} of {len(hits):,} queries fail"
        if failed == 0:
            caption = "The first queries."
        elif failed < count:
            caption = "All queries that fail, then the first right ones."
        else:
            caption = f"The first {count} queries that fail."
        sheet = _neighbour_sheet(dataset, source, target, order, hits[order])
        found.append(Figure(f"neighbours_{source}_to_{target}", title, caption, sheet))
    text = (
        "Each query with its true partner and the nearest shared codes of the other domain. The partner is framed green where "
        "it is found, everything else red; numbers are rows of the test set."
    )
    return Group("Nearest neighbours", text, found)


def _neighbour_sheet(
    dataset: PairedDataset, source: str, target: str, rows: npt.NDArray[np.int64], hits: npt.NDArray[np.int64]
) -> grids.UInt8:
    query = dataset.batch(rows)
    hit_images = getattr(dataset.batch(hits.reshape(-1)), target)
    images = hit_images.reshape(*hits.shape, *hit_images.shape[1:])
    return grids.neighbours(getattr(query, source), getattr(query, target), list(images), rows, hits)


def picture_groups(model: IIAE, dataset: PairedDataset, seed: int = 0) -> list[Group]:
    """Translation, style, swap and reconstruction grids of a few test pairs.

    Args:
        model: In evaluation mode.
        dataset: Image pairs, at least one.
        seed: Of the prior samples.
    """
    # Spread over the set, whose order may be sorted by class.
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(_PAIRS, len(dataset))).round().astype(np.int64))
    batch = dataset.batch(rows)
    few_x, few_y = batch.x[:_ROWS], batch.y[:_ROWS]
    translated = [
        Figure(
            "samples_x_to_y",
            "x to y, samples",
            "Content from the image on the left; each column is one draw of z_y from the prior.",
            grids.prior_translations(model, few_x, few_y, "y", seed=seed),
        ),
        Figure(
            "samples_y_to_x",
            "y to x, samples",
            "Likewise, each column one draw of z_x.",
            grids.prior_translations(model, few_y, few_x, "x", seed=seed),
        ),
    ]
    styled = [
        Figure(
            "style_x_to_y",
            "x to y, with style",
            "Content by row, style (the reference's z_y) by column; the diagonal has the partner's own style.",
            grids.style_translations(model, few_x, few_y, "y"),
        ),
        Figure(
            "style_y_to_x",
            "y to x, with style",
            "Likewise, with the reference's z_x.",
            grids.style_translations(model, few_y, few_x, "x"),
        ),
    ]
    swaps: tuple[tuple[grids.Domain, grids.UInt8], ...] = (("x", few_x), ("y", few_y))
    swapped = [
        Figure(
            f"swaps_{domain}",
            f"{domain}: codes swapped",
            f"z_s of the row's image, z_{domain} of the column's; the diagonal is a reconstruction.",
            grids.code_swaps(model, images, domain),
        )
        for domain, images in swaps
    ]
    rebuilt = [
        Figure(
            "reconstructions",
            "Both domains from their codes",
            "Means of q(z_x|x), q(z_s|x,y) and q(z_y|y), decoded.",
            grids.reconstructions(model, batch.x, batch.y),
        )
    ]
    return [
        Group(
            "Translation",
            "The shared code is the mean of r(z_s|x) or r(z_s|y); what the source does not say is sampled.",
            translated,
        ),
        Group("Translation with a style reference", "", styled),
        Group("Code swaps", "What each code carries: rows should keep their content, columns their appearance.", swapped),
        Group("Reconstruction", "", rebuilt),
    ]
