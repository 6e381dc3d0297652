"""A walk over a graph in low precision: which nodes compute in it, and which do not."""

from __future__ import annotations

from pathlib import Path

import onnx

from iiae_fast.export import GRAPHS

LOW = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
LAYERS = {"Conv", "ConvTranspose", "Gemm"}
ACTIVATIONS = {"LeakyRelu", "Relu"}
LAYOUT = {"Concat", "Expand", "Flatten", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
# Exp and Log are in no graph, since codes are means; they are here so that a graph with them would have to keep to it.
DELICATE = {"Div", "Sub", "Mul", "Add", "Clip", "Max", "Min", "ReduceL2", "Sqrt", "Tanh", "Exp", "Log", "Softplus", "Sigmoid"}

_FLOATING = {onnx.TensorProto.FLOAT, *LOW.values()}


def wide_layers(model: onnx.ModelProto, precision: str) -> set[str]:
    """Layers that stay float32: in bf16 transposed convolutions, and both ends of an encoder."""
    if precision != "bf16":
        return set()
    layers = [node for node in model.graph.node if node.op_type in LAYERS]
    wide = {node.name for node in layers if node.op_type == "ConvTranspose"}  # which no runtime takes in bf16
    (graph,) = (entry.value for entry in model.metadata_props if entry.key == "graph")
    if GRAPHS[graph].kind != "encoder":
        return wide
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def reached(names: list[str]) -> list[str]:
        """The layers that values go into, other layers not passed."""
        found = []
        for user in (user for name in names for user in users.get(name, [])):
            found += [user.name] if user.op_type in LAYERS else reached(list(user.output))
        return found

    first = set(reached([value.name for value in model.graph.input]))
    wide |= {node.name for node in layers if node.name in first and node.op_type == "Conv"}
    return wide | {node.name for node in layers if not reached(list(node.output))}


def walk(path: Path, precision: str) -> set[str]:
    """Check the floating-point types that every node reads and writes; the operators that were met."""
    model = onnx.load(path)
    wide, graph = wide_layers(model, precision), onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    full, low = {onnx.TensorProto.FLOAT}, {LOW[precision]}
    for node in graph.node:
        reads, writes = ({types[name] for name in names if name} & _FLOATING for names in (node.input, node.output))
        where = f"{path}: {node.op_type} {node.name} reads {reads}, writes {writes}"
        if node.op_type in LAYERS | ACTIVATIONS:
            assert reads == writes == (full if node.name in wide else low), where
        elif node.op_type in DELICATE:
            assert reads == writes == full, where
        elif node.op_type in LAYOUT:
            assert len(reads | writes) <= 1, where
        else:
            assert node.op_type in ("Cast", "Shape", "Gather", "Constant"), where
    return {node.op_type for node in graph.node}
