"""Exact retrieval over codes: the same neighbours on every machine, thread count and instruction set.

Numpy in, numpy out; torch in, torch out on the same device. Nothing here imports torch: tensors are recognized only if the
caller has imported it (``ShardedIndex`` alone needs it).
"""

from __future__ import annotations

__all__ = ["METRICS", "FlatIndex", "Hits", "ShardedIndex", "evaluate", "paired_recall", "search"]

from typing import TYPE_CHECKING, Any

from iiae_fast.retrieval.evaluation import evaluate, paired_recall
from iiae_fast.retrieval.index import FlatIndex, Hits, search
from iiae_fast.retrieval.inputs import METRICS

if TYPE_CHECKING:
    from iiae_fast.retrieval.sharded import ShardedIndex


def __getattr__(name: str) -> Any:
    if name == "ShardedIndex":
        from iiae_fast.retrieval.sharded import ShardedIndex

        return ShardedIndex
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
