"""Lower precision, written into the graph: layers and activations in fp16 or bf16, everything delicate in float32."""

from __future__ import annotations

__all__ = ["OPSET", "emulate_bf16", "lower"]

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from iiae_fast.errors import InputError, require
from iiae_fast.export.passes import prune

if TYPE_CHECKING:
    import onnx

# Computed in the low precision. Whatever is not listed (Div and Sub of the image normalization, Tanh of the output images, Clip
# of log-variances, ReduceL2 of a normalized code) keeps float32: a sum of squares overflows fp16 at 65,504, exp(logvar) turns
# an absolute error into a relative one, and the outputs are float32 anyway.
_LAYERS = {
    "fp16": ("Conv", "ConvTranspose", "Gemm", "MatMul", "LeakyRelu", "Relu"),
    # Neither TensorRT (11.0, NVIDIA/TensorRT#4829), TensorRT-RTX (1.7) nor ONNX Runtime takes a transposed convolution in bf16.
    # In float32 between casts, TensorRT-RTX takes it, and fuses most of them into bf16 kernels.
    "bf16": ("Conv", "Gemm", "MatMul", "LeakyRelu", "Relu"),
}
# Move values without computing on them, so they follow the precision of what they move. The rest of their inputs are shapes.
_LAYOUT = ("Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")

OPSET = 20  # what ONNX Runtime 1.20 and TensorRT 10 read
_BF16_OPSET = 22  # the first one whose Conv takes bf16
_BF16_SUFFIX = "_bf16"  # of the names of all bf16 values


def lower(model: onnx.ModelProto, precision: Literal["fp16", "bf16"], keep: Collection[str] = ()) -> None:
    """Rewrite a float32 model in place; its inputs and outputs stay as they are.

    Args:
        model: As ``simplify`` leaves it.
        precision: Of layers and activations.
        keep: Names of layers that stay float32.

    Raises:
        InputError: A weight is too large for fp16.
    """
    onnx = require("onnx", "onnx")
    if precision == "bf16":
        model.CopyFrom(onnx.version_converter.convert_version(model, _BF16_OPSET))
    _Lowering(model.graph, precision, keep).run()
    prune(model.graph)


class _Lowering:
    """One pass over the nodes in order; every value is known by its float32 name, its low-precision name, or both."""

    def __init__(self, graph: onnx.GraphProto, precision: Literal["fp16", "bf16"], keep: Collection[str]) -> None:
        from onnx import TensorProto

        self.graph = graph
        self.precision = precision
        self.keep = keep
        self.float32 = TensorProto.FLOAT
        self.low_type = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16
        self.weights = {weight.name: weight for weight in graph.initializer if weight.data_type == self.float32}
        self.float_inputs = {value.name for value in graph.input if value.type.tensor_type.elem_type == self.float32}
        self.low: dict[str, str] = {}  # value -> name of its low-precision form
        self.computed_low: set[str] = set()  # values that have no float32 form unless ``full`` names one
        self.full: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        for node in self.graph.node:
            if node.op_type in _LAYERS[self.precision] and node.name not in self.keep:
                self._compute_low(node, list(node.input))
            elif node.op_type in _LAYOUT and self._all_low(_moved(node)):
                self._compute_low(node, _moved(node))
            else:
                node.input[:] = [self._as_full(name) for name in node.input]
                self.nodes.append(node)
        for value in self.graph.output:
            if value.name in self.computed_low:
                self._cast(self.low[value.name], value.name, self.float32)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)

    def _all_low(self, names: list[str]) -> bool:
        """Graph inputs count as low: codes and features go straight into layers."""
        return all(name in self.computed_low or name in self.float_inputs for name in names)

    def _compute_low(self, node: onnx.NodeProto, floats: list[str]) -> None:
        lowered = {name: self._as_low(name) for name in floats}
        node.input[:] = [lowered.get(name, name) for name in node.input]
        result = node.output[0]
        self.low[result] = node.output[0] = f"{result}_{self.precision}"
        self.computed_low.add(result)
        self.nodes.append(node)

    def _as_low(self, name: str) -> str:
        if name not in self.low:
            self.low[name] = f"{name}_{self.precision}"
            if name in self.weights:
                self._lower_weight(name)
            else:
                self._cast(name, self.low[name], self.low_type)
        return self.low[name]

    def _as_full(self, name: str) -> str:
        if name not in self.computed_low:
            return name
        if name not in self.full:
            self.full[name] = f"{name}_fp32"
            self._cast(self.low[name], self.full[name], self.float32)
        return self.full[name]

    def _lower_weight(self, name: str) -> None:
        import ml_dtypes
        from onnx import numpy_helper

        values = numpy_helper.to_array(self.weights[name])
        if self.precision == "fp16" and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise InputError(f"precision='fp16': {name} holds {np.abs(values).max():g}, fp16 ends at 65504; use bf16 or fp32")
        low = values.astype(np.float16 if self.precision == "fp16" else ml_dtypes.bfloat16)
        self.graph.initializer.append(numpy_helper.from_array(low, self.low[name]))

    def _cast(self, source: str, target: str, to: int) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to))


def _moved(node: onnx.NodeProto) -> list[str]:
    """The inputs of a layout node that are no shapes."""
    return list(node.input if node.op_type == "Concat" else node.input[:1])


def emulate_bf16(data: bytes) -> bytes:
    """A bf16 model of ``lower`` for a runtime without bf16 arithmetic, such as ONNX Runtime's CPU provider.

    Every node computes in float32 on bf16 values and its result is rounded to bf16, which is what bf16 units with float32
    accumulation do. It is slower than float32.
    """
    onnx = require("onnx", "onnx")
    model: Any = onnx.ModelProto.FromString(data)
    nodes = []

    def cast(source: str, target: str, to: int) -> None:
        nodes.append(onnx.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to))

    for index, node in enumerate(model.graph.node):
        if node.op_type == "Cast" or not node.output[0].endswith(_BF16_SUFFIX):
            nodes.append(node)
            continue
        for position, name in enumerate(node.input):
            if name.endswith(_BF16_SUFFIX):
                node.input[position] = f"{name}_wide{index}_{position}"
                cast(name, node.input[position], onnx.TensorProto.FLOAT)
        result = node.output[0]
        node.output[0] = f"{result}_wide"
        nodes.append(node)
        cast(node.output[0], result, onnx.TensorProto.BFLOAT16)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    emulated: bytes = model.SerializeToString()
    return emulated
