"""Engines for ``iiae export``: built from the graphs that it wrote, verified where there is a GPU, and described."""

from __future__ import annotations

__all__ = ["build_engines", "describe", "inspect", "show_differences", "show_engines"]

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iiae_fast.cli.output import spans, table

if TYPE_CHECKING:
    import numpy as np

    from iiae_fast.export import EngineInfo, OutputDifference
    from iiae_fast.export.flavors import FlavorName
    from iiae_fast.model import IIAE

_COMPUTING = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")


def build_engines(
    model: IIAE,
    out: Path,
    graphs: Sequence[str],
    flavor: FlavorName,
    batch: tuple[int, int, int] | None,
    targets: tuple[str, ...] | None,
    samples: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Build ``GRAPH.plan`` beside each ``GRAPH.onnx`` of ``out``.

    Args:
        model: What the graphs were exported from.
        out: Their directory.
        graphs: Which.
        flavor, batch, targets: As for ``export.build_tensorrt``.
        samples: x and y to verify on, where there is a GPU that an engine is for.

    Returns:
        For each engine what ``describe`` gives, and ``parity``: a ``ParityReport`` as a dictionary, or None where it was not
        run; ``not_run`` is then the reason.

    Raises:
        ParityError: An engine computes something else than the model.
        InputError: Anything that ``build_tensorrt`` refuses.
    """
    from iiae_fast import export
    from iiae_fast.errors import InputError

    found = []
    for (position,) in spans(len(graphs), 1, "building engines"):
        graph = graphs[position]
        info = export.build_tensorrt(out / f"{graph}.onnx", out / f"{graph}.plan", batch=batch, flavor=flavor, targets=targets)
        parity, reason = None, ""
        try:
            session = export.load(info)
        except InputError as error:
            reason = str(error)
        else:
            parity = dataclasses.asdict(export.verify(session, model, samples))
        found.append({**describe(info), "parity": parity, "not_run": reason})
    return found


def describe(info: EngineInfo) -> dict[str, Any]:
    """An engine's sidecar in JSON's types."""
    values = dataclasses.asdict(info)
    return {**values, "path": str(info.path)}


def show_engines(found: Sequence[Mapping[str, Any]]) -> None:
    """Print what ``build_engines`` found."""
    rows = []
    for engine in found:
        parity = engine["parity"]
        rows.append(
            (
                engine["metadata"]["graph"],
                engine["metadata"]["precision"],
                ", ".join(engine["targets"]),
                f"{engine['size'] / 1e6:.2f}",
                f"{engine['build_seconds']:.2f}",
                _computing(engine["layers"]),
                "–" if parity is None else f"{parity['max_relative_error']:.1e}",
            )
        )
    columns = ("graph", "precision", "for", ">MB", ">built in s", "computed in", ">relative error")
    table(found[0]["reason"], columns, rows)
    for reason in dict.fromkeys(engine["not_run"] for engine in found if engine["not_run"]):
        print(f"not run here: {reason}")


def show_differences(reference: Path, other: Path, found: Sequence[OutputDifference]) -> None:
    """Print what ``export.compare`` found."""
    rows = [
        (
            one.output,
            f"{one.max_absolute_error:.1e}",
            f"{one.mean_absolute_error:.1e}",
            f"{one.max_relative_error:.1e}",
            f"{one.tolerance:g}",
        )
        for one in found
    ]
    columns = ("output", ">largest difference", ">mean", ">relative error", ">accepted")
    table(f"{other} against {reference}, by Polygraphy", columns, rows)


def inspect(info: EngineInfo) -> None:
    """Print an engine's sidecar: what it is, its layers, and the kernels that they were fused into."""
    facts = info.metadata
    print(f"{info.path}: {facts['family']} {facts['graph']} {facts['precision']}, {info.size / 1e6:.2f} MB")
    print(f"built by {info.reason}, in {info.build_seconds:.2f} s, for {', '.join(info.targets)}")
    profiles = "; ".join(f"{smallest} to {largest}, tuned for {best}" for smallest, best, largest in info.profiles)
    print(f"batches: {profiles}")
    for kind, infos in (("takes", info.inputs), ("gives", info.outputs)):
        print(kind, ", ".join(f"{t.name} {t.dtype} (B, {', '.join(map(str, t.shape[1:]))})" for t in infos))
    rows = [
        (layer["name"], layer["type"].lower(), _dtypes(layer["inputs"]), _dtypes(layer["outputs"])) for layer in info.layers
    ]
    table("layers of the network", ("name", "type", "reads", "writes"), rows)
    fused = [
        (
            k["name"],
            k["type"],
            "+".join(sorted({*k["inputs"]})),
            "+".join(sorted({*k["outputs"]})),
            k["tactic"],
            " ".join(k["nodes"]),
        )
        for k in info.kernels
    ]
    if fused:
        table("kernels they became", ("name", "type", "reads", "writes", "tactic", "of the nodes"), fused)


def _dtypes(tensors: Sequence[Mapping[str, Any]]) -> str:
    return "+".join(dict.fromkeys(tensor["dtype"].lower() for tensor in tensors)) or "–"


def _computing(layers: Sequence[Mapping[str, Any]]) -> str:
    """Such as "2 int8, 1 float": how many convolutions and dense layers there are in each dtype."""
    producers = {tensor["name"]: layer for layer in layers for tensor in layer["outputs"]}

    def dtype(layer: Mapping[str, Any]) -> str:
        fed = [producers.get(tensor["name"], {"type": "INPUT"}) for tensor in layer["inputs"]]
        quantized = len(fed) > 1 and all(one["type"] == "DEQUANTIZE" for one in fed)
        name: str = fed[0]["inputs"][0]["dtype"] if quantized else layer["outputs"][0]["dtype"]
        return name.lower()

    counts = Counter(dtype(layer) for layer in layers if layer["type"] in _COMPUTING)
    return ", ".join(f"{count} {name}" for name, count in counts.items())
