"""Static int8 quantization of an exported graph, in Q/DQ form, by ONNX Runtime's quantizer."""

from __future__ import annotations

__all__ = ["quantize"]

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from iiae_fast.errors import InputError, require
from iiae_fast.export.sealing import finish
from iiae_fast.export.session import load
from iiae_fast.storage import write_atomic

if TYPE_CHECKING:
    import onnx

    from iiae_fast.export.session import Array

Target = Literal["cpu", "tensorrt"]

# Layers with an int8 implementation on the target, and what may stand between them without leaving int8.
_LAYERS = {"cpu": ("Conv", "Gemm"), "tensorrt": ("Conv", "ConvTranspose", "Gemm")}
_BETWEEN = ("Concat", "LeakyRelu", "Relu", "Reshape")
_ALL_LAYERS = ("Conv", "ConvTranspose", "Gemm")

_BATCH = 32  # calibration samples per run


def quantize(
    source: str | Path,
    path: str | Path,
    samples: Mapping[str, Array] | Array,
    target: Target = "cpu",
) -> Path:
    """Write an int8 version of a float32 graph, with ranges calibrated on data.

    Weights are quantized per output channel. The last layer of each output stays float32: its error alone would go into
    the output directly, and it is a small part of the work.

    Args:
        source: A file of ``to_onnx`` with ``precision="fp32"``.
        path: The file to write, whole or not at all.
        samples: Inputs as a session of ``source`` takes them, a few hundred that represent what the graph will meet. The
            smallest and largest values seen set the ranges.
        target: ``"cpu"``: uint8 activations, and weights of 7 bits, because x86 without VNNI adds two products in 16 bits and
            would saturate. ``"tensorrt"``: symmetric int8 throughout, biases float32, as its parser takes them; what it
            computes cannot be judged on a CPU without VNNI, for the same reason.

    Returns:
        ``path``. The metadata are those of ``source``, with ``precision`` ``"int8"``, ``calibration_samples`` and ``target``.

    Raises:
        InputError: The graph is not float32, has no layer that the target runs in int8, or the samples do not fit or are not
        finite. CheckpointError: ``source`` is missing, altered, or not of ``to_onnx``.
        MissingExtraError: ``onnx`` or ``onnxruntime`` is not installed.
    """
    require("onnx", "onnx")
    import onnx

    if target not in get_args(Target):
        raise InputError(f"target={target!r}: accepted are {', '.join(get_args(Target))}")
    session = load(source, device="cpu")
    if session.metadata["precision"] != "fp32":
        raise InputError(f"{source}: precision is {session.metadata['precision']}, quantization starts from fp32")
    named = {name: _finite(name, values) for name, values in session.named(samples).items()}
    count = len(named[session.inputs[0].name])
    if count == 0:
        raise InputError("samples are empty: calibration needs data, a few hundred samples are good")

    model: onnx.ModelProto = onnx.load(source)
    layers = [node for node in model.graph.node if node.op_type in _ALL_LAYERS]
    last = _last_layers(model.graph)
    if not any(node.op_type in _LAYERS[target] for node in layers if node.name not in last):
        graph = session.metadata["graph"]
        raise InputError(
            f"{source}: graph {graph} has no layer but its last that {target} would run in int8; fp16 makes it smaller"
        )
    quantized = _quantize(model, last, named, target)
    facts = {key: value for key, value in session.metadata.items() if key != "checksum"}
    facts |= {"precision": "int8", "calibration_samples": str(count), "target": target}
    path = Path(path)
    write_atomic(path, finish(quantized, facts))
    return path


def _finite(name: str, values: Array) -> NDArray[Any]:
    array = values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()
    bad = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if bad.any():
        raise InputError(f"samples {name!r}: row {int(bad.argmax())} is not finite")
    return array


def _last_layers(graph: onnx.GraphProto) -> list[str]:
    """Names of the layers that no other layer comes after."""
    before_layers: set[str] = set()  # values that a layer depends on
    last = []
    for node in reversed(graph.node):  # in topological order, so what comes after is known
        leads_to_layer = not before_layers.isdisjoint(node.output)
        if node.op_type in _ALL_LAYERS and not leads_to_layer:
            last.append(node.name)
        if node.op_type in _ALL_LAYERS or leads_to_layer:
            before_layers.update(node.input)
    return last


def _quantize(
    model: onnx.ModelProto, last_layers: list[str], samples: Mapping[str, NDArray[Any]], target: Target
) -> onnx.ModelProto:
    import onnx

    quantization = require("onnxruntime.quantization", "onnx")
    # the quantizer advises to fold BatchNorm and infer shapes first, unless it finds this mark; to_onnx has done so
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    kinds = quantization.QuantType
    on_cpu = target == "cpu"
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "int8.onnx"
        quantization.quantize_static(
            model,
            result,
            _Reader(samples),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=[*_LAYERS[target], *_BETWEEN],
            nodes_to_exclude=last_layers,
            activation_type=kinds.QUInt8 if on_cpu else kinds.QInt8,
            weight_type=kinds.QInt8,
            per_channel=True,
            reduce_range=on_cpu,
            extra_options={"ActivationSymmetric": not on_cpu, "WeightSymmetric": True, "QuantizeBias": on_cpu},
        )
        quantized: onnx.ModelProto = onnx.load(result)
    del quantized.graph.value_info[:]
    return quantized


class _Reader:
    """Calibration batches, as ONNX Runtime's ``CalibrationDataReader`` gives them."""

    def __init__(self, samples: Mapping[str, NDArray[Any]]) -> None:
        self._batches = self._parts(samples)

    @staticmethod
    def _parts(samples: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
        for start in range(0, len(next(iter(samples.values()))), _BATCH):
            yield {name: np.ascontiguousarray(values[start : start + _BATCH]) for name, values in samples.items()}

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._batches, None)
