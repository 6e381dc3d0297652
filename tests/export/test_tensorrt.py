"""Engines really built by TensorRT-RTX, which needs no GPU for that: what they hold, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib.util
import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_cases import FAMILIES, float_layers_of, images, pairs
from precision_walk import wide_layers

from iiae_fast import IIAE
from iiae_fast.errors import CheckpointError, InputError, MissingExtraError
from iiae_fast.export import BuildOptions, EngineInfo, build_tensorrt, inspect_engine, load, quantize
from iiae_fast.export.flavors import RTX_TARGETS, Flavor, choose_flavor, open_flavor
from iiae_fast.export.parity import complete_inputs
from iiae_fast.export.sealing import seal

Export = Callable[..., Path]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install 'iiae_fast[rtx]'"
)

LAYERS = {"Conv": "CONVOLUTION", "ConvTranspose": "DECONVOLUTION", "Gemm": "MATRIX_MULTIPLY"}
DTYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
GRAPHS = [("shared_x", "float32"), ("encode_x", "float32"), ("x_to_y", "float32"), ("encode_x", "uint8")]
CASES = [(family, *case) for family in FAMILIES for case in GRAPHS if family != "feature" or case[1] == "float32"]


def check_sizes(info: EngineInfo, source: Path) -> None:
    weights = sum(onnx.numpy_helper.to_array(weight).nbytes for weight in onnx.load(source).graph.initializer)
    assert weights < info.size < weights + 5_000_000
    assert info.size == info.path.stat().st_size
    assert 0.001 < info.build_seconds < 60


def layers_of(info: EngineInfo, kind: str) -> list[dict[str, Any]]:
    return [layer for layer in info.layers if layer["type"] == kind]


def dtypes(layer: dict[str, Any], side: str) -> set[str]:
    return {tensor["dtype"] for tensor in layer[side]}


def check_table(info: EngineInfo, source: Path, expected: Callable[[dict[str, Any]], str]) -> None:
    """Every layer of the graph is in the parsed network, with the dtype that ``expected`` says, and in some kernel."""
    graph = onnx.load(source).graph
    wanted = Counter(LAYERS[node.op_type] for node in graph.node if node.op_type in LAYERS)
    found = [layer for layer in info.layers if layer["type"] in LAYERS.values()]
    assert Counter(layer["type"] for layer in found) == wanted
    for layer in found:
        assert dtypes(layer, "inputs") == dtypes(layer, "outputs") == {expected(layer)}, layer
    fused = {name for kernel in info.kernels for name in kernel["nodes"]}
    assert fused >= {node.name for node in graph.node if node.op_type in LAYERS}
    outputs = {tensor["name"]: tensor for layer in info.layers for tensor in layer["outputs"]}
    for info_out, value in zip(info.outputs, graph.output, strict=True):
        assert info_out.name == value.name
        assert outputs[value.name]["dtype"] == "FLOAT"
        assert outputs[value.name]["shape"] == [-1, *info_out.shape[1:]]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("family", "graph", "input"), CASES)
def test_engines_of_a_precision(
    family: str, graph: str, input: str, precision: str, export_graph: Export, tmp_path: Path
) -> None:
    source = export_graph(family, graph, precision=precision, input=input)
    sizes, wide = {}, wide_layers(onnx.load(source), precision)
    for target in RTX_TARGETS:
        info = build_tensorrt(source, tmp_path / "engine.plan", flavor="tensorrt-rtx", targets=(target,))
        check_sizes(info, source)
        check_table(info, source, lambda layer: "FLOAT" if layer["name"] in wide else DTYPES[precision])
        assert info.targets == (target,)
        assert info.inputs[0].dtype == input
        assert inspect_engine(info) == info  # the sidecar holds it all
        sizes[target] = info.size
    if input == "uint8":  # bytes are cast first, and normalized in float32
        together = build_tensorrt(source, tmp_path / "engine.plan", flavor="tensorrt-rtx")
        assert together.targets == RTX_TARGETS
        assert together.size >= min(sizes.values())
        first = layers_of(together, "CAST")[0]
        assert (dtypes(first, "inputs"), dtypes(first, "outputs")) == ({"UINT8"}, {"FLOAT"})
        assert all(dtypes(layer, "outputs") == {"FLOAT"} for layer in normalization(together))


def normalization(info: EngineInfo) -> list[dict[str, Any]]:
    """The division and subtraction between the cast of the bytes and the first convolution."""
    names = [layer["name"] for layer in info.layers]
    first = next(index for index, layer in enumerate(info.layers) if layer["type"] == "CONVOLUTION")
    found = [layer for layer in info.layers[:first] if layer["type"] == "ELEMENTWISE"]
    assert len(found) == 2, names
    return found


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize(("family", "graph", "input"), CASES)
def test_quantized_engines(
    family: str, graph: str, input: str, precision: str, export_graph: Export, models: dict[str, IIAE], tmp_path: Path
) -> None:
    model, source = models[family], export_graph(family, graph, input=input)
    calibration = images(64) if input == "uint8" else pairs(model, 64)
    samples = complete_inputs(load(source, device="cpu"), copy.deepcopy(model).eval(), calibration)
    quantized = quantize(source, tmp_path / "small.onnx", samples, target="tensorrt", precision=precision)
    layers = Counter(node.op_type for node in onnx.load(source).graph.node if node.op_type in LAYERS)
    low = precision.upper()
    for target in RTX_TARGETS:
        if precision == "fp8" and target in ("SM80", "SM86"):  # these GPUs have no 8-bit floats
            with pytest.raises(InputError, match=rf"targets=\('{target}',\): accepted for fp8 are SM89, SM120"):
                build_tensorrt(quantized, tmp_path / "engine.plan", flavor="tensorrt-rtx", targets=(target,))
            continue
        info = build_tensorrt(quantized, tmp_path / "engine.plan", flavor="tensorrt-rtx", targets=(target,))
        check_sizes(info, quantized)
        check_table(info, quantized, lambda layer: "FLOAT")  # as dequantized; what reaches it is seen below
        producers = {tensor["name"]: layer for layer in info.layers for tensor in layer["outputs"]}
        reads_low = 0
        for layer in info.layers:
            if layer["type"] in LAYERS.values():
                sources = [producers[tensor["name"]] for tensor in layer["inputs"] if tensor["name"] in producers]
                reads = [one["type"] == "DEQUANTIZE" and one["inputs"][0]["dtype"] == low for one in sources]
                reads_low += reads == [True, True]  # the layer's input, and its weight
        kept = float_layers_of(source, tuple(LAYERS)) if precision == "fp8" else info.outputs  # the last layer of each
        assert reads_low == layers.total() - len(kept)
        assert any({"int8": "Int8", "fp8": "FP8"}[precision] in kernel["inputs"] for kernel in info.kernels)


def test_profiles_and_options(export_graph: Export, tmp_path: Path) -> None:
    source = export_graph("flat", "x_to_y", precision="fp16")
    info = build_tensorrt(
        source,
        tmp_path / "engine.plan",
        batch=[(1, 1, 1), (2, 8, 32)],
        workspace=1 << 28,
        options=BuildOptions(optimization_level=2, tf32=False),
    )
    assert info.profiles == ((1, 1, 1), (2, 8, 32))
    assert info.max_batch == 32
    assert info.options == {"optimization_level": 2, "tf32": False, "workspace": 1 << 28}
    assert [(t.name, t.shape) for t in info.inputs] == [("x", (None, 3, 16, 16)), ("z_y", (None, 3))]
    assert [(t.name, t.shape) for t in info.outputs] == [("y", (None, 3, 16, 16))]
    limited = export_graph("flat", "x_to_y", max_batch=8)
    assert build_tensorrt(limited, tmp_path / "engine.plan").profiles == ((1, 8, 8),)


def test_tf32_only_where_the_precision_is_low_anyway(export_graph: Export, tmp_path: Path) -> None:
    for precision, expected in (("fp32", False), ("bf16", True)):
        source = export_graph("feature", "shared_x", precision=precision)
        assert build_tensorrt(source, tmp_path / "engine.plan").options["tf32"] is expected


def test_auto_says_what_it_chose_and_why(export_graph: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = build_tensorrt(export_graph("feature", "shared_x"), tmp_path / "engine.plan")
    title = f"TensorRT-RTX {info.version}"
    if importlib.util.find_spec("tensorrt") is None:
        assert info.reason == f"{title}: tensorrt is not installed"
    assert info.flavor == "tensorrt-rtx"
    installed = {"tensorrt", "tensorrt-rtx"}
    monkeypatch.setattr("iiae_fast.export.flavors._installed", lambda name: name in installed)
    assert choose_flavor("auto", lambda: False)[1] == "tensorrt builds for the GPU at hand, and there is none"
    opened: list[str] = []
    monkeypatch.setattr("iiae_fast.export.flavors.open_flavor", opened.append)
    assert choose_flavor("auto", lambda: True)[1] == "tensorrt is installed, and there is a GPU to build for"
    installed.remove("tensorrt")
    assert choose_flavor("auto", lambda: True)[1] == "tensorrt is not installed"
    assert choose_flavor("tensorrt", lambda: False)[1] == "tensorrt was asked for"
    assert opened == ["tensorrt", "tensorrt-rtx", "tensorrt"]
    installed.clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'iiae_fast\[gpu\]' or pip install 'iiae_fast\[rtx\]'"):
        choose_flavor("auto", lambda: True)


def test_a_missing_wheel(export_graph: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flavor, module, extra in (("tensorrt", "tensorrt", "gpu"), ("tensorrt-rtx", "tensorrt_rtx", "rtx")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"{module} is not installed; .*pip install 'iiae_fast\[{extra}\]'"):
            build_tensorrt(export_graph("feature", "shared_x"), tmp_path / "engine.plan", flavor=flavor)
    assert not (tmp_path / "engine.plan").exists()


def test_arguments(export_graph: Export, tmp_path: Path) -> None:
    source, path = export_graph("feature", "shared_x"), tmp_path / "engine.plan"
    for arguments, message in [
        ({"batch": (16, 4, 256)}, "batch=(16, 4, 256): accepted is (smallest, preferred, largest)"),
        ({"batch": (0, 1, 2)}, "with 1 <= smallest"),
        ({"batch": (1, 2)}, "accepted is (smallest"),
        ({"batch": [(1, 2, 4), (4, 2, 8)]}, "or a list of such"),
        ({"batch": []}, "batch=[]: accepted"),
        ({"batch": (1, 2.0, 4)}, "accepted is (smallest"),
        ({"flavor": "rtx"}, "flavor='rtx': accepted are auto, tensorrt, tensorrt-rtx"),
        ({"targets": ("SM90",)}, "targets=('SM90',): accepted for fp32 are SM80, SM86, SM89, SM120"),
        ({"targets": ("SM80", "SM80")}, "each at most once"),
        ({"targets": ()}, "targets=(): accepted"),
        ({"workspace": 0}, "workspace=0: accepted is a number of bytes"),
        ({"workspace": 1000}, "builds no engine for SM80, SM86, SM89, SM120: "),
        ({"timing_cache": tmp_path / "cache"}, "TensorRT-RTX has none, it times no kernels when it builds"),
        ({"options": BuildOptions(optimization_level=6)}, "optimization_level=6: accepted are 0 to 5"),
        ({"options": BuildOptions(tf32="yes")}, "tf32='yes': accepted"),
        ({"path": tmp_path}, "is a directory, expected the name of a file to write"),
    ]:
        with pytest.raises(InputError) as caught:
            build_tensorrt(source, **{"path": path, "flavor": "tensorrt-rtx", **arguments})
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="the graph was exported for batches of at most 8"):
        build_tensorrt(export_graph("flat", "x_to_y", max_batch=8), path, batch=(1, 8, 9))
    assert not list(tmp_path.iterdir())


def with_node(source: Path, node: onnx.NodeProto, domain: str, target: Path) -> Path:
    """A graph of ours with a node more, before its output."""
    model = onnx.ModelProto.FromString(source.read_bytes())
    checksum = model.metadata_props.pop()
    assert checksum.key == "checksum"
    last = model.graph.node[-1]
    node.output.append(last.output[0])
    last.output[0] = "before"
    node.input.append("before")
    model.graph.node.append(node)
    if domain:
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    target.write_bytes(seal(model.SerializeToString()))
    return target


def test_an_unsupported_operator(export_graph: Export, tmp_path: Path) -> None:
    source = export_graph("feature", "shared_x")
    for node, domain in (
        (onnx.helper.make_node("Det", [], [], name="determinant"), ""),
        (onnx.helper.make_node("Wobble", [], [], name="wobbly", domain="some.where"), "some.where"),
    ):
        path = with_node(source, node, domain, tmp_path / "odd.onnx")
        with pytest.raises(InputError, match=rf"does not parse the graph: node {node.name} \({node.op_type}\)") as caught:
            build_tensorrt(path, tmp_path / "engine.plan")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "engine.plan").exists()


def test_nothing_is_collected_while_it_logs(export_graph: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = export_graph("feature", "shared_x")
    plain, collecting = Flavor._log, []

    def watched(flavor: Flavor) -> Any:
        class Watched(type(plain(flavor))):  # type: ignore[misc]  # made anew for each build
            def log(self, severity: Any, message: str) -> None:
                collecting.append(gc.isenabled())
                super().log(severity, message)

        return Watched()

    monkeypatch.setattr(Flavor, "_log", watched)
    node = onnx.helper.make_node("Det", [], [], name="determinant")
    with pytest.raises(InputError, match="does not parse"):
        build_tensorrt(with_node(source, node, "", tmp_path / "odd.onnx"), tmp_path / "engine.plan")
    build_tensorrt(source, tmp_path / "engine.plan")
    assert len(collecting) > 2
    assert not any(collecting)
    assert gc.isenabled()


def test_threads_take_turns(export_graph: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that ends must not turn collection on under another one."""
    source = export_graph("feature", "shared_x")
    plain, collecting, waiting = Flavor._log, [], threading.Barrier(2)

    def watched(flavor: Flavor) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            waiting.wait(0.3)  # until both build at once, if they can
        collecting.append(gc.isenabled())
        return plain(flavor)

    monkeypatch.setattr(Flavor, "_log", watched)
    with ThreadPoolExecutor(2) as pool:
        infos = list(pool.map(lambda name: build_tensorrt(source, tmp_path / name), ("a.plan", "b.plan")))
    assert waiting.broken  # they could not
    assert collecting == [False, False]
    assert gc.isenabled()
    assert [info.size for info in infos] == [(tmp_path / name).stat().st_size for name in ("a.plan", "b.plan")]


def test_sources(export_graph: Export, tmp_path: Path) -> None:
    good = export_graph("feature", "shared_x").read_bytes()
    altered = bytearray(good)
    altered[len(good) // 2] ^= 1
    foreign = onnx.ModelProto.FromString(good)
    del foreign.metadata_props[:]
    file = tmp_path / "model.onnx"
    for data, message in [
        (bytes(altered), "altered since it was exported"),
        (good[:-100], "not as iiae_fast.export wrote it"),
        (foreign.SerializeToString(), "not as iiae_fast.export wrote it"),
    ]:
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"^{file}: {message}"):
            build_tensorrt(file, tmp_path / "engine.plan")
    with pytest.raises(CheckpointError, match="no such file"):
        build_tensorrt(tmp_path / "absent.onnx", tmp_path / "engine.plan")


@pytest.fixture
def engine(export_graph: Export, tmp_path: Path) -> EngineInfo:
    return build_tensorrt(export_graph("feature", "shared_x"), tmp_path / "engine.plan", flavor="tensorrt-rtx")


def test_corrupted_plans_and_sidecars(engine: EngineInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by checksum, before anything is deserialized."""

    def never(*arguments: object) -> None:
        raise AssertionError("deserialized")

    monkeypatch.setattr("iiae_fast.export.flavors.Flavor.open", never)
    plan, sidecar = engine.path, engine.path.with_name("engine.plan.json")
    good, facts = plan.read_bytes(), sidecar.read_text()
    rng = np.random.default_rng(0)
    for position in {0, len(good) - 1, *rng.integers(0, len(good), 20).tolist()}:
        altered = bytearray(good)
        altered[position] ^= 1 << int(rng.integers(8))
        plan.write_bytes(altered)
        for refuse in (load, inspect_engine):
            with pytest.raises(CheckpointError, match=r"not those that engine\.plan\.json vouches for"):
                refuse(plan)
    plan.write_bytes(good[:1000])
    with pytest.raises(CheckpointError, match="altered, or truncated"):
        load(plan)
    plan.write_bytes(good)
    for text, message in [
        (facts.replace("SM80", "SM90"), "altered since it was written"),
        ("{}", "no checksum in it"),
        ("not JSON", "not valid JSON"),
    ]:
        sidecar.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            load(plan)
    sidecar.unlink()
    with pytest.raises(CheckpointError, match=r"has no sidecar engine\.plan\.json beside it\. An engine is code"):
        load(plan)
    plan.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load(plan)


def test_the_sidecar(engine: EngineInfo, export_graph: Export) -> None:
    import hashlib

    source = export_graph("feature", "shared_x").read_bytes()
    values = json.loads(engine.path.with_name("engine.plan.json").read_text())
    assert values["source_sha256"] == hashlib.sha256(source).hexdigest()
    assert values["plan_sha256"] == hashlib.sha256(engine.path.read_bytes()).hexdigest()
    assert values["version"] == open_flavor("tensorrt-rtx").version
    assert values["metadata"]["precision"] == "fp32"
    assert (values["flavor"], values["targets"], values["profiles"]) == ("tensorrt-rtx", list(RTX_TARGETS), [[1, 16, 256]])
    assert values["inputs"] == [{"name": "x", "dtype": "float32", "shape": [None, 12]}]


def test_nothing_is_printed(export_graph: Export, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build_tensorrt(export_graph("feature", "shared_x"), tmp_path / "engine.plan")
    assert capfd.readouterr() == ("", "")
