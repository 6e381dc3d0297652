"""Half precision at the limits of its numbers, in graphs and in the networks that TensorRT parses from them."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_cases import FAMILIES, images, pairs
from onnx.reference import ReferenceEvaluator
from precision_walk import DELICATE, LOW, walk

from iiae_fast import IIAE
from iiae_fast.export import build_tensorrt, load, to_onnx, verify
from iiae_fast.gaussian import LOGVAR_MAX, LOGVAR_MIN

Export = Callable[..., Path]


def encoder(family: str, head: str) -> dict[str, Any]:
    """The options of the graph that has most in it: bytes where there are images, both codes, another head than the mean."""
    return {"head": head, "input": "float32" if family == "feature" else "uint8"}


@pytest.mark.parametrize("head", ["normalized", "gaussian"])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_bytes_stay_float32(family: str, head: str, export_graph: Export) -> None:
    for precision in LOW:
        met = walk(export_graph(family, "encode_x", precision=precision, **encoder(family, head)), precision)
        assert met >= {"Gemm", "ReduceL2" if head == "normalized" else "Clip"}


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("head", ["normalized", "gaussian"])
@pytest.mark.parametrize("family", FAMILIES)
def test_so_they_do_in_engines(family: str, head: str, export_graph: Export, tmp_path: Path) -> None:
    source = export_graph(family, "encode_x", precision="fp16", **encoder(family, head))
    nodes = {node.name for node in onnx.load(source).graph.node if node.op_type in DELICATE}
    layers = build_tensorrt(source, tmp_path / "engine.plan").layers
    kinds = {"REDUCE", "UNARY", "ELEMENTWISE", "ACTIVATION"}
    # a node may become several layers, whose names begin with its own
    delicate = [layer for layer in layers if layer["type"] in kinds and layer["name"].startswith(tuple(nodes))]
    assert len(delicate) >= 2
    for layer in delicate:
        assert {tensor["dtype"] for tensor in [*layer["inputs"], *layer["outputs"]]} == {"FLOAT"}, layer


def last_layer(model: IIAE) -> torch.nn.Module:
    return [module for module in model.shared_x.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))][-1]


@pytest.fixture
def extreme(models: dict[str, IIAE]) -> IIAE:
    """Means of 30,000, whose squares overflow fp16, and log-variances far beyond both limits."""
    model = copy.deepcopy(models["feature"]).eval()
    with torch.no_grad():
        bias = last_layer(model).bias
        half = len(bias) // 2
        bias[:half] = 3e4
        bias[half:] = 4e4
        bias[half::2] = -4e4
    return model


def computed(model: IIAE, directory: Path, head: str, x: torch.Tensor) -> np.ndarray:
    """What the fp16 graph computes by ONNX's reference, in true fp16; ONNX Runtime's CPU provider widens it to float32."""
    path = to_onnx(model, "shared_x", directory / f"{head}.onnx", "fp16", head=head)
    with np.errstate(over="ignore"):
        (output,) = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x.numpy()})
    assert output.dtype == np.float32
    return output


def test_codes_at_the_limits(extreme: IIAE, tmp_path: Path) -> None:
    x = pairs(extreme, 3)["x"]
    with torch.no_grad():
        mean = extreme.encode_shared(x=x).numpy()
    normalized = computed(extreme, tmp_path, "normalized", x)
    np.testing.assert_allclose(np.linalg.norm(normalized, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(normalized, mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=2e-3)
    gaussian = computed(extreme, tmp_path, "gaussian", x)
    np.testing.assert_allclose(gaussian[:, : mean.shape[1]], mean, rtol=2e-3)
    logvar = gaussian[:, mean.shape[1] :]
    # the limits themselves: fp16 would have 9.2109375 for 9.21035, and exp of that is 0.06 % more
    assert set(np.unique(logvar)) == {np.float32(LOGVAR_MIN), np.float32(LOGVAR_MAX)}


def test_fp16_ends_at_65504(extreme: IIAE, tmp_path: Path) -> None:
    """A mean beyond that is infinite in fp16, while its log-variance is clamped; bf16 has the range."""
    with torch.no_grad():
        bias = last_layer(extreme).bias
        bias[: len(bias) // 2] = 65500
        last_layer(extreme).weight.mul_(1e3)
    x = pairs(extreme, 3)["x"]
    gaussian = computed(extreme, tmp_path, "gaussian", x)
    size = gaussian.shape[1] // 2
    assert np.isinf(gaussian[:, :size]).any()
    assert np.isfinite(gaussian[:, size:]).all()
    session = load(to_onnx(extreme, "shared_x", tmp_path / "bf16.onnx", "bf16"), device="cpu")
    verify(session, extreme, {"x": x})


def test_black_and_white_images(export_graph: Export, models: dict[str, IIAE]) -> None:
    session = load(export_graph("spatial", "shared_x", precision="fp16", input="uint8"), device="cpu")
    for value in (0, 255):
        verify(session, models["spatial"], {"x": torch.full_like(images(3)["x"], value)})
