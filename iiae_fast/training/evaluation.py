"""Codes of a data set, how well they retrieve across the domains, and the losses on held-out pairs."""

from __future__ import annotations

__all__ = ["Codes", "Validation", "encode", "evaluate", "validate"]

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iiae_fast import objectives, retrieval
from iiae_fast.config import ObjectiveConfig
from iiae_fast.data.types import Gallery, PairedDataset
from iiae_fast.errors import DataError
from iiae_fast.model import IIAE
from iiae_fast.retrieval import inputs
from iiae_fast.training.losses import LossBuffer
from iiae_fast.training.prefetch import DeviceBatch, prefetch

Float32 = npt.NDArray[np.float32]

BATCH_SIZE = 256


@dataclass(frozen=True)
class Codes:
    """Codes of N pairs, row for row.

    Attributes:
        shared_x, shared_y: Means of r(z_s|x) and r(z_s|y), float32 ``(N, D)``.
        exclusive_x, exclusive_y: Means of q(z_x|x) and q(z_y|y), float32 ``(N, E)``.
        labels: Classes, int64 ``(N,)``, or None.
    """

    shared_x: Float32
    shared_y: Float32
    exclusive_x: Float32
    exclusive_y: Float32
    labels: npt.NDArray[np.int64] | None


@dataclass(frozen=True)
class Validation:
    """Held-out pairs: retrieval by the codes' means, and loss terms without annealing (a_t = 1) and without sampling.

    Attributes:
        shared, exclusive: R@1 as ``{"x_to_y": r, "y_to_x": r}``; NaN where a loss is not finite.
        losses: Means over the pairs, by the names of ``LossTerms``.
    """

    shared: dict[str, float]
    exclusive: dict[str, float]
    losses: dict[str, float]

    @property
    def recall(self) -> float:
        """R@1 with shared codes, mean of both directions."""
        return (self.shared["x_to_y"] + self.shared["y_to_x"]) / 2


def encode(model: IIAE, dataset: PairedDataset, batch_size: int = BATCH_SIZE) -> Codes:
    """All codes of a data set's canonical pairs, in evaluation mode; the model's mode is put back.

    Args:
        model: On any device.
        dataset: N pairs; 0 give empty arrays.
        batch_size: Pairs at a time.
    """
    codes = _empty_codes(model, len(dataset), dataset.labels)
    row = 0
    with _evaluating(model), closing(_batches(model, dataset, batch_size)) as batches:
        for batch in batches:
            rows = slice(row, row := row + len(batch.x))
            codes.shared_x[rows] = model.encode_shared(x=batch.x).float().cpu().numpy()
            codes.shared_y[rows] = model.encode_shared(y=batch.y).float().cpu().numpy()
            codes.exclusive_x[rows] = model.encode_exclusive(x=batch.x).float().cpu().numpy()
            codes.exclusive_y[rows] = model.encode_exclusive(y=batch.y).float().cpu().numpy()
    return codes


def evaluate(
    model: IIAE, dataset: PairedDataset | Gallery, metric: str = "sqeuclidean", ks: Sequence[int] = (1, 5)
) -> dict[str, Any]:
    """Cross-domain retrieval with the shared codes, and the leak report: the same with the exclusive codes stays at chance.

    It takes as many threads as torch does (``torch.set_num_threads``).

    Args:
        model: On any device.
        dataset: Pairs, or a gallery of features that are ranked by class alone.
        metric: ``"sqeuclidean"`` or ``"cosine"``, or another of ``iiae_fast.retrieval``.
        ks: Recall cut-offs. R@k is 1 by definition where k reaches the number of pairs.

    Returns:
        For N pairs ``{"shared": {"x_to_y": R@1, "y_to_x": R@1, "x_to_y@5": …}, "exclusive": {…}, "chance": 1/N, "pairs": N}``,
        as fractions. For features with labels ``"shared"`` and ``"exclusive"`` also hold ``"by_class"``: of both directions
        ``"map@all"``, and ``"precision@100"`` where 100 rows are ranked. A gallery gives ``"by_class"`` alone.

    Raises:
        DataError: The data set is empty.
        ValueError: Unknown metric, k below 1, or codes that are not finite.
    """
    if isinstance(dataset, Gallery):
        return _evaluate_gallery(model, dataset, metric)
    count = len(dataset)
    if count == 0:
        raise DataError("the data set is empty: there are no pairs to evaluate")
    codes = encode(model, dataset)
    result: dict[str, Any] = {"chance": 1 / count, "pairs": count}
    for name, x, y in (("shared", codes.shared_x, codes.shared_y), ("exclusive", codes.exclusive_x, codes.exclusive_y)):
        x_codes, y_codes = _beside(model, x), _beside(model, y)
        recalls = dict(retrieval.paired_recall(x_codes, y_codes, 1, metric, threads=torch.get_num_threads()))
        for k in ks:
            if k != 1:
                found = retrieval.paired_recall(x_codes, y_codes, min(k, count), metric, threads=torch.get_num_threads())
                recalls |= {f"{direction}@{k}": value for direction, value in found.items()}
        result[name] = recalls
        if model.config.family == "feature" and codes.labels is not None:
            result[name]["by_class"] = _by_class(x_codes, y_codes, codes.labels, codes.labels, metric)
    return result


def validate(
    model: IIAE, dataset: PairedDataset, objective: ObjectiveConfig, dataset_size: int, stop: Callable[[], bool] = lambda: False
) -> Validation | None:
    """One pass over held-out pairs.

    Args:
        model: On any device; its mode is put back.
        dataset: At least one pair.
        objective: What is minimized.
        dataset_size: Number of training pairs.
        stop: Asked between batches whether to give up.

    Returns:
        The figures, or None when ``stop`` said so.
    """
    objective = dataclasses.replace(objective, kl_annealing_steps=0)
    codes = _empty_codes(model, len(dataset), dataset.labels)
    losses = LossBuffer(-(-len(dataset) // BATCH_SIZE))
    weights: list[int] = []
    with _evaluating(model), closing(_batches(model, dataset, BATCH_SIZE)) as batches:
        for batch in batches:
            if stop():
                return None
            out = model(batch.x, batch.y, sample=False)
            losses.append(objectives.compute(out, batch.x, batch.y, objective, 0, batch.labels, dataset_size).named())
            rows = slice(sum(weights), sum(weights) + len(batch.x))
            weights.append(len(batch.x))
            codes.shared_x[rows] = out.r_x.flat_mean().float().cpu().numpy()
            codes.shared_y[rows] = out.r_y.flat_mean().float().cpu().numpy()
            codes.exclusive_x[rows] = out.q_x.flat_mean().float().cpu().numpy()
            codes.exclusive_y[rows] = out.q_y.flat_mean().float().cpu().numpy()
    means = dict(zip(losses.names, np.average(losses.rows().double().numpy(), axis=0, weights=weights).tolist()))
    if not all(map(math.isfinite, means.values())):  # then codes may be so too, which have no neighbours
        unknown = {"x_to_y": math.nan, "y_to_x": math.nan}
        return Validation(unknown, unknown, means)
    return Validation(
        shared=retrieval.paired_recall(codes.shared_x, codes.shared_y, threads=torch.get_num_threads()),
        exclusive=retrieval.paired_recall(codes.exclusive_x, codes.exclusive_y, threads=torch.get_num_threads()),
        losses=means,
    )


@contextmanager
def _evaluating(model: IIAE) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _batches(model: IIAE, dataset: PairedDataset, batch_size: int) -> Generator[DeviceBatch, None, None]:
    starts = range(0, len(dataset), batch_size)
    plan = ((np.arange(start, min(start + batch_size, len(dataset))), None) for start in starts)
    return prefetch(dataset, plan, next(model.parameters()).device)


def _empty_codes(model: IIAE, count: int, labels: npt.NDArray[np.int64] | None) -> Codes:
    shared = (count, int(np.prod(model.shared_shape)))
    exclusive = (count, model.config.exclusive_dim)
    shared_x, shared_y, exclusive_x, exclusive_y = (
        np.empty(shape, np.float32) for shape in (shared, shared, exclusive, exclusive)
    )
    return Codes(shared_x, shared_y, exclusive_x, exclusive_y, labels)


def _beside(model: IIAE, codes: Float32) -> Float32 | torch.Tensor:
    """Codes where the model is, if that is a device that searches its own memory."""
    device = next(model.parameters()).device
    return torch.from_numpy(codes).to(device) if device.type == inputs.device_type else codes


def _by_class(
    x: Float32 | torch.Tensor, y: Float32 | torch.Tensor, x_labels: np.ndarray, y_labels: np.ndarray, metric: str
) -> dict[str, dict[str, float]]:
    sides = {"x_to_y": (x, y, x_labels, y_labels), "y_to_x": (y, x, y_labels, x_labels)}
    result: dict[str, dict[str, float]] = {}
    for direction, (queries, database, query_labels, database_labels) in sides.items():
        ks = (100,) if len(database) >= 100 else (1,)
        threads = torch.get_num_threads()
        found = retrieval.evaluate(queries, database, query_labels, database_labels, metric=metric, ks=ks, threads=threads)
        result[direction] = {name: found[name] for name in ("map@all", "precision@100") if name in found}
    return result


def _evaluate_gallery(model: IIAE, gallery: Gallery, metric: str) -> dict[str, Any]:
    device = next(model.parameters()).device

    def codes(encoder: Callable[..., torch.Tensor], domain: str, rows: Float32) -> Float32:
        parts = [encoder(**{domain: torch.from_numpy(part).to(device)}) for part in _parts(rows)]
        return torch.cat(parts).float().cpu().numpy()

    def _parts(rows: Float32) -> list[Float32]:
        return [np.array(rows[start : start + BATCH_SIZE]) for start in range(0, len(rows), BATCH_SIZE)]

    if not len(gallery.x) or not len(gallery.y):
        raise DataError("the gallery is empty: there is nothing to rank")
    classes, x_classes = np.unique(gallery.x_labels, return_counts=True)
    y_classes = np.array([(gallery.y_labels == label).sum() for label in classes])
    chance = float(x_classes @ y_classes) / (len(gallery.x) * len(gallery.y))  # precision of a random ranking
    result: dict[str, Any] = {"chance": chance, "x_rows": len(gallery.x), "y_rows": len(gallery.y)}
    with _evaluating(model):
        for name, encoder in (("shared", model.encode_shared), ("exclusive", model.encode_exclusive)):
            x, y = codes(encoder, "x", gallery.x), codes(encoder, "y", gallery.y)
            result[name] = {
                "by_class": _by_class(_beside(model, x), _beside(model, y), gallery.x_labels, gallery.y_labels, metric)
            }
    return result
