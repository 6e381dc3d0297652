"""A flat index whose rows are spread over the ranks of a torch.distributed process group."""

from __future__ import annotations

__all__ = ["ShardedIndex"]

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from iiae_fast.errors import InputError
from iiae_fast.retrieval.index import FlatIndex, Hits
from iiae_fast.retrieval.inputs import ArrayLike, as_count, as_mask, as_row_ids, as_rows, check_metric, like_queries


class ShardedIndex:
    """Exact search over rows that live on several processes; every call is collective.

    Rank r's rows follow those of rank r - 1: a row's index is its place in the concatenation of all shards. Results equal those
    of one ``FlatIndex`` over that concatenation, on every rank.

    Args:
        local_rows: ``(n, D)`` rows of this rank; n may differ between ranks and may be 0.
        process_group: None means the default group, which must be initialized.
        metric: As in ``FlatIndex``.
        device: Where this rank keeps and searches its rows, as in ``FlatIndex``; ranks may differ. Results meet on the CPU.
        threads: As in ``FlatIndex``; note that ranks on one machine share its cores.

    Raises:
        ValueError: On every rank, if any rank's rows are refused, if the ranks disagree on width, dtype or metric, or if there
            are no rows at all.
    """

    def __init__(
        self,
        local_rows: ArrayLike,
        process_group: dist.ProcessGroup | None = None,
        metric: str = "sqeuclidean",
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.metric = metric
        self._group = process_group
        self._index: FlatIndex | None = None
        error, form, count = "", None, 0
        try:
            check_metric(metric)
            rows = as_rows(local_rows, "local_rows", metric)
            form, count = (rows.dim, rows.dtype, metric), len(rows)
            if count:
                self._index = FlatIndex(local_rows, metric, device, threads=threads)
        except ValueError as refused:
            error = str(refused)
        reports = self._gather((error, form, count))
        self._raise_first([report[0] for report in reports])
        if len({report[1] for report in reports}) > 1:
            raise InputError(f"ranks disagree on (width, dtype, metric): {[report[1] for report in reports]}")
        counts = [report[2] for report in reports]
        if sum(counts) == 0:
            raise InputError("no rank has any row; accepted is at least one")
        self._total: int = sum(counts)
        self._start = sum(counts[: dist.get_rank(process_group)])
        self._count = count

    def __len__(self) -> int:
        """Rows on all ranks together."""
        return self._total

    def search(
        self, queries: ArrayLike, k: int, allowed: ArrayLike | None = None, exclude: ArrayLike | str | None = None
    ) -> Hits:
        """The k nearest rows of every query; arguments and result as in ``FlatIndex.search``.

        Every rank gives the same queries, k and masks; masks cover the rows of all ranks.

        Raises:
            ValueError: On every rank, if any rank's arguments are refused.
        """
        error = ""
        found: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
        try:
            found = self._search_local(queries, k, allowed, exclude)
        except ValueError as refused:
            error = str(refused)
        reports = self._gather((error, found))
        self._raise_first([report[0] for report in reports])
        distances = np.concatenate([report[1][0] for report in reports], axis=1)
        indices = np.concatenate([report[1][1] for report in reports], axis=1)
        sign = -1.0 if self.metric == "inner_product" else 1.0
        missing = indices < 0  # sorted last, after every real row
        order = np.lexsort((indices, sign * distances, missing), axis=1)[:, :k]
        best = np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)
        return Hits(*like_queries(as_rows(queries, "queries", self.metric), *best))

    def _search_local(
        self, queries: ArrayLike, k: int, allowed: ArrayLike | None, exclude: ArrayLike | str | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(Q, min(k, local rows)) distances and global indices."""
        k = as_count(k, "k")
        rows = as_rows(queries, "queries", self.metric)
        if k > self._total:
            raise InputError(f"k={k}: accepted is 1 to {self._total}, the number of database rows")
        size = (len(rows), self._total)
        part = slice(self._start, self._start + self._count)
        local_allowed = None if allowed is None else as_mask(allowed, "allowed", *size)[..., part]
        local_exclude: NDArray[Any] | None = None
        if isinstance(exclude, str) or (exclude is not None and "bool" not in str(getattr(exclude, "dtype", ""))):
            ids = as_row_ids(exclude, "exclude", *size)
            local_exclude = np.where((ids >= part.start) & (ids < part.stop), ids - self._start, -1)
        elif exclude is not None:
            local_exclude = as_mask(exclude, "exclude", *size)[..., part]
        if self._index is None:
            return np.empty((len(rows), 0), np.float32), np.empty((len(rows), 0), np.int64)
        hits = self._index.search(queries, min(k, self._count), local_allowed, local_exclude)
        distances, indices = (torch.as_tensor(values).cpu().numpy() for values in hits)
        return distances, np.where(indices >= 0, indices + self._start, -1)

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return values

    @staticmethod
    def _raise_first(errors: list[str]) -> None:
        for rank, error in enumerate(errors):
            if error:
                raise InputError(f"rank {rank}: {error}")
