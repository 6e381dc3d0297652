"""Which of ONNX Runtime's execution providers runs a graph, and why."""

from __future__ import annotations

__all__ = ["choose"]

from typing import Any

from iiae_fast.errors import InputError

_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_CPU = "CPUExecutionProvider"

# The metadata entry of ``quantize(target="tensorrt")`` in a serialized model: key and value, each with its tag and length.
_FOR_TENSORRT = b"\x0a\x06target\x12\x08tensorrt"

_GRAPHS = {_CUDA: "enable_cuda_graph", _TENSORRT: "trt_cuda_graph_enable"}  # provider: its option


def choose(onnxruntime: Any, data: bytes, options: Any, device: str, cuda_graph: bool = False) -> tuple[Any, str, str]:
    """Open a runtime session on the device asked for.

    Args:
        onnxruntime: The module.
        data: The model.
        options: Its ``SessionOptions``.
        device: As ``load`` takes it.
        cuda_graph: Capture runs in CUDA graphs.

    Returns:
        The session, the device's name, and the reason in words.

    Raises:
        InputError: No such device, or it does not start.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "tensorrt") or (index and (kind in ("auto", "cpu") or not index.isdecimal())):
        raise InputError(f"device={device!r}: accepted are 'auto', 'cpu', 'cuda', 'cuda:N', 'tensorrt', 'tensorrt:N'")
    available = onnxruntime.get_available_providers()
    if kind == "cpu":
        return _on_cpu(onnxruntime, data, options, "the CPU was asked for")
    wanted = _TENSORRT if kind == "tensorrt" else _CUDA
    if wanted not in available:
        lack = f"this onnxruntime {onnxruntime.__version__} has no {wanted} (it has {', '.join(available)})"
        if kind == "auto":
            return _on_cpu(onnxruntime, data, options, lack)
        raise InputError(f"device={device!r}: {lack}; install it with: pip install 'iiae_fast[gpu]'")
    ordinal = int(index or 0)
    providers: list[Any] = []
    for name in dict.fromkeys((wanted, _CUDA)):
        if name in available:
            providers.append((name, {"device_id": ordinal, **({_GRAPHS[name]: "1"} if cuda_graph else {})}))
    try:
        session = onnxruntime.InferenceSession(data, options, providers=[*providers, _CPU])
        started = session.get_providers()[0] == wanted  # it falls back by itself when a provider does not start
        failure = f"{wanted} did not start"
    except Exception as error:  # its exception classes have no common base
        started, failure = False, f"{wanted} did not start ({error})"
    if started:
        why = "the first one available" if kind == "auto" else f"{device} was asked for"
        return session, f"cuda:{ordinal}", f"{wanted}: {why}"
    if kind == "auto":
        return _on_cpu(onnxruntime, data, options, failure)
    raise InputError(f"device={device!r}: {failure}")


def _on_cpu(onnxruntime: Any, data: bytes, options: Any, why: str) -> tuple[Any, str, str]:
    reason = f"{_CPU}: {why}"
    if _FOR_TENSORRT in data:
        # as it stands, every Q/DQ pair rounds and layers compute in float32; optimized, they would saturate without VNNI
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        reason += "; quantized for TensorRT, whose arithmetic it simulates in float32"
    try:
        session = onnxruntime.InferenceSession(data, options, providers=[_CPU])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        # the CPU provider lacks bf16 layers; everything else to_onnx writes, it runs
        from iiae_fast.export.precision import emulate_bf16

        session = onnxruntime.InferenceSession(emulate_bf16(data), options, providers=[_CPU])
        reason += "; it has no bf16 layers, so they run in float32 with every result rounded to bf16"
    return session, "cpu", reason
