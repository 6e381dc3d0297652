"""Static quantization of an exported graph to int8 or fp8, in Q/DQ form."""

from __future__ import annotations

__all__ = ["quantize"]

import contextlib
import io
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from iiae_fast.errors import InputError, require
from iiae_fast.export.passes import image_layers, last_layers
from iiae_fast.export.sealing import finish
from iiae_fast.export.session import load
from iiae_fast.storage import write_atomic

if TYPE_CHECKING:
    import onnx

    from iiae_fast.export.session import Array

Target = Literal["cpu", "tensorrt"]
Precision = Literal["int8", "fp8"]
Quantizer = Literal["onnxruntime", "modelopt"]

# Layers with an 8-bit implementation on the target.
_LAYERS = {"cpu": ("Conv", "Gemm"), "tensorrt": ("Conv", "ConvTranspose", "Gemm")}
_BETWEEN = ("Concat", "LeakyRelu", "Relu", "Reshape")  # what may stand between them without leaving int8 on a CPU

_BATCH = 32  # calibration samples per run


def quantize(
    source: str | Path,
    path: str | Path,
    samples: Mapping[str, Array] | Array,
    target: Target = "cpu",
    precision: Precision = "int8",
    quantizer: Quantizer = "onnxruntime",
) -> Path:
    """Write an 8-bit version of a float32 graph, with ranges calibrated on data.

    Weights are quantized per output channel. The last layer of each output stays float32: its error alone would go into the
    output directly, and it is a small part of the work. On the CPU and with fp8, so does the convolution that reads the
    image, where another layer is left to quantize: pixels in [−1, 1] have no 8-bit integers with a whole zero point, and the 4
    significant bits of fp8 are too few for them.

    Args:
        source: A file of ``to_onnx`` with ``precision="fp32"``.
        path: The file to write, whole or not at all.
        samples: Inputs as a session of ``source`` takes them, a few hundred that represent what the graph will meet. The
            smallest and largest values seen set the ranges.
        target: ``"cpu"``: uint8 activations, and weights of 7 bits, because x86 without VNNI adds two products in 16 bits and
            would saturate. ``"tensorrt"``: symmetric throughout, biases float32, as its parser takes them, and only the inputs
            of layers quantized, so that what follows a layer is computed before it is rounded.
        precision: ``"fp8"`` is E4M3, for ``target="tensorrt"`` and GPUs of compute capability 8.9 and later.
        quantizer: ``"onnxruntime"``'s, or NVIDIA's ``"modelopt"``, for ``target="tensorrt"``: it leaves small dense layers
            alone, and for fp8 transposed convolutions.

    Returns:
        ``path``. The metadata are those of ``source``, with ``precision`` that of the layers, ``calibration_samples``,
        ``target`` and ``quantizer``.

    Raises:
        InputError: An argument is not accepted, the graph is not float32 or has no layer that the target runs in 8 bits, or the
            samples do not fit or are not finite.
        CheckpointError: ``source`` is missing, altered, or not of ``to_onnx``.
        MissingExtraError: ``onnx``, ``onnxruntime``, or the quantizer, is not installed.
    """
    require("onnx", "onnx")
    import onnx

    for name, value, accepted in (
        ("target", target, get_args(Target)),
        ("precision", precision, get_args(Precision)),
        ("quantizer", quantizer, get_args(Quantizer)),
    ):
        if value not in accepted:
            raise InputError(f"{name}={value!r}: accepted are {', '.join(accepted)}")
    if target == "cpu" and (precision != "int8" or quantizer != "onnxruntime"):
        raise InputError(f"precision={precision!r}, quantizer={quantizer!r}: for target='tensorrt' only; CPUs have int8")
    session = load(source, device="cpu")
    if session.metadata["precision"] != "fp32":
        raise InputError(f"{source}: precision is {session.metadata['precision']}, quantization starts from fp32")
    named = {name: _finite(name, values) for name, values in session.named(samples).items()}
    count = len(named[session.inputs[0].name])
    if count == 0:
        raise InputError("samples are empty: calibration needs data, a few hundred samples are good")

    model: onnx.ModelProto = onnx.load(source)
    keep = _float_nodes(model.graph, target, precision)
    if not any(node.op_type in _LAYERS[target] and node.name not in keep for node in model.graph.node):
        graph = session.metadata["graph"]
        raise InputError(
            f"{source}: graph {graph} has no layer but its last that {target} would run in {precision}; fp16 makes it smaller"
        )
    facts = {key: value for key, value in session.metadata.items() if key != "checksum"}
    facts |= {"precision": precision, "calibration_samples": str(count), "target": target, "quantizer": quantizer}
    with tempfile.TemporaryDirectory() as directory, _quiet():
        result = Path(directory) / "quantized.onnx"
        if quantizer == "modelopt":
            _by_modelopt(model, result, keep, named, precision)
        else:
            _by_onnxruntime(model, result, keep, named, target)
        quantized: onnx.ModelProto = onnx.load(result)
    if precision == "fp8" and quantizer == "onnxruntime":
        _int8_to_fp8(quantized.graph, onnx.load(source).graph)
    del quantized.graph.value_info[:]
    path = Path(path)
    write_atomic(path, finish(quantized, facts))
    return path


def _finite(name: str, values: Array) -> NDArray[Any]:
    array = values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()
    bad = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if bad.any():
        raise InputError(f"samples {name!r}: row {int(bad.argmax())} is not finite")
    return array


def _float_nodes(graph: onnx.GraphProto, target: Target, precision: Precision) -> list[str]:
    """Names of the nodes that stay float32."""
    keep = last_layers(graph)
    wider = [*keep, *image_layers(graph)]
    others = any(node.op_type in _LAYERS[target] and node.name not in wider for node in graph.node)
    if others and (target == "cpu" or precision == "fp8"):
        keep = wider
    if target != "cpu":
        return keep
    quantized: set[str] = set()  # values that come out of int8
    stays = []
    for node in graph.node:  # in topological order
        if node.name in keep or (node.op_type in _BETWEEN and quantized.isdisjoint(node.input)):
            stays.append(node.name)
        elif node.op_type in (*_LAYERS[target], *_BETWEEN):
            quantized.update(node.output)
    return stays


def _by_onnxruntime(
    model: onnx.ModelProto,
    result: Path,
    keep: list[str],
    samples: Mapping[str, NDArray[Any]],
    target: Target,
) -> None:
    import onnx

    quantization = require("onnxruntime.quantization", "onnx")
    # the quantizer advises to fold BatchNorm and infer shapes first, unless it finds this mark; to_onnx has done so
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    kinds = quantization.QuantType
    on_cpu = target == "cpu"
    quantization.quantize_static(
        model,
        result,
        _Reader(samples),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=[*_LAYERS[target], *(_BETWEEN if on_cpu else ())],
        nodes_to_exclude=keep,
        activation_type=kinds.QUInt8 if on_cpu else kinds.QInt8,
        weight_type=kinds.QInt8,
        per_channel=True,
        reduce_range=on_cpu,
        extra_options={
            "ActivationSymmetric": not on_cpu,
            "WeightSymmetric": True,
            "QuantizeBias": on_cpu,
            "OpTypesToExcludeOutputQuantization": [] if on_cpu else list(_LAYERS[target]),
        },
    )


def _int8_to_fp8(graph: onnx.GraphProto, source: onnx.GraphProto) -> None:
    """Turn symmetric int8 into fp8 of the same ranges.

    ONNX Runtime's own fp8 takes ranges from standard deviations, as if values were normally distributed, and saturates others.
    """
    import ml_dtypes
    from onnx import numpy_helper

    exact = {weight.name: weight for weight in source.initializer}
    stored = {weight.name: weight for weight in graph.initializer}
    scales: dict[str, NDArray[Any]] = {}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        values, scale, zero = node.input
        if scale not in scales:
            # int8 ranges end at 127 (weights) or 127.5 (activations) steps, those of E4M3 at 448
            scales[scale] = numpy_helper.to_array(stored[scale]) * np.float32(127.5 / 448)
            stored[scale].CopyFrom(numpy_helper.from_array(scales[scale], scale))
        zeros = np.zeros(stored[zero].dims, ml_dtypes.float8_e4m3fn)
        stored[zero].CopyFrom(numpy_helper.from_array(zeros, zero))
        if values in stored:
            weight = numpy_helper.to_array(exact[values.removesuffix("_quantized")])
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
            steps = (weight / scales[scale].reshape(shape)).astype(ml_dtypes.float8_e4m3fn)
            stored[values].CopyFrom(numpy_helper.from_array(steps, values))


def _by_modelopt(
    model: onnx.ModelProto,
    result: Path,
    keep: list[str],
    samples: Mapping[str, NDArray[Any]],
    precision: Precision,
) -> None:
    import onnx

    require("modelopt", "quantize")
    modelopt = require("modelopt.onnx.quantization", "quantize")
    source = result.with_name("source.onnx")
    onnx.save(model, source)
    modelopt.quantize(
        str(source),
        quantize_mode=precision,
        calibration_data=dict(samples),
        calibration_method="max",
        calibration_eps=["cpu"],
        op_types_to_quantize=["Conv", "Gemm", *(("ConvTranspose",) if precision == "int8" else ())],
        nodes_to_exclude=[f"^{re.escape(name)}$" for name in keep],
        high_precision_dtype="fp32",
        output_path=str(result),
        log_level="ERROR",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizers' progress and advice, which are printed and logged at the root."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(level)


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
