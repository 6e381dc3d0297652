"""Samplers: coverage, balance, and purity in (seed, epoch)."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from iiae_fast.config import DataConfig, OptimConfig
from iiae_fast.data import ClassBalancedPairs, ShuffledBatches, draws, sampler_for
from iiae_fast.errors import DataError


class Labelled:
    """A data set of which only length and labels matter."""

    def __init__(self, labels):
        self.labels = np.asarray(labels, np.int64)

    def __len__(self):
        return len(self.labels)


@pytest.mark.parametrize(("n", "batch_size", "shape"), [(100, 8, (12, 8)), (8, 8, (1, 8)), (7, 8, (1, 7)), (1, 1, (1, 1))])
def test_shuffled_batches_have_no_short_batch_and_no_repeats(n, batch_size, shape):
    batches = ShuffledBatches(n, batch_size, seed=0).batches(0)
    assert batches.shape == shape
    assert batches.dtype == np.int64
    assert len(np.unique(batches)) == batches.size
    assert 0 <= batches.min() <= batches.max() < n


def test_shuffled_batches_are_a_pure_function_of_seed_and_epoch():
    sampler = ShuffledBatches(100, 8, seed=5)
    later = sampler.batches(3)
    assert_array_equal(ShuffledBatches(100, 8, seed=5).batches(3), later)
    assert (sampler.batches(4) != later).any()
    assert (ShuffledBatches(100, 8, seed=6).batches(3) != later).any()
    left_out = [set(range(100)) - set(sampler.batches(epoch).ravel()) for epoch in range(20)]
    assert len(set().union(*left_out)) > 40  # other pairs fall into the dropped batch each time


def test_class_balanced_steps_hold_one_pair_of_every_class():
    labels = np.repeat([7, 3, 900], [10, 4, 40])
    sampler = ClassBalancedPairs(labels, seed=0)
    batches = sampler.batches(0)
    assert batches.shape == (54 // 3, 3)
    assert_array_equal(np.sort(labels[batches], axis=1), np.tile([3, 7, 900], (18, 1)))
    small = batches[:, 0]  # class 3, rows 10 … 13: each is seen before any comes again
    for start in range(0, 16, 4):
        assert set(small[start : start + 4]) == {10, 11, 12, 13}
    assert_array_equal(ClassBalancedPairs(labels, seed=0).batches(0), batches)
    assert (sampler.batches(1) != batches).any()


def test_sampler_for_chooses_by_kind():
    labelled = Labelled([0, 1] * 10)
    optim = OptimConfig(batch_size=5)
    assert sampler_for(labelled, optim, DataConfig("features")).batches(0).shape == (10, 2)
    assert sampler_for(labelled, optim, DataConfig("digits-cdcb")).batches(0).shape == (4, 5)


def test_samplers_refuse_what_cannot_be_batched():
    with pytest.raises(DataError, match="no training pairs"):
        ShuffledBatches(0, 8, seed=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        ShuffledBatches(8, 0, seed=0)
    with pytest.raises(DataError, match="at least 2 classes, got 1"):
        ClassBalancedPairs(np.zeros(5), seed=0)


def test_draws_are_what_they_have_always_been():
    """Splits, orders and colours must survive every refactoring: results are compared across versions."""
    expected = [
        [10473095331986296229, 18251951179138906925],
        [5814984576017633419, 7343294899709851732],
    ]
    assert draws.bits(1, "colours", None, np.array([0, 5]), 2).tolist() == expected
    assert draws.permutation(10, 3, "order", 2).tolist() == [4, 9, 7, 5, 2, 3, 1, 0, 6, 8]


def test_draws_differ_by_every_key():
    base = draws.bits(0, "a", 0, np.arange(50), 3)
    others = [
        draws.bits(1, "a", 0, np.arange(50), 3),
        draws.bits(0, "b", 0, np.arange(50), 3),
        draws.bits(0, "a", 1, np.arange(50), 3),
        draws.bits(0, "a", None, np.arange(50), 3),
        draws.bits(0, "a", 0, np.arange(50, 100), 3),
    ]
    everything = np.concatenate([base, *others])
    assert len(np.unique(everything)) == everything.size
    uniform = draws.uniform(0, "a", 0, np.arange(10000), 1)
    assert 0 <= uniform.min() < 0.001
    assert 0.999 < uniform.max() < 1


def test_partition_holds_out_the_rounded_share():
    kept, held = draws.partition(10, 0.25, 0, "valid")
    assert len(held) == 2
    assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(10))
    assert len(draws.partition(10, 0.0, 0, "valid")[1]) == 0
