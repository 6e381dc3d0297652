"""Every graph of every family at every precision: the file's form, and its values against the model's own methods."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_cases import FAMILIES, images, pairs, tiny_model
from precision_walk import walk

import iiae_fast
from iiae_fast import IIAE
from iiae_fast.errors import InputError
from iiae_fast.export import GRAPHS, load, to_onnx, verify
from iiae_fast.export.graphs import tensor_shape
from iiae_fast.export.onnx import weights_sha256

Export = Callable[..., Path]

every_graph = pytest.mark.parametrize("graph", GRAPHS)
every_family = pytest.mark.parametrize("family", FAMILIES)


@every_graph
@every_family
def test_fp32_computes_what_the_model_computes(family: str, graph: str, export_graph: Export, models: dict[str, IIAE]) -> None:
    session = load(export_graph(family, graph), device="cpu")
    for batch in (1, 7, 300):
        report = verify(session, models[family], pairs(models[family], batch))
        assert report.samples == batch
        assert report.max_relative_error <= 1e-5  # ten times below the tolerance


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@every_graph
@every_family
def test_low_precision(family: str, graph: str, precision: str, export_graph: Export, models: dict[str, IIAE]) -> None:
    path = export_graph(family, graph, precision=precision)
    session = load(path, device="cpu")
    for batch in (1, 7):
        verify(session, models[family], pairs(models[family], batch))
    assert walk(path, precision) & {"Conv", "ConvTranspose", "Gemm"}
    # low precision is really there, not just widened weights: a result differs from fp32 by more than fp32 rounding
    samples = pairs(models[family], 7)
    error = verify(session, models[family], samples).max_relative_error
    assert error > 1e-5


@every_graph
@every_family
def test_form_of_the_file(family: str, graph: str, export_graph: Export, models: dict[str, IIAE]) -> None:
    model, spec = models[family], GRAPHS[graph]
    proto = onnx.load(export_graph(family, graph))
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.input] == list(spec.inputs)
    assert [value.name for value in proto.graph.output] == list(spec.outputs)
    for value in [*proto.graph.input, *proto.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
        assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim[1:])

    kinds = Counter(node.op_type for node in proto.graph.node)
    assert not {"BatchNormalization", "Dropout", "Constant", "Identity", "Cast", "Slice"} & set(kinds)
    used = {name for node in proto.graph.node for name in node.input}
    assert {weight.name for weight in proto.graph.initializer} <= used
    assert {name for node in proto.graph.node for name in node.output} <= used | set(spec.outputs)
    text = str(proto)
    for trace in (str(Path.cwd()), "site-packages", ".py"):
        assert trace not in text  # of the machine that exported it

    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata.pop("checksum")
    assert json.loads(metadata.pop("config")) == asdict(model.config)
    assert metadata == {
        "graph": graph,
        "family": family,
        "precision": "fp32",
        "input": "float32",
        "head": "mean",
        "max_batch": "",
        "iiae_fast": iiae_fast.__version__,
        "weights": weights_sha256(model),
    }


@every_family
def test_an_encoder_does_not_compute_log_variances(family: str, export_graph: Export, models: dict[str, IIAE]) -> None:
    for graph in ("shared_x", "exclusive_y"):
        (codes,) = tensor_shape(models[family], GRAPHS[graph].outputs[0])
        proto = onnx.load(export_graph(family, graph))
        last = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")][-1]
        bias = next(weight for weight in proto.graph.initializer if weight.name == last.input[2])
        maps = 16 if family == "spatial" and graph == "shared_x" else 1
        assert bias.dims[0] * maps == codes


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("family", "graph"), [("spatial", "shared_x"), ("spatial", "joint"), ("spatial", "x_to_y"), ("flat", "exclusive_y")]
)
def test_uint8_images(family: str, graph: str, precision: str, export_graph: Export, models: dict[str, IIAE]) -> None:
    session = load(export_graph(family, graph, input="uint8", precision=precision), device="cpu")
    info = session.inputs[0]
    assert (info.dtype, info.shape) == ("uint8", (None, 16, 16, 3))
    for batch in (1, 7):
        verify(session, models[family], images(batch))


def test_uint8_images_are_normalized_in_float32(export_graph: Export) -> None:
    proto = onnx.load(export_graph("spatial", "shared_x", input="uint8", precision="fp16"))
    proto = onnx.shape_inference.infer_shapes(proto)
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    arithmetic = [node for node in proto.graph.node if node.op_type in ("Div", "Sub", "Mul", "Add")]
    assert len(arithmetic) == 2
    assert {types[name] for node in arithmetic for name in node.output} == {onnx.TensorProto.FLOAT}
    assert {types[node.output[0]] for node in proto.graph.node if node.op_type == "Conv"} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("head", ["normalized", "gaussian"])
@pytest.mark.parametrize(("family", "graph"), [("spatial", "shared_x"), ("flat", "joint"), ("feature", "exclusive_y")])
def test_heads(family: str, graph: str, head: str, precision: str, export_graph: Export, models: dict[str, IIAE]) -> None:
    path = export_graph(family, graph, head=head, precision=precision)
    session = load(path, device="cpu")
    samples = pairs(models[family], 7)
    verify(session, models[family], samples)
    codes = session({name: samples[name] for name in GRAPHS[graph].inputs})[GRAPHS[graph].outputs[0]].numpy()
    if head == "normalized":
        np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-6)  # a length in fp16 would be off by 1e-3
    else:
        size = codes.shape[1] // 2
        assert codes[:, size:].min() >= -14
        assert codes[:, size:].max() <= np.float32(9.21035)


def test_translators_take_a_style_or_a_prior_sample(export_graph: Export, models: dict[str, IIAE]) -> None:
    model = models["spatial"].eval()
    try:
        samples = pairs(model, 5)
        to_y, style = (load(export_graph("spatial", graph), device="cpu") for graph in ("x_to_y", "exclusive_y"))
        styled = to_y({"x": samples["x"], "z_y": style(samples["y"])})["y"]
        with torch.no_grad():
            torch.testing.assert_close(styled, model.translate(x=samples["x"], style=samples["y"]), atol=1e-5, rtol=0)
            drawn = torch.randn(5, 3, generator=torch.Generator().manual_seed(4))
            wanted = model.translate(x=samples["x"], generator=torch.Generator().manual_seed(4))
        torch.testing.assert_close(to_y({"x": samples["x"], "z_y": drawn})["y"], wanted, atol=1e-5, rtol=0)
    finally:
        model.train()


def test_the_model_is_left_as_it_was_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("feature")
    model.train()
    model.decoder_x.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    weights, grads = weights_sha256(model), [parameter.requires_grad for parameter in model.parameters()]
    state = torch.random.get_rng_state()
    returned = to_onnx(model, "shared_x", tmp_path / "new" / "folder" / "shared_x.onnx")
    assert returned == tmp_path / "new" / "folder" / "shared_x.onnx"
    assert returned.is_file()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert weights_sha256(model) == weights
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert torch.equal(torch.random.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


def test_a_low_precision_model_is_exported_from_its_own_weights(tmp_path: Path) -> None:
    model = tiny_model("feature").to(torch.bfloat16)
    session = load(to_onnx(model, "exclusive_x", tmp_path / "a.onnx"), device="cpu")
    verify(session, model, pairs(model, 7))
    assert session.metadata["weights"] == weights_sha256(model)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (to_onnx(tiny_model("feature"), "decode_x", tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_further_metadata(tmp_path: Path, models: dict[str, IIAE], cached_traces: None) -> None:
    path = to_onnx(
        models["feature"], "shared_x", tmp_path / "a.onnx", max_batch=64, metadata={"preset": "sketchy", "run": "runs/ä"}
    )
    session = load(path, device="cpu")
    assert session.metadata["preset"] == "sketchy"
    assert session.metadata["run"] == "runs/ä"
    assert session.max_batch == 64


def test_bad_arguments(tmp_path: Path, models: dict[str, IIAE]) -> None:
    model, path = models["feature"], tmp_path / "a.onnx"
    for arguments, message in [
        ({"graph": "shared"}, "graph='shared': accepted are shared_x, "),
        ({"precision": "int4"}, "precision='int4': accepted are fp32, fp16, bf16"),
        ({"input": "int8"}, "input='int8': accepted are float32, uint8"),
        ({"input": "uint8"}, "input='uint8' with graph 'shared_x' of the feature family: it takes no images"),
        ({"max_batch": 0}, "max_batch=0: accepted is a whole number of at least 1, or None"),
        ({"max_batch": True}, "max_batch=True: "),
        ({"head": "logits"}, "head='logits': accepted are mean, normalized, gaussian"),
        ({"head": "gaussian", "graph": "decode_x"}, "only encoders have another head"),
        ({"metadata": {"graph": "x"}}, "metadata 'graph': this key is taken"),
        ({"metadata": {"step": 3}}, "metadata 'step': 3: accepted are text keys and values"),
        ({"path": tmp_path}, "is a directory"),
        ({"model": torch.nn.Linear(2, 2)}, "model of type Linear: accepted is iiae_fast.IIAE"),
    ]:
        with pytest.raises(InputError) as caught:
            to_onnx(**{"model": model, "graph": "shared_x", "path": path, **arguments})
        assert message in str(caught.value)
        assert not path.exists()
    with pytest.raises(InputError, match="it takes no images"):
        to_onnx(models["spatial"], "decode_x", path, input="uint8")


def test_a_weight_too_large_for_fp16(tmp_path: Path) -> None:
    model = tiny_model("feature")
    with torch.no_grad():
        model.decoder_x.output.bias[1] = 1e5
    with pytest.raises(InputError, match=r"precision='fp16': .*bias holds 100000, fp16 ends at 65504"):
        to_onnx(model, "decode_x", tmp_path / "a.onnx", precision="fp16")
    to_onnx(model, "decode_x", tmp_path / "a.onnx", precision="bf16")


def test_an_output_that_cannot_be_written(tmp_path: Path, models: dict[str, IIAE], cached_traces: None) -> None:
    """Below a file, where not even root may write."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        to_onnx(models["feature"], "shared_x", tmp_path / "file" / "a.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written(tmp_path: Path, models: dict[str, IIAE], cached_traces: None) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        to_onnx(models["feature"], "shared_x", tmp_path / "a.onnx")
