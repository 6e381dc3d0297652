"""One trace per graph for the whole run: tracing is what takes time."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iiae_fast import IIAE
from iiae_fast.export import onnx as exporter
from iiae_fast.export import to_onnx

sys.path.insert(0, str(Path(__file__).parent))  # export_cases.py, under importlib import mode


@pytest.fixture(scope="session")
def models() -> dict[str, IIAE]:
    """By family, in training mode."""
    from export_cases import FAMILIES, tiny_model

    return {family: tiny_model(family) for family in FAMILIES}


@pytest.fixture(scope="session")
def cached_traces() -> Iterator[None]:
    """Trace each graph of each model once; every export still runs all that follows."""
    traces: dict[tuple[Any, ...], Any] = {}
    trace = exporter._trace

    def cached(model: IIAE, *arguments: Any) -> Any:
        key = (id(model), *arguments)
        if key not in traces:
            traces[key] = (trace(model, *arguments), model)  # the model is kept, so that its id stays its own
        return copy.deepcopy(traces[key][0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "_trace", cached)
        yield


@pytest.fixture(scope="session")
def export_graph(cached_traces: None, models: dict[str, IIAE], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``export_graph(family, graph, **options)``: the file, written once per run and not to be changed."""
    directory = tmp_path_factory.mktemp("graphs")
    written: dict[tuple[Any, ...], Path] = {}

    def export(family: str, graph: str, **options: Any) -> Path:
        key = (family, graph, *sorted(options.items()))
        if key not in written:
            written[key] = to_onnx(models[family], graph, directory / f"{len(written)}.onnx", **options)
        return written[key]

    return export
