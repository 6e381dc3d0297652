"""A walk over a graph in low precision: which nodes compute in it, and which do not."""

from __future__ import annotations

from pathlib import Path

import onnx

LOW = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
LAYERS = {"Conv", "ConvTranspose", "Gemm"}
ACTIVATIONS = {"LeakyRelu", "Relu"}
LAYOUT = {"Concat", "Expand", "Flatten", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
# Exp and Log are in no graph, since codes are means; they are here so that a graph with them would have to keep to it.
DELICATE = {"Div", "Sub", "Mul", "Add", "Clip", "Max", "Min", "ReduceL2", "Sqrt", "Tanh", "Exp", "Log", "Softplus", "Sigmoid"}

_FLOATING = {onnx.TensorProto.FLOAT, *LOW.values()}


def walk(path: Path, precision: str) -> set[str]:
    """Check the floating-point types that every node reads and writes; the operators that were met."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    full, low = {onnx.TensorProto.FLOAT}, {LOW[precision]}
    for node in graph.node:
        reads, writes = ({types[name] for name in names if name} & _FLOATING for names in (node.input, node.output))
        where = f"{path}: {node.op_type} {node.name} reads {reads}, writes {writes}"
        if node.op_type in LAYERS | ACTIVATIONS:
            wide = precision == "bf16" and node.op_type == "ConvTranspose"  # which no runtime takes in bf16
            assert reads == writes == (full if wide else low), where
        elif node.op_type in DELICATE:
            assert reads == writes == full, where
        elif node.op_type in LAYOUT:
            assert len(reads | writes) <= 1, where
        else:
            assert node.op_type in ("Cast", "Shape", "Gather", "Constant"), where
    return {node.op_type for node in graph.node}
