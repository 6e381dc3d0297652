"""What torch's exporter leaves to do: channels that are computed and cut away, dead parts, traces of the machine."""

from __future__ import annotations

__all__ = ["LAYERS", "image_layers", "last_layers", "prune", "simplify"]

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

LAYERS = ("Conv", "ConvTranspose", "Gemm")  # what multiplies by weights

# Axis of the weight along which the outputs' channels lie. ConvTranspose is no encoder's last layer.
_CHANNEL_LAYERS = ("Conv", "Gemm")


def simplify(model: onnx.ModelProto) -> None:
    """Fold channel slices into the layers before them, drop what nothing uses, and forget where the model was traced.

    Images of files are cast before they are transposed: TensorRT does nothing else with uint8.
    """
    _fold_channel_slices(model.graph)
    _cast_before_transpose(model.graph)
    prune(model.graph)
    del model.graph.value_info[:]
    for value in [*model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    for initializer in model.graph.initializer:
        initializer.doc_string = ""
        del initializer.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]  # stack traces with file names


def prune(graph: onnx.GraphProto) -> None:
    """Drop nodes and initializers on which no output depends."""
    needed = {output.name for output in graph.output}
    for node in reversed(graph.node):  # in topological order, so users come before what they use
        if needed.intersection(node.output):
            needed.update(node.input)
    nodes = [node for node in graph.node if needed.intersection(node.output)]
    initializers = [initializer for initializer in graph.initializer if initializer.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)


def image_layers(graph: onnx.GraphProto) -> list[str]:
    """Names of the convolutions that no layer comes before: they read an image, so their work is small."""
    after_layers: set[str] = set()  # values that depend on a layer
    first = []
    for node in graph.node:  # in topological order
        follows_layer = not after_layers.isdisjoint(node.input)
        if node.op_type == "Conv" and not follows_layer:
            first.append(node.name)
        if node.op_type in LAYERS or follows_layer:
            after_layers.update(node.output)
    return first


def last_layers(graph: onnx.GraphProto) -> list[str]:
    """Names of the layers that no other layer comes after."""
    before_layers: set[str] = set()  # values that a layer depends on
    last = []
    for node in reversed(graph.node):  # in topological order, so what comes after is known
        leads_to_layer = not before_layers.isdisjoint(node.output)
        if node.op_type in LAYERS and not leads_to_layer:
            last.append(node.name)
        if node.op_type in LAYERS or leads_to_layer:
            before_layers.update(node.input)
    return last


def _fold_channel_slices(graph: onnx.GraphProto) -> None:
    """Where only some output channels of a layer are used, compute only those: an encoder's mean without its log-variance."""
    from onnx import numpy_helper

    constants = {initializer.name: initializer for initializer in graph.initializer}
    outputs = {output.name for output in graph.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for node in list(graph.node):
        if node.op_type not in _CHANNEL_LAYERS or node.output[0] in outputs:
            continue
        after = users.get(node.output[0], [])
        if len(after) != 1 or after[0].op_type != "Slice":
            continue
        weights, bounds = node.input[1:], after[0].input[1:]
        if any(name not in constants for name in (*weights, *bounds)) or any(len(users[name]) != 1 for name in weights):
            continue
        window = _channel_window(*(numpy_helper.to_array(constants[name]).tolist() for name in bounds))
        if window is None:
            continue
        for name in node.input[1:]:
            values = numpy_helper.to_array(constants[name])
            # Conv keeps its output channels first; Gemm keeps them first when the weight is transposed, last otherwise
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            first = values.ndim == 1 or node.op_type == "Conv" or transposed
            values = values[window] if first else values[:, window]
            constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
        node.output[0] = after[0].output[0]
        graph.node.remove(after[0])


def _cast_before_transpose(graph: onnx.GraphProto) -> None:
    from onnx import TensorProto

    bytes_in = {value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for node in graph.node:
        if node.op_type != "Transpose" or node.input[0] not in bytes_in:
            continue
        (cast,) = users[node.output[0]]
        assert cast.op_type == "Cast", cast.op_type
        first, second = type(node)(), type(node)()
        first.CopyFrom(node)
        second.CopyFrom(cast)
        for target, source in ((node, second), (cast, first)):  # each keeps its place and its values
            target.op_type, target.name = source.op_type, source.name
            del target.attribute[:]
            target.attribute.extend(source.attribute)


def _channel_window(starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> slice | None:
    """The channels that a Slice node keeps, or None when it does more than cut along their axis."""
    return slice(starts[0], ends[0]) if axes == [1] and steps == [1] else None
