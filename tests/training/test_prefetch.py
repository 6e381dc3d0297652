"""Batches made in the background are the ones asked for, in order."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from toy_runs import FeaturePairs, Hooked, digits

from iiae_fast import data
from iiae_fast.training.prefetch import prefetch

CPU = torch.device("cpu")


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("iiae-prefetch")]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_batches_come_in_order_whatever_the_timing(depth: int) -> None:
    random = np.random.default_rng()
    pairs = FeaturePairs(60)
    plan = [(np.arange(start, start + 6), None) for start in range(0, 60, 6)]
    slow = Hooked(pairs, lambda: time.sleep(random.exponential(0.002)))
    batches = []
    for batch in prefetch(slow, plan, CPU, depth):
        time.sleep(random.exponential(0.002))
        batches.append(batch)
    assert len(batches) == 10
    for (indices, _), batch in zip(plan, batches):
        np.testing.assert_array_equal(batch.x, pairs.x[indices])
        np.testing.assert_array_equal(batch.y, pairs.y[indices])
        np.testing.assert_array_equal(batch.labels, pairs.labels[indices])
    assert not workers()


def test_images_lie_channels_last_and_aligned() -> None:
    pairs = data.load(digits().data).train
    plan = [(np.arange(8), 3), (np.arange(5), None)]
    for (indices, epoch), batch in zip(plan, prefetch(pairs, plan, CPU)):
        expected = pairs.batch(indices, epoch)
        for tensor, array in ((batch.x, expected.x), (batch.y, expected.y)):
            assert tensor.dtype == torch.uint8
            assert tensor.is_contiguous(memory_format=torch.channels_last)
            assert tensor.data_ptr() % 64 == 0
            np.testing.assert_array_equal(tensor, array)


def test_read_only_arrays_and_absent_labels_are_fine(recwarn: pytest.WarningsRecorder) -> None:
    pairs = FeaturePairs(8)
    for array in (pairs.x, pairs.y):
        array.flags.writeable = False
    pairs.labels = None
    (batch,) = prefetch(pairs, [(slice(0, 8), None)], CPU)  # type: ignore[list-item]
    assert batch.labels is None
    batch.x.zero_()
    assert pairs.x.any(), "the batch is a copy"
    assert not recwarn.list


def test_an_error_arrives_where_its_batch_was_due() -> None:
    calls = iter(range(100))

    def fail_at_third() -> None:
        if next(calls) == 2:
            raise RuntimeError("third")

    received = []
    batches = prefetch(Hooked(FeaturePairs(60), fail_at_third), [(np.arange(3), None)] * 9, CPU)
    with pytest.raises(RuntimeError, match="third"):
        received.extend(iter(batches.__next__, None))
    assert len(received) == 2
    assert not workers()


def test_closing_early_ends_the_thread() -> None:
    made = []
    with closing(prefetch(Hooked(FeaturePairs(60), lambda: made.append(1)), [(np.arange(3), None)] * 50, CPU)) as batches:
        next(batches)
        assert workers()
    assert not workers()
    assert len(made) < 50
