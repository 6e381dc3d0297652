"""The adapter to TensorRT calls what both flavors have: each attribute that it touches, by class, with TensorRT's page.

What was seen of the pages, as excerpts: in their version for TensorRT 11, Builder.html (11.0.0: STRONGLY_TYPED is
deprecated, kept and ignored, since networks always are), ExecutionContext.html and OptimizationProfile.html (11.4.0); as
"latest", which names no version, TimingCache.html, Logger.html and pyOnnx.html; under the same paths in earlier
versions, Network.html (10.8.0), Engine.html (10.0.1), and LayerBase.html and Runtime.html of TensorRT-RTX 1.0. Of the
classes behind those, the C++ reference was seen for INetworkDefinition and ITimingCache (11.4.0), IBuilderConfig
(11.4.1), ILayer and NvOnnxParser.h (11.0.0). In no version 11 seen: Engine.html and Runtime.html.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util

import fake_tensorrt
import pytest
from paths import ROOT

DOCUMENTATION = "https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/_static/python-api/"

# Class: its page, and what export/flavors.py touches of it.
TOUCHED = {
    "Builder": (
        "infer/Core/Builder.html",
        ("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"),
    ),
    "NetworkDefinitionCreationFlag": ("infer/Core/Builder.html", ("STRONGLY_TYPED",)),
    "INetworkDefinition": ("infer/Graph/Network.html", ("get_layer", "num_layers")),
    "ILayer": ("infer/Graph/LayerBase.html", ("name", "type", "num_inputs", "num_outputs", "get_input", "get_output")),
    "ITensor": ("infer/Graph/LayerBase.html", ("name", "dtype", "shape")),
    "OnnxParser": ("parsers/Onnx/pyOnnx.html", ("parse", "num_errors", "get_error")),
    "ParserError": ("parsers/Onnx/pyOnnx.html", ("code", "desc", "node", "node_name", "node_operator")),
    "IBuilderConfig": (
        "infer/Core/BuilderConfig.html",
        (
            "profiling_verbosity",
            "builder_optimization_level",
            "set_flag",
            "clear_flag",
            "set_memory_pool_limit",
            "add_optimization_profile",
            "create_timing_cache",
            "set_timing_cache",
        ),
    ),
    "ProfilingVerbosity": ("infer/Core/BuilderConfig.html", ("DETAILED",)),
    "BuilderFlag": ("infer/Core/BuilderConfig.html", ("TF32",)),
    "MemoryPoolType": ("infer/Core/BuilderConfig.html", ("WORKSPACE",)),
    "IOptimizationProfile": ("infer/Core/OptimizationProfile.html", ("set_shape",)),
    "ITimingCache": ("infer/Core/TimingCache.html", ("serialize",)),
    "ILogger": ("infer/Core/Logger.html", ("INTERNAL_ERROR", "ERROR")),
    "Runtime": ("infer/Core/Runtime.html", ("deserialize_cuda_engine",)),
    "ICudaEngine": ("infer/Core/Engine.html", ("create_execution_context",)),
    "IExecutionContext": (
        "infer/Core/ExecutionContext.html",
        ("set_optimization_profile_async", "set_input_shape", "set_tensor_address", "execute_async_v3"),
    ),
}
RTX_ONLY = {"IBuilderConfig": {"num_compute_capabilities", "set_compute_capability"}, "module": {"ComputeCapability"}}
MODULE = {"__version__"}
# Attributes of the adapter's own objects, and of Python's.
OWN = {
    *("module", "title", "version", "name", "errors", "failures", "table", "kernels", "build", "run"),
    *("_context", "_owners", "_log", "_describe", "startswith", "removeprefix"),
    *("append", "fromkeys", "join", "split", "items", "values", "sub", "compile", "findall", "finditer", "MULTILINE"),
    *("util", "find_spec", "__init__", "contextmanager", "isenabled", "disable", "enable", "Lock"),
}


def attributes_of_the_adapter() -> set[str]:
    tree = ast.parse((ROOT / "export" / "flavors.py").read_text(encoding="utf-8"))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_the_table_is_complete() -> None:
    """Whatever the adapter touches is in the table, is RTX only by name, or is its own; and nothing listed is unused."""
    touched = {attribute for _, attributes in TOUCHED.values() for attribute in attributes}
    classes = {name for name in TOUCHED if not name.startswith("I") or name == "ILogger"} - {"ParserError"}
    listed = touched | classes | set().union(*RTX_ONLY.values()) | MODULE
    found = attributes_of_the_adapter()
    assert found - listed - OWN == set()
    assert listed - found == set()


def test_nothing_else_knows_tensorrt() -> None:
    for path in sorted((ROOT / "export").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "import tensorrt" not in text
        if path.name != "flavors.py":
            assert "trt." not in text, path


@pytest.mark.parametrize("name", TOUCHED)
def test_tensorrt_rtx_has_what_the_adapter_touches(name: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'iiae_fast[rtx]'")
    page, attributes = TOUCHED[name]
    assert page.endswith(".html")
    for attribute in attributes:
        assert hasattr(getattr(trt, name), attribute), f"{name}.{attribute}, see {DOCUMENTATION}{page}"


def test_tensorrt_rtx_has_what_is_marked_as_its_own() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'iiae_fast[rtx]'")
    for attribute in RTX_ONLY["IBuilderConfig"]:
        assert hasattr(trt.IBuilderConfig, attribute)
    assert {"SM80", "SM86", "SM89", "SM120"} <= set(dir(trt.ComputeCapability))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="tensorrt is not installed here")
def test_tensorrt_has_it_too() -> None:
    trt = importlib.import_module("tensorrt")
    for name, (_, attributes) in TOUCHED.items():
        for attribute in attributes:
            assert hasattr(getattr(trt, name), attribute)


@pytest.mark.parametrize("name", ["Runtime", "ICudaEngine", "IExecutionContext"])
def test_the_stand_in_has_the_same_methods(name: str) -> None:
    """What sessions are tested against on the CPU offers neither more nor less than what the table lists."""
    members = vars(getattr(fake_tensorrt, name))
    methods = {key for key, value in members.items() if callable(value) and not key.startswith("_")}
    assert methods == set(TOUCHED[name][1])
