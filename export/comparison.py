"""Exported files against one another, by NVIDIA's Polygraphy: a graph and its engine, or one graph in two precisions.

``verify`` asks whether a file computes what the model computes, and needs the model. Here two files are enough, as on a machine
that only serves them.
"""

from __future__ import annotations

__all__ = ["OutputDifference", "compare", "polygraphy_runner"]

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from iiae_fast.errors import InputError, require
from iiae_fast.export.parity import TOLERANCES, ParityError
from iiae_fast.export.session import Session, TensorInfo, load

if TYPE_CHECKING:
    import os

    from iiae_fast.export.session import Inputs

_SAMPLES = 64


@dataclass(frozen=True)
class OutputDifference:
    """How far two files are apart in one output.

    Attributes:
        output: Its name.
        max_absolute_error: Largest difference of two elements, as Polygraphy finds it.
        mean_absolute_error: Mean difference.
        max_relative_error: The largest, over the largest magnitude in the reference's output; the measure of ``ParityReport``.
        tolerance: Largest accepted ``max_relative_error``.
    """

    output: str
    max_absolute_error: float
    mean_absolute_error: float
    max_relative_error: float
    tolerance: float


def compare(
    reference: str | os.PathLike[str],
    other: str | os.PathLike[str],
    samples: Inputs | None = None,
    tolerance: float | None = None,
    device: str = "auto",
) -> list[OutputDifference]:
    """Run two files on the same samples with Polygraphy's comparator.

    Args:
        reference: A file of ``to_onnx``, ``quantize`` or ``build_tensorrt``.
        other: Another one of the same graph, head and input.
        samples: As their sessions take them. None: 64 random ones, always the same: bytes, pixels uniform in [−1, 1], features
            and codes standard normal. They show whether two files compute the same, not how well a quantized one does on data.
        tolerance: Largest relative error; None takes the wider one of the two precisions' ``TOLERANCES``.
        device: As for ``load``, for both.

    Returns:
        The figures of every output, in the graph's order.

    Raises:
        ParityError: An output differs by more than ``tolerance``, or is not finite.
        InputError: The files are of different graphs, the samples do not fit or are empty, or anything that ``load`` refuses.
        MissingExtraError: Polygraphy, or what runs a file, is not installed.
    """
    require("polygraphy", "compare")
    comparator = require("polygraphy.comparator", "compare")
    logger = require("polygraphy.logger", "compare").G_LOGGER
    paths = (Path(reference), Path(other))
    sessions = [load(path, device=device) for path in paths]
    _check_same_graph(paths, sessions)
    if tolerance is None:
        tolerance = max(TOLERANCES[session.metadata["precision"]] for session in sessions)
    named = sessions[0].named(_random(sessions[0]) if samples is None else samples)
    feed = {name: _on_cpu(values) for name, values in named.items()}
    if not all(map(len, feed.values())):
        raise InputError("samples are empty: at least one is needed")
    runners = [polygraphy_runner(session, f"{number} {path}") for number, (path, session) in enumerate(zip(paths, sessions))]
    with logger.verbosity(logger.CRITICAL):  # it tells of every step on stdout
        results = comparator.Comparator.run(runners, data_loader=[feed])
        expected = results[runners[0].name][0]
        scales = {info.name: float(np.abs(expected[info.name]).max()) for info in sessions[0].outputs}
        accepted = {name: tolerance * scale for name, scale in scales.items()}
        judge = comparator.SimpleCompareFunc(atol=accepted, rtol=0.0, check_error_stat="max")
        ((_, (found,)),) = comparator.Comparator.compare_accuracy(results, compare_func=judge)[0].items()
    differences = []
    for name, scale in scales.items():
        largest, mean = found[name].max_absdiff, found[name].mean_absdiff
        relative = 0.0 if largest == 0 else largest / scale if scale > 0 else math.inf
        differences.append(OutputDifference(name, largest, mean, relative, tolerance))
    _judge(paths, sessions, differences, [name for name in scales if not found[name]])
    return differences


def polygraphy_runner(session: Session, name: str | None = None) -> Any:
    """A session as a Polygraphy runner, for its comparator and other tools.

    Args:
        session: Of a graph or an engine. What ``load`` checks was checked when it was opened.
        name: The runner's; None takes the session's description.

    Returns:
        A ``polygraphy.backend.base.BaseRunner`` that takes and gives numpy arrays.

    Raises:
        MissingExtraError: Polygraphy is not installed.
    """
    require("polygraphy", "compare")
    base = require("polygraphy.backend.base", "compare").BaseRunner
    metadata = require("polygraphy.common", "compare").TensorMetadata

    class Runner(base):  # type: ignore[misc, valid-type]  # Polygraphy is not there when types are checked
        def __init__(self) -> None:
            super().__init__(name or repr(session))

        def get_input_metadata_impl(self) -> Any:
            found = metadata()
            for info in session.inputs:
                found.add(info.name, np.dtype(info.dtype), info.shape)
            return found

        def infer_impl(self, feed_dict: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            start = time.perf_counter()
            outputs: dict[str, NDArray[Any]] = session(feed_dict)
            self.inference_time = time.perf_counter() - start
            return outputs

    return Runner()


def _check_same_graph(paths: tuple[Path, Path], sessions: list[Session]) -> None:
    def facts(session: Session) -> str:
        head, taken = session.metadata["head"], session.metadata["input"]
        return f"{session.metadata['family']} {session.metadata['graph']}, head {head}, input {taken}"

    ours, theirs = sessions
    if facts(ours) != facts(theirs) or (ours.inputs, ours.outputs) != (theirs.inputs, theirs.outputs):
        shapes = [", ".join(f"{info.name} {info.shape[1:]}" for info in (*one.inputs, *one.outputs)) for one in sessions]
        described = [f"{path} is of {facts(one)} ({shape})" for path, one, shape in zip(paths, sessions, shapes)]
        raise InputError(f"only files of one graph can be compared: {', '.join(described)}")


def _judge(paths: tuple[Path, Path], sessions: list[Session], differences: list[OutputDifference], failed: list[str]) -> None:
    if not failed:
        return
    worst = next(difference for difference in differences if difference.output == failed[0])
    weights = {session.metadata["weights"] for session in sessions}
    other = "; they were exported from different weights" if len(weights) > 1 else ""
    where = f"{paths[1]} against {paths[0]}: output {worst.output}"
    if not math.isfinite(worst.max_absolute_error):
        raise ParityError(f"{where} is not finite{other}")
    raise ParityError(
        f"{where} differs by {worst.max_absolute_error:.3g}, which is {worst.max_relative_error:.3g} of its largest magnitude; "
        f"accepted is {worst.tolerance:g}{other}"
    )


def _random(session: Session) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(0)

    def draw(info: TensorInfo) -> NDArray[Any]:
        shape = (_SAMPLES, *(size for size in info.shape[1:] if size is not None))
        if info.dtype == "uint8":
            return generator.integers(256, size=shape, dtype=np.uint8)
        if info.name in ("x", "y") and len(shape) == 4:
            return generator.uniform(-1, 1, shape).astype(np.float32)
        return generator.standard_normal(shape, np.float32)

    return {info.name: draw(info) for info in session.inputs}


def _on_cpu(values: Any) -> NDArray[Any]:
    array: NDArray[Any] = values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()
    return array
