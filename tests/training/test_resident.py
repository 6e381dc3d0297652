"""Pairs kept on the device give the very batches that streaming gives."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch

from iiae_fast.data.images import ImagePairs
from iiae_fast.data.types import PairedDataset
from iiae_fast.training.prefetch import prefetch
from iiae_fast.training.resident import ResidentPairs, make_resident

CPU = torch.device("cpu")
PLAN = [(np.array([3, 0, 5, 8]), 0), (np.array([1, 2, 3, 4]), 0), (np.array([3, 0, 5, 8]), 1), (np.array([7]), None)]


def images(augment: bool, swap: bool = False) -> ImagePairs:
    """Nine of twelve pairs of 34×34 pixels, by up to two of which they are shifted."""
    random = np.random.default_rng(0)
    x, y = random.integers(256, size=(2, 12, 3, 34, 34), dtype=np.uint8)
    rows = np.array([11, 2, 3, 9, 5, 6, 0, 8, 1])
    return ImagePairs(lambda at: (x[at], y[at]), rows, np.arange(12), seed=4, augment=augment, swap=swap)


def resident(dataset: PairedDataset) -> ResidentPairs:
    found = make_resident(dataset, CPU, "auto")
    assert found is not None
    return found


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("swap", [False, True])
def test_batches_are_the_streamed_ones(augment: bool, swap: bool) -> None:
    dataset = images(augment, swap)
    with closing(prefetch(dataset, PLAN, CPU)) as streamed:
        batches = list(zip(resident(dataset).batches(PLAN), streamed, strict=True))
    for ours, theirs in batches:
        for one, other in zip(ours, theirs, strict=True):
            assert one is not None
            assert other is not None
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        assert ours.x.is_contiguous(memory_format=torch.channels_last)
    first, third = batches[0][0], batches[2][0]
    assert torch.equal(first.x, third.x) == (not augment), "the same pairs in another epoch"


def test_what_takes_too_much_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = images(augment=True)
    size = 9 * 2 * 3 * 34 * 34
    for bound, fits in ((size, True), (size - 1, False)):
        monkeypatch.setattr("iiae_fast.training.resident.HOST_BOUND", bound)
        assert (make_resident(dataset, CPU, "auto") is not None) == fits
        assert make_resident(dataset, CPU, "on") is not None, "as the user says"
        assert make_resident(dataset, CPU, "off") is None
