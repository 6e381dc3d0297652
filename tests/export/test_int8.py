"""Static quantization: what becomes int8, what it costs in accuracy, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from export_cases import FAMILIES, images, pairs

from iiae_fast import IIAE
from iiae_fast.errors import CheckpointError, InputError
from iiae_fast.export import load, quantize, verify
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
    layers = Counter(node.op_type for node in onnx.load(source).graph.node if node.op_type in LAYERS)
    last = [node.op_type for node in onnx.load(source).graph.node if node.op_type in LAYERS][-1]
    excluded = len(GRAPHS[graph].outputs) if last != "ConvTranspose" else 0
    assert quantized_layers(path).total() == layers["Conv"] + layers["Gemm"] - excluded  # all but the last of each output

    session = load(path, device="cpu")
    report = verify(session, model, samples)
    assert report.precision == "int8"
    assert report.max_relative_error > 1e-4
    metadata = load(source, device="cpu").metadata
    differing = {key for key in session.metadata if session.metadata[key] != metadata.get(key)}
    assert differing == {"precision", "calibration_samples", "target", "checksum"}
    assert session.metadata["calibration_samples"] == "512"


def test_uint8_images_and_heads(export_graph: Export, models: dict[str, IIAE], tmp_path: Path) -> None:
    source = export_graph("spatial", "shared_x", input="uint8", head="normalized")
    path = quantize(source, tmp_path / "int8.onnx", images(64)["x"].numpy())
    session = load(path, device="cpu")
    verify(session, models["spatial"], images(16, seed=9))
    codes = session(images(16)["x"].numpy())
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-6)  # normalized after the int8 part, not within it


@pytest.mark.parametrize("graph", ["shared_x", "decode_x"])
def test_for_tensorrt(graph: str, export_graph: Export, models: dict[str, IIAE], tmp_path: Path) -> None:
    model, source = models["spatial"], export_graph("spatial", graph)
    calibration = pairs(model, 128)
    if graph == "decode_x":
        model.eval()
        codes = {"z_s": model.encode_shared(x=calibration["x"]), "z_x": model.encode_exclusive(x=calibration["x"])}
        calibration = {name: values.detach() for name, values in codes.items()}
        model.train()
    else:
        calibration = {"x": calibration["x"]}
    path = quantize(source, tmp_path / "int8.onnx", calibration, target="tensorrt")
    proto = onnx.load(path)
    weights = {weight.name: weight for weight in proto.graph.initializer}
    producers = {name: node for node in proto.graph.node for name in node.output}
    kinds = set()
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = onnx.numpy_helper.to_array(weights[node.input[2]])
            assert zero.dtype == np.int8
            assert not zero.any()  # symmetric
        elif node.op_type in LAYERS:
            assert weights[node.input[2]].data_type == onnx.TensorProto.FLOAT
            if node.input[1] in producers:
                kinds.add(node.op_type)
    assert kinds == {"Conv" if graph == "shared_x" else "ConvTranspose"}
    # without graph optimizations every Q/DQ pair is simulated in float32: what int8 units with wide sums compute
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    simulated = onnxruntime.InferenceSession(path, options)
    inputs = {name: values.numpy()[:32] for name, values in calibration.items()}
    exact = load(source, device="cpu")(inputs)[GRAPHS[graph].outputs[0]]
    (ours,) = simulated.run(None, inputs)
    assert np.abs(ours - exact).max() <= 0.1 * np.abs(exact).max()


def test_refusals(export_graph: Export, models: dict[str, IIAE], tmp_path: Path) -> None:
    source, path = export_graph("spatial", "shared_x"), tmp_path / "int8.onnx"
    samples = pairs(models["spatial"], 4)
    broken = samples["x"].clone()
    broken[2, 1, 3, 3] = float("inf")
    z = {"z_s": samples["x"].new_zeros(4, 128), "z_x": samples["x"].new_zeros(4, 3)}
    for arguments, message in [
        ((source, path, samples["x"], "gpu"), "target='gpu': accepted are cpu, tensorrt"),
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
    with pytest.raises(CheckpointError, match="no such file"):
        quantize(tmp_path / "absent.onnx", path, samples["x"])


def test_nothing_is_printed(
    export_graph: Export, models: dict[str, IIAE], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize(export_graph("spatial", "shared_x"), tmp_path / "int8.onnx", pairs(models["spatial"], 4)["x"])
    assert capfd.readouterr() == ("", "")
