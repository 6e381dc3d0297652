"""Which pairs make up each training step: pure functions of (seed, epoch), so a run's place is (epoch, position)."""

from __future__ import annotations

__all__ = ["ClassBalancedPairs", "EpochSampler", "ShuffledBatches", "sampler_for"]

from typing import Protocol

import numpy as np
import numpy.typing as npt

from iiae_fast.config import DataConfig, OptimConfig
from iiae_fast.data import draws
from iiae_fast.data.types import PairedDataset
from iiae_fast.errors import DataError


class EpochSampler(Protocol):
    """The order of training."""

    def batches(self, epoch: int) -> npt.NDArray[np.int64]:
        """The steps of one epoch: indices, (steps, batch size) int64, a pure function of (seed, epoch)."""


class ShuffledBatches:
    """Every pair at most once per epoch, in a new order each time.

    The last, short batch is dropped when there is a full one (other pairs fall into it in every epoch): BatchNorm's batch
    statistics over a handful of pairs, in the extreme over one, are too noisy to learn from. Fewer than ``batch_size`` pairs
    make one batch of them all.

    Raises:
        DataError: There are no pairs.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        if n < 1:
            raise DataError("there are no training pairs to draw batches from")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: accepted is a whole number of at least 1")
        self._n, self._seed = n, seed
        self._batch_size = min(batch_size, n)

    def batches(self, epoch: int) -> npt.NDArray[np.int64]:
        """(n // batch_size, batch_size) int64."""
        steps = self._n // self._batch_size
        order = draws.permutation(self._n, self._seed, "order", epoch)
        return order[: steps * self._batch_size].reshape(steps, self._batch_size)


class ClassBalancedPairs:
    """One pair of every class in each step, as the published Sketchy training (100 classes, batches of 100).

    An epoch has as many steps as makes it about one pass over the pairs, n // classes. Each class runs through shuffles of
    its own pairs, so none repeats before all were seen.

    Args:
        labels: Class of each pair, integers (n,); any values.
        seed: Of the order.

    Raises:
        DataError: There are no pairs, or only one class (BatchNorm needs batches of at least two).
    """

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        classes, counts = np.unique(labels, return_counts=True)
        if len(classes) < 2:
            raise DataError(f"class-balanced batches need pairs of at least 2 classes, got {len(classes)}")
        self._members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
        self._steps = len(labels) // len(classes)
        self._seed = seed

    def batches(self, epoch: int) -> npt.NDArray[np.int64]:
        """(n // classes, classes) int64."""
        steps = np.empty((self._steps, len(self._members)), np.int64)
        for column, members in enumerate(self._members):
            rounds = -(-self._steps // len(members))
            orders = [draws.permutation(len(members), self._seed, f"class {column} round {r}", epoch) for r in range(rounds)]
            steps[:, column] = members[np.concatenate(orders)[: self._steps]]
        return steps


def sampler_for(dataset: PairedDataset, optim: OptimConfig, data: DataConfig) -> EpochSampler:
    """The sampler a run trains with.

    Feature pairs come class by class (``ClassBalancedPairs``: the batch size is the number of classes, whatever
    ``optim.batch_size`` says); everything else in ``ShuffledBatches`` of ``optim.batch_size``.

    Raises:
        DataError: The data set is empty, or has a single class.
    """
    if data.kind == "features" and dataset.labels is not None:
        return ClassBalancedPairs(dataset.labels, optim.seed)
    return ShuffledBatches(len(dataset), optim.batch_size, optim.seed)
