"""A slow restatement, in numpy, of what the engine must return: independent of csrc/, equal to it bit for bit."""

from __future__ import annotations

import math

import numpy as np

LANES = 16
_exp = np.frompyfunc(math.exp, 1, 1)  # libm's, which the engine uses; numpy has its own


def lane_sum(terms: np.ndarray) -> np.ndarray:
    """Sum over the last axis: 16 interleaved lanes, each in order, then folded in halves."""
    count = terms.shape[-1]
    padded = np.zeros((*terms.shape[:-1], -(-count // LANES) * LANES))
    padded[..., :count] = terms
    padded = padded.reshape(*terms.shape[:-1], -1, LANES)
    lanes = np.zeros((*padded.shape[:-2], LANES))
    for step in range(padded.shape[-2]):
        lanes = lanes + padded[..., step, :]
    width = LANES // 2
    while width:
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
        width //= 2
    return lanes[..., 0]


def _normalized_exponent(rows: np.ndarray) -> np.ndarray:
    largest = np.abs(rows).max(axis=-1, keepdims=True)
    _, exponent = np.frexp(np.where(largest > 0, largest, 1.0))
    return np.ldexp(rows, 1 - exponent)


def distances(queries: np.ndarray, rows: np.ndarray, metric: str) -> np.ndarray:
    """(Q, N) fp32 canonical distances."""
    rescale = metric == "cosine"
    q = queries.astype(np.float64)
    x = rows.astype(np.float64)
    if rescale and queries.dtype == np.float64:
        q = _normalized_exponent(q)
    if rescale and rows.dtype == np.float64:
        x = _normalized_exponent(x)
    q, x = q[:, None, :], x[None, :, :]
    if metric in {"sqeuclidean", "euclidean"}:
        result = lane_sum((q - x) ** 2)
        if metric == "euclidean":
            result = np.sqrt(result)
    elif metric == "inner_product":
        result = lane_sum(q * x)
    elif metric == "cosine":
        product = lane_sum(q * q) * lane_sum(x * x)
        with np.errstate(invalid="ignore", divide="ignore"):
            result = np.maximum(0.0, 1.0 - lane_sum(q * x) / np.sqrt(product))
        result = np.where(product == 0, 1.0, result)
    else:
        half = q.shape[-1] // 2
        mq, lq = q[..., :half], np.clip(q[..., half:], -14.0, 9.21035)
        mx, lx = x[..., :half], np.clip(x[..., half:], -14.0, 9.21035)
        if metric == "gaussian_w2":
            sq, sx = _exp(0.5 * lq).astype(float), _exp(0.5 * lx).astype(float)
            shape = np.broadcast_shapes(mq.shape, mx.shape)
            difference = np.concatenate([np.broadcast_to(mq - mx, shape), np.broadcast_to(sq - sx, shape)], axis=-1)
            result = lane_sum(difference**2)
        else:
            vq, vx = _exp(lq).astype(float), _exp(lx).astype(float)
            result = np.maximum(0.0, 0.5 * lane_sum(((lx - lq) + (vq + (mq - mx) ** 2) / vx) - 1.0))
    with np.errstate(under="ignore"):
        return result.astype(np.float32) + np.float32(0)


def search(
    queries: np.ndarray, rows: np.ndarray, k: int, metric: str, permitted: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(Q, k) distances and indices; ``permitted`` is a (Q, N) bool mask."""
    table = distances(queries, rows, metric)
    worst = np.float32(-np.inf if metric == "inner_product" else np.inf)
    sign = -1 if metric == "inner_product" else 1
    ids = np.broadcast_to(np.arange(len(rows)), table.shape)
    if permitted is not None:
        table = np.where(permitted, table, worst)
        ids = np.where(permitted, ids, -1)
    order = np.lexsort((ids, sign * table, ids < 0), axis=1)[:, :k]
    return np.take_along_axis(table, order, axis=1), np.take_along_axis(ids, order, axis=1)


def measures(
    queries: np.ndarray, rows: np.ndarray, query_labels: np.ndarray, row_labels: np.ndarray, metric: str, ks: tuple[int, ...]
) -> dict[str, float]:
    """Definitions of ``evaluate``, one query after the other."""
    _, ranking = search(queries, rows, len(rows), metric)
    result: dict[str, float] = {}
    sums = {name: [] for k in ks for name in (f"recall@{k}", f"precision@{k}", f"map@{k}")} | {"map@all": []}
    for order, label in zip(ranking, query_labels):
        hits = (row_labels[order] == label).astype(float)
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        relevant = hits.sum()
        for k in ks:
            sums[f"recall@{k}"].append(float(hits[:k].any()))
            sums[f"precision@{k}"].append(hits[:k].sum() / k)
            sums[f"map@{k}"].append((hits * precision)[:k].sum() / min(k, relevant) if relevant else 0.0)
        sums["map@all"].append((hits * precision).sum() / relevant if relevant else 0.0)
    for name, values in sums.items():
        result[name] = float(np.mean(values))
    return result
