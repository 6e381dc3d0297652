"""Static quantization: what becomes int8, what it costs in accuracy, and what is refused."""

from __future__ import annotations

import copy
import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_cases import FAMILIES, float_layers_of, images, pairs

from iiae_fast import IIAE, ModelConfig
from iiae_fast.errors import CheckpointError, InputError, MissingExtraError
from iiae_fast.export import load, quantize, to_onnx, verify
from iiae_fast.export.graphs import GRAPHS
from iiae_fast.export.parity import complete_inputs

Export = Callable[..., Path]

LAYERS = ("Conv", "ConvTranspose", "Gemm")


def quantized_layers(path: Path) -> Counter[str]:
    """Layers whose input and weight come from DequantizeLinear; checks that all others have neither."""
    graph = onnx.load(path).graph
    producers = {name: node.op_type for node in graph.node for name in node.output}
    found: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in LAYERS:
            weight = producers.get(node.input[1]) == "DequantizeLinear"
            assert weight == (producers.get(node.input[0]) == "DequantizeLinear") or not weight
            found[node.op_type] += weight
    return found


# every one that has a layer to quantize: the spatial decoders have transposed convolutions only
@pytest.mark.parametrize(
    ("family", "graph"),
    [(family, graph) for family in FAMILIES for graph in GRAPHS if family != "spatial" or not graph.startswith("decode")],
)
def test_on_the_cpu(family: str, graph: str, export_graph: Export, models: dict[str, IIAE], tmp_path: Path) -> None:
    model, source = models[family], export_graph(family, graph)
    samples = pairs(model, 64, seed=7)
    model.eval()
    calibration = complete_inputs(load(source, device="cpu"), model, pairs(model, 512))
    model.train()
    path = quantize(source, tmp_path / "int8.onnx", calibration)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    float_layers = float_layers_of(source)
    layers = [node.name for node in onnx.load(source).graph.node if node.op_type in ("Conv", "Gemm")]
    assert quantized_layers(path).total() == len(set(layers) - float_layers)
    nodes = {node.name: node for node in onnx.load(path).graph.node}
    for node in onnx.load(source).graph.node:  # what a float32 layer gives is not rounded before its activation
        if node.op_type in ("LeakyRelu", "Relu") and any(node.input[0] in nodes[name].output for name in float_layers):
            assert nodes[node.name].input[0] == node.input[0]

    session = load(path, device="cpu")
    report = verify(session, model, samples)
    assert report.precision == "int8"
    assert report.max_relative_error > 1e-4
    metadata = load(source, device="cpu").metadata
    differing = {key for key in session.metadata if session.metadata[key] != metadata.get(key)}
    assert differing == {"precision", "calibration_samples", "target", "quantizer", "checksum"}
    assert session.metadata["calibration_samples"] == "512"


def test_uint8_images_and_heads(export_graph: Export, models: dict[str, IIAE], tmp_path: Path) -> None:
    source = export_graph("spatial", "shared_x", input="uint8", head="normalized")
    path = quantize(source, tmp_path / "int8.onnx", images(64)["x"].numpy())
    session = load(path, device="cpu")
    verify(session, models["spatial"], images(16, seed=9))
    codes = session(images(16)["x"].numpy())
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-6)  # normalized after the int8 part, not within it


def layers_read_in(path: Path, dtype: int) -> Counter[str]:
    """Layers whose input and weight were quantized; checks that zero points are zero, and biases not quantized."""
    graph = onnx.load(path).graph
    weights = {weight.name: weight for weight in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    found: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:  # no zero point is zero, too
            zero = weights[node.input[2]]
            assert zero.data_type == dtype
            assert not any(zero.raw_data)
            assert not any(zero.int32_data)
        elif node.op_type in LAYERS:
            assert all(weights[name].data_type == onnx.TensorProto.FLOAT for name in node.input[2:])
            fed = [producers.get(name) for name in node.input[:2]]
            found[node.op_type] += all(one is not None and one.op_type == "DequantizeLinear" for one in fed)
    return found


EIGHT_BITS = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}


@pytest.mark.parametrize("precision", EIGHT_BITS)
@pytest.mark.parametrize(
    ("family", "graph"),
    [("spatial", "shared_x"), ("spatial", "decode_x"), ("spatial", "encode_x"), ("flat", "x_to_y"), ("feature", "joint")],
)
def test_for_tensorrt(
    family: str, graph: str, precision: str, export_graph: Export, models: dict[str, IIAE], tmp_path: Path
) -> None:
    model, source = models[family], export_graph(family, graph)
    calibration = complete_inputs(load(source, device="cpu"), copy.deepcopy(model).eval(), pairs(model, 128))
    path = quantize(source, tmp_path / "small.onnx", calibration, target="tensorrt", precision=precision)
    layers = Counter(node.op_type for node in onnx.load(source).graph.node if node.op_type in LAYERS)
    kept = float_layers_of(source, LAYERS) if precision == "fp8" else GRAPHS[graph].outputs
    assert layers_read_in(path, EIGHT_BITS[precision]).total() == layers.total() - len(kept)
    session = load(path, device="cpu")
    assert session.reason.endswith("quantized for TensorRT, whose arithmetic it simulates in float32")
    report = verify(session, model, pairs(model, 64, seed=7))
    assert report.precision == precision
    assert report.max_relative_error > 1e-4


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_by_modelopt(precision: str, tmp_path: Path) -> None:
    pytest.importorskip("modelopt.onnx.quantization", reason="modelopt is not installed: pip install 'iiae_fast[quantize]'")
    torch.manual_seed(0)
    config = ModelConfig(family="spatial", image_size=32, n_shared=32, n_exclusive=32, n_decoder=4, exclusive_dim=3)
    model = IIAE(config, backend="reference").eval()
    source = to_onnx(model, "shared_x", tmp_path / "fp32.onnx")
    samples = pairs(model, 64)["x"].numpy()
    path = quantize(source, tmp_path / "small.onnx", samples, "tensorrt", precision, "modelopt")
    assert layers_read_in(path, EIGHT_BITS[precision]).total() >= 1
    session = load(path, device="cpu")
    assert (session.metadata["quantizer"], session.metadata["precision"]) == ("modelopt", precision)
    assert verify(session, model, pairs(model, 64, seed=7)).max_relative_error > 1e-4


def test_refusals(export_graph: Export, models: dict[str, IIAE], tmp_path: Path) -> None:
    source, path = export_graph("spatial", "shared_x"), tmp_path / "int8.onnx"
    samples = pairs(models["spatial"], 4)
    broken = samples["x"].clone()
    broken[2, 1, 3, 3] = float("inf")
    z = {"z_s": samples["x"].new_zeros(4, 128), "z_x": samples["x"].new_zeros(4, 3)}
    for arguments, message in [
        ((source, path, samples["x"], "gpu"), "target='gpu': accepted are cpu, tensorrt"),
        ((source, path, samples["x"], "cpu", "int4"), "precision='int4': accepted are int8, fp8"),
        ((source, path, samples["x"], "cpu", "int8", "tf"), "quantizer='tf': accepted are onnxruntime, modelopt"),
        ((source, path, samples["x"], "cpu", "fp8"), "for target='tensorrt' only; CPUs have int8"),
        (
            (export_graph("spatial", "shared_x", precision="fp16"), path, samples["x"]),
            "precision is fp16, quantization starts from fp32",
        ),
        ((source, path, samples["x"][:0]), "samples are empty"),
        ((source, path, {"y": samples["y"]}), "input 'y': graph shared_x has no such input"),
        ((source, path, broken), "samples 'x': row 2 is not finite"),
        ((export_graph("spatial", "decode_x"), path, z), "graph decode_x has no layer but its last that cpu would run in int8"),
    ]:
        with pytest.raises(InputError) as caught:
            quantize(*arguments)
        assert message in str(caught.value)
        assert not path.exists()
    if importlib.util.find_spec("modelopt") is None:
        with pytest.raises(MissingExtraError, match=r"pip install 'iiae_fast\[quantize\]'"):
            quantize(source, path, samples["x"], "tensorrt", "int8", "modelopt")
    with pytest.raises(CheckpointError, match="no such file"):
        quantize(tmp_path / "absent.onnx", path, samples["x"])


def test_nothing_is_printed(
    export_graph: Export, models: dict[str, IIAE], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize(export_graph("spatial", "shared_x"), tmp_path / "int8.onnx", pairs(models["spatial"], 4)["x"])
    assert capfd.readouterr() == ("", "")
