"""Proof that a session computes what the model computes."""

from __future__ import annotations

__all__ = ["TOLERANCES", "ParityError", "ParityReport", "agreement", "complete_inputs", "verify"]

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from iiae_fast import retrieval
from iiae_fast.errors import InputError
from iiae_fast.export.graphs import GRAPHS, Graph, Head, evaluate, head_named, output_shape, tensor_shape
from iiae_fast.export.onnx import weights_sha256
from iiae_fast.export.session import Session, by_name

if TYPE_CHECKING:
    from iiae_fast.export.session import Array, Inputs
    from iiae_fast.model import IIAE

# Largest relative error (see ParityReport) by the precision of the graph.
TOLERANCES: dict[str, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-2, "int8": 1e-1, "fp8": 1e-1}

_BATCH = 256  # samples per run


class ParityError(RuntimeError):
    """A session's outputs differ from the model's by more than the tolerance; the message names the worst sample.

    Attributes:
        report: The figures, or None where the session's interface is already wrong.
    """

    def __init__(self, message: str, report: ParityReport | None = None) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class ParityReport:
    """How far a session is from its model, over all samples of one output.

    Errors are relative to the largest magnitude in the model's whole output: codes are compared across samples and pixels share
    one range, so an error must be small against that; relative to elements or samples near zero (a collapsed code), every error
    is large and none matters.

    Attributes:
        graph: Which graph.
        output: Which of its outputs.
        precision: Of the graph.
        samples: How many were compared.
        max_absolute_error: max |session − model|.
        max_relative_error: max |session − model| / max |model|; 0 for two outputs that are zero throughout.
        cosine: Smallest cosine similarity between a sample's two outputs; 1 where both are zero.
        worst_sample: Index of the sample with the largest absolute error.
        top1_agreement: Encoders with two samples and more: share of samples whose nearest other sample (squared L2, ties to the
            lowest index) is the same among the session's codes as among the model's. Otherwise None.
        top10_agreement: Likewise, the mean share of the ten nearest (of all others, where there are fewer) that are the same.
        gallery_top1_agreement: Of z_s with a gallery: share of samples whose nearest item of the other domain is the same, both
            domains' codes by the sessions as both by the model. Otherwise None.
        gallery_top10_agreement: Likewise, the mean share of the ten nearest items.
        tolerance: Largest accepted ``max_relative_error``.
    """

    graph: str
    output: str
    precision: str
    samples: int
    max_absolute_error: float
    max_relative_error: float
    cosine: float
    worst_sample: int
    top1_agreement: float | None
    top10_agreement: float | None
    gallery_top1_agreement: float | None
    gallery_top10_agreement: float | None
    tolerance: float


def verify(
    session: Session,
    model: IIAE,
    samples: Inputs,
    tolerance: float | None = None,
    min_top1_agreement: float | None = None,
    gallery: Session | None = None,
) -> ParityReport:
    """Run both on the same samples, and compare names, shapes, dtypes and values.

    Args:
        session: Of any of the graphs.
        model: The one it was exported from; in any mode, on any device, left as it is.
        samples: As the session takes them, at least one; a tuple has the graph's inputs in order. A dictionary may hold, or a
            tuple be, a pair (x, y) for any graph: a code that is missing is the model's own for the x or y that is there.
        tolerance: Largest relative error; None takes ``TOLERANCES`` of the session's precision.
        min_top1_agreement: Smallest share of equal nearest neighbours, from 0 to 1, in the gallery where there is one; None
            accepts any.
        gallery: Of a graph that gives z_s for x or y: the session of the other domain's, for retrieval across domains as it is
            deployed. ``samples`` must then hold both domains.

    Returns:
        The output's figures; of several outputs, those of the one with the largest relative error. All are held to the limits.

    Raises:
        ParityError: The session has another interface than the model, its outputs are not finite, or they differ too much.
        InputError: The samples do not fit the session, or the gallery is not of the other domain.
    """
    graph = GRAPHS[session.metadata["graph"]]
    head = head_named(session.metadata["head"], graph)
    precision = session.metadata["precision"]
    _check_interface(session, model, graph, head)
    if tolerance is None:
        tolerance = TOLERANCES[precision]
    if gallery is not None:
        _check_gallery(session, gallery)
        _check_interface(gallery, model, GRAPHS[gallery.metadata["graph"]], head)
    reference = copy.deepcopy(model).float().eval()
    ours, theirs = _outputs(session, reference, samples)
    reports = [_compare(graph, name, precision, ours[name], theirs[name], tolerance) for name in graph.outputs]
    if gallery is not None:
        items = tuple(outputs["z_s"] for outputs in _outputs(gallery, reference, samples))
        reports = [_with_gallery(report, (ours["z_s"], theirs["z_s"]), items) for report in reports]
    for report in reports:
        _judge(report, session, model, min_top1_agreement)
    return max(reports, key=lambda report: report.max_relative_error)


def _outputs(session: Session, model: IIAE, samples: Inputs) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Every output of the session's graph, by the session and by the model, which is in evaluation mode."""
    graph, head = GRAPHS[session.metadata["graph"]], cast(Head, session.metadata["head"])
    ours: list[tuple[NDArray[Any], ...]] = []
    theirs: list[tuple[NDArray[Any], ...]] = []
    with torch.no_grad():
        inputs = complete_inputs(session, model, samples)
        count = max(len(inputs[name]) for name in graph.inputs)
        if count == 0:
            raise InputError("samples are empty: at least one is needed")
        for start in range(0, count, _BATCH):
            part = {name: inputs[name][start : start + _BATCH] for name in graph.inputs}
            found = session(part)
            ours.append(tuple(found[name] for name in graph.outputs))
            tensors = {name: _for_model(model, name, values) for name, values in part.items()}
            theirs.append(tuple(output.cpu().numpy() for output in evaluate(model, graph, tensors, head)))
    by_session, by_model = (dict(zip(graph.outputs, map(np.concatenate, zip(*batches)))) for batches in (ours, theirs))
    return by_session, by_model


def _check_gallery(session: Session, gallery: Session) -> None:
    graph, other = (GRAPHS[one.metadata["graph"]] for one in (session, gallery))
    domains = {graph.inputs, other.inputs} == {("x",), ("y",)}
    if not domains or any("z_s" not in one.outputs for one in (graph, other)):
        raise InputError(
            f"gallery: graph {other.name} with graph {graph.name}; accepted are shared_y and encode_y with shared_x and "
            "encode_x, or the other way round"
        )
    if gallery.metadata["head"] != session.metadata["head"]:
        raise InputError(f"gallery: its head is {gallery.metadata['head']}, the session's {session.metadata['head']}")


def _check_interface(session: Session, model: IIAE, graph: Graph, head: Head) -> None:
    found = [(info.name, info.dtype, info.shape) for info in (*session.inputs, *session.outputs)]
    expected: list[tuple[str, str, tuple[int | None, ...]]] = []
    for name in graph.inputs:
        shape = tensor_shape(model, name)
        images = session.metadata["input"] == "uint8" and name in graph.samples
        expected.append((name, "uint8", (None, *shape[1:], shape[0])) if images else (name, "float32", (None, *shape)))
    expected += [(name, "float32", (None, *output_shape(model, name, head))) for name in graph.outputs]
    if found != expected:
        raise ParityError(f"graph {graph.name}: its inputs and outputs are {found}, the model's are {expected}")


def complete_inputs(session: Session, model: IIAE, samples: Inputs) -> dict[str, NDArray[Any]]:
    """Every input of the session's graph as a numpy array: those given as for ``verify``, and the model's own codes.

    Args:
        session: Of any of the graphs.
        model: In evaluation mode; run without gradients.
        samples: As ``verify`` takes them.

    Raises:
        InputError: An input is missing and cannot be computed.
    """
    graph = GRAPHS[session.metadata["graph"]]
    names = ("x", "y") if _is_pair(session, samples) else graph.inputs
    named = by_name(samples, names, f"samples: graph {graph.name}")
    arrays = {name: _to_numpy(name, values) for name, values in named.items()}
    for name in graph.inputs:
        if name in arrays:
            continue
        sources = {"z_s": ("x", "y"), "z_x": ("x",), "z_y": ("y",)}.get(name, ())
        source = next((domain for domain in sources if domain in arrays), None)
        if source is None:
            also = f", nor {' or '.join(sources)} to take it from" if sources else ""
            raise InputError(f"samples have no {name}{also}: graph {graph.name} takes {', '.join(graph.inputs)}")
        encode = model.encode_shared if name == "z_s" else model.encode_exclusive
        parts = [arrays[source][i : i + _BATCH] for i in range(0, len(arrays[source]), _BATCH)]
        with torch.no_grad():
            codes = [encode(**{source: _for_model(model, source, part)}).cpu().numpy() for part in parts]
        arrays[name] = np.concatenate(codes)
    return {name: arrays[name] for name in graph.inputs}


def _is_pair(session: Session, samples: Inputs) -> bool:
    """Whether two samples are x and y rather than the graph's inputs in order."""
    if not isinstance(samples, (tuple, list)) or len(samples) != 2:
        return False
    shapes = [getattr(values, "shape", ())[1:] for values in samples]
    return shapes != [info.shape[1:] for info in session.inputs]


def _to_numpy(name: str, values: Array) -> NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values
    if not isinstance(values, torch.Tensor):
        raise InputError(f"samples {name!r} of type {type(values).__name__}: accepted are numpy arrays and torch tensors")
    return values.detach().cpu().numpy()


def _for_model(model: IIAE, name: str, values: NDArray[Any]) -> torch.Tensor:
    """As the model takes it: images of files ``(B, H, W, C)`` become ``(B, C, H, W)``."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(next(model.parameters()).device)
    if tensor.dtype != torch.uint8:
        return tensor
    shape = model.config.input_shape
    of_files = (*shape[1:], shape[0])
    if tensor.shape[1:] == of_files:
        return tensor.permute(0, 3, 1, 2) if len(shape) == 3 else tensor
    if tensor.shape[1:] == shape:
        return tensor
    accepted = " or ".join(f"(B, {', '.join(map(str, sizes))})" for sizes in (of_files, shape))
    raise InputError(f"samples {name!r} is uint8 of shape {tuple(tensor.shape)}: accepted is uint8 of shape {accepted}")


def _compare(
    graph: Graph, output: str, precision: str, ours: NDArray[Any], theirs: NDArray[Any], tolerance: float
) -> ParityReport:
    a, b = (values.reshape(len(values), -1).astype(np.float64) for values in (ours, theirs))
    with np.errstate(invalid="ignore"):
        errors = np.where(np.isfinite(a) & np.isfinite(b), np.abs(a - b), np.inf).max(axis=1)
    worst = int(errors.argmax())
    scale = float(np.abs(b).max())
    finite = bool(np.isfinite(errors[worst]))
    codes = graph.kind == "encoder" and len(a) > 1 and finite
    top1 = top10 = None
    if codes:
        top1, top10 = agreement(*(_nearest(values.reshape(len(values), -1)) for values in (ours, theirs)))
    return ParityReport(
        graph=graph.name,
        output=output,
        precision=precision,
        samples=len(a),
        max_absolute_error=float(errors[worst]),
        max_relative_error=0.0 if errors[worst] == 0 else float(errors[worst] / scale) if scale > 0 else float("inf"),
        cosine=float(_cosine(a, b).min()) if finite else float("nan"),
        worst_sample=worst,
        top1_agreement=top1,
        top10_agreement=top10,
        gallery_top1_agreement=None,
        gallery_top10_agreement=None,
        tolerance=tolerance,
    )


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    products = np.einsum("ij,ij->i", a, b)
    cosines: NDArray[Any] = np.where(both_zero, 1.0, np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0))
    return cosines


def _with_gallery(
    report: ParityReport, codes: tuple[NDArray[Any], NDArray[Any]], items: tuple[NDArray[Any], ...]
) -> ParityReport:
    """With the agreement across domains, of z_s; codes and items each by the session and by the model."""
    if report.output != "z_s" or not all(np.isfinite(values).all() for values in (*codes, *items)):
        return report
    top1, top10 = agreement(*(_nearest(*pair) for pair in zip(codes, items)))
    return dataclasses.replace(report, gallery_top1_agreement=top1, gallery_top10_agreement=top10)


def agreement(ours: NDArray[Any], theirs: NDArray[Any]) -> tuple[float, float]:
    """Shares of equal nearest and of equal k nearest, of two searches of the same queries: indices ``(B, k)``, best first."""
    same = sum(len(np.intersect1d(mine, others)) for mine, others in zip(ours, theirs))
    return float((ours[:, 0] == theirs[:, 0]).mean()), same / ours.size


def _nearest(codes: NDArray[Any], items: NDArray[Any] | None = None) -> NDArray[Any]:
    """``(B, k)`` indices of the ten items nearest to each code, or of the ten other codes; of all where there are fewer."""
    itself = items is None
    database = codes if items is None else items
    k = min(10, len(database) - itself)
    found: NDArray[Any] = retrieval.search(codes, database, k, exclude="self" if itself else None).indices
    return found


def _judge(report: ParityReport, session: Session, model: IIAE, min_top1_agreement: float | None) -> None:
    where = f"graph {report.graph} ({report.precision}), output {report.output}"
    other = _other_weights(session, model)
    if not np.isfinite(report.max_absolute_error):
        raise ParityError(f"{where}: sample {report.worst_sample} is not finite{other}", report)
    if report.max_relative_error > report.tolerance:
        raise ParityError(
            f"{where}: sample {report.worst_sample} differs by {report.max_absolute_error:.3g}, which is "
            f"{report.max_relative_error:.3g} of the output's largest magnitude; accepted is {report.tolerance:g} "
            f"(smallest cosine {report.cosine:.6f}){other}",
            report,
        )
    share, what = report.top1_agreement, "neighbour"
    if report.gallery_top1_agreement is not None:
        share, what = report.gallery_top1_agreement, "item of the gallery"
    if min_top1_agreement is not None and share is not None and share < min_top1_agreement:
        raise ParityError(
            f"{where}: {share:.2%} of {report.samples} samples have the same nearest {what}; accepted is "
            f"{min_top1_agreement:.2%} and more (sample {report.worst_sample} differs most, by "
            f"{report.max_absolute_error:.3g}){other}",
            report,
        )


def _other_weights(session: Session, model: IIAE) -> str:
    same = session.metadata["weights"] == weights_sha256(model)
    return "" if same else "; it was exported from other weights than this model has"
