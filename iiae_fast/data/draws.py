"""Random draws as pure functions of (seed, stream, epoch, index).

A counter-based generator (the SplitMix64 finalizer, Steele, Lea and Flood 2014, applied to each key in turn) instead of
``numpy.random``: whole batches are drawn at once, any index can be drawn without its predecessors, and the numbers do not
depend on the version of numpy, so that a split or a colour stays what it is.
"""

from __future__ import annotations

__all__ = ["bits", "partition", "permutation", "uniform"]

import numpy as np
import numpy.typing as npt

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: the increment of SplitMix64
_MASK = 2**64 - 1


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def bits(seed: int, stream: str, epoch: int | None, indices: np.ndarray, count: int) -> npt.NDArray[np.uint64]:
    """Independent 64-bit draws, (len(indices), count) uint64.

    Args:
        seed: From 0 to 2**64 − 1.
        stream: What is drawn ("colours", "shifts"): different names give independent draws.
        epoch: From 0; None is a key of its own.
        indices: Whole numbers from 0.
        count: Draws per index.
    """
    key = np.zeros(1, np.uint64)
    for part in (seed, int.from_bytes(stream.encode(), "little"), 0 if epoch is None else epoch + 1):
        while True:  # 64 bits at a time
            key = _mix(key + np.uint64((_GOLDEN + (part & _MASK)) & _MASK))
            part >>= 64
            if not part:
                break
    rows = _mix(key + np.uint64(_GOLDEN) * (np.asarray(indices).astype(np.uint64) + np.uint64(1)))
    return _mix(rows[:, None] + np.uint64(_GOLDEN) * np.arange(1, count + 1, dtype=np.uint64))


def uniform(seed: int, stream: str, epoch: int | None, indices: np.ndarray, count: int) -> npt.NDArray[np.float64]:
    """Draws from [0, 1), (len(indices), count) float64; arguments as for ``bits``."""
    scaled: npt.NDArray[np.float64] = (bits(seed, stream, epoch, indices, count) >> np.uint64(11)) * 2.0**-53
    return scaled


def permutation(n: int, seed: int, stream: str, epoch: int | None = None) -> npt.NDArray[np.int64]:
    """A shuffle of 0 … n − 1, int64 (n,)."""
    return np.argsort(bits(seed, stream, epoch, np.arange(n), 1)[:, 0], kind="stable")


def partition(n: int, fraction: float, seed: int, stream: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split 0 … n − 1 by a seeded shuffle into (kept, held out), each ascending; round(n · fraction) are held out."""
    order = permutation(n, seed, stream)
    kept = n - round(n * fraction)
    return np.sort(order[:kept]), np.sort(order[kept:])
