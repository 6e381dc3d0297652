"""Which pictures a report has."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_run import tiny_preset, tiny_run

import iiae_fast
from iiae_fast import data
from iiae_fast.reports import figures
from iiae_fast.training import Codes


@pytest.mark.parametrize(
    ("failed", "caption"),
    [
        (0, "The first queries."),
        (2, "All queries that fail, then the first right ones."),
        (9, "The first 4 queries that fail."),
    ],
)
def test_failed_queries_come_first(failed: int, caption: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    def neighbours(*given: np.ndarray) -> np.ndarray:
        shown.append(given)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(figures.grids, "neighbours", neighbours)
    test = data.load(tiny_preset().data).test
    x = np.arange(360, dtype=np.float32)[:, None] * np.ones(2, np.float32)
    y = x.copy()
    swapped = np.arange(360 - failed, 360)  # the last rows of the set
    y[swapped] = x[np.roll(swapped, 1)]
    none = np.zeros((360, 1), np.float32)
    group = figures.neighbour_figures(test, Codes(x, y, none, none, None), "sqeuclidean", 4)
    for figure, (queries, partners, hits, names, indices) in zip(group.figures, shown, strict=True):
        assert figure.title.endswith(f"{failed} of 360 queries fail")
        assert figure.caption == caption
        assert names.tolist() == [*swapped, *range(360)][:4]
        assert (indices[:, 0] != names).sum() == min(failed, 4)
        source, target = figure.name.removeprefix("neighbours_").split("_to_")
        pairs = test.batch(names)
        assert np.array_equal(queries, getattr(pairs, source))
        assert np.array_equal(partners, getattr(pairs, target))
        assert np.array_equal(hits[3], getattr(test.batch(indices[3]), target))


def test_every_kind_of_picture_is_there() -> None:
    groups = figures.picture_groups(iiae_fast.load(tiny_run()), data.load(tiny_preset().data).test)
    names = [figure.name for group in groups for figure in group.figures]
    assert names == [
        "samples_x_to_y", "samples_y_to_x", "style_x_to_y", "style_y_to_x", "swaps_x", "swaps_y", "reconstructions",
    ]  # fmt: skip
    for group in groups:
        for figure in group.figures:
            assert figure.source.startswith("data:image/png;base64,")
            assert (figure.height, figure.width, 3) == figure.sheet.shape
