"""TensorRT and TensorRT-RTX through one door: every call of their Python API that this package makes is in this file.

Both modules have the same classes and methods. They differ in what ``_FLAVORS`` holds, and in the two places marked "RTX only"
and "TensorRT only": TensorRT-RTX builds for GPUs that are named and need not be there; TensorRT builds for the GPU at hand,
whose kernels it times, and can keep those timings in a cache.
"""

from __future__ import annotations

__all__ = ["FLAVORS", "RTX_TARGETS", "Built", "Context", "Flavor", "FlavorName", "choose_flavor", "open_flavor"]

import contextlib
import gc
import importlib
import importlib.util
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from iiae_fast.errors import InputError, MissingExtraError, require

FlavorName = Literal["tensorrt", "tensorrt-rtx"]
FLAVORS: tuple[FlavorName, ...] = get_args(FlavorName)
_FLAVORS = {"tensorrt": ("tensorrt", "gpu", "TensorRT"), "tensorrt-rtx": ("tensorrt_rtx", "rtx", "TensorRT-RTX")}
RTX_TARGETS = ("SM80", "SM86", "SM89", "SM120")  # what a machine without a GPU can build for, by TensorRT-RTX 1.7

Batches = tuple[int, int, int]
"""Smallest batch, the one to tune for, largest."""


_turn = threading.Lock()


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """TensorRT logs with a lock held that the end of its objects takes too: a collection during a logger's ``log`` that found
    an old builder, kept by a failed build's traceback say, would wait for ever.

    Collection is the whole process's, so threads take turns: none turns it on again while another one builds.
    """
    with _turn:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()


@dataclass(frozen=True)
class Built:
    """What a build gives.

    Attributes:
        plan: The engine's bytes.
        layers: The parsed network, layer by layer: ``name``, ``type``, ``inputs`` and ``outputs`` (names, dtypes, shapes).
        kernels: What the layers were fused into, as the builder's log tells: ``name``, ``type``, ``inputs`` and ``outputs``
            (dtypes), ``tactic``, ``nodes`` (of the ONNX graph). Empty where it tells nothing.
        timing_cache: TensorRT's, to be kept for the next build; None for TensorRT-RTX.
    """

    plan: bytes
    layers: list[dict[str, Any]]
    kernels: list[dict[str, Any]]
    timing_cache: bytes | None


class Context:
    """An execution context: memory for the layers between, and one run at a time.

    Args:
        context: TensorRT's ``IExecutionContext``.
        owners: What must outlive it.
    """

    def __init__(self, context: Any, owners: tuple[Any, ...]) -> None:
        self._context = context
        self._owners = owners

    def run(self, inputs: Mapping[str, tuple[int, tuple[int, ...]]], outputs: Mapping[str, int], stream: int) -> None:
        """Enqueue a run.

        Args:
            inputs: Address and shape of each.
            outputs: Address of each.
            stream: Address of the CUDA stream.

        Raises:
            RuntimeError: TensorRT refused.
        """
        context = self._context
        taken = all(context.set_input_shape(name, shape) for name, (_, shape) in inputs.items())
        taken = taken and all(context.set_tensor_address(name, address) for name, (address, _) in inputs.items())
        taken = taken and all(context.set_tensor_address(name, address) for name, address in outputs.items())
        if not taken or not context.execute_async_v3(stream):
            shapes = ", ".join(f"{name} {shape}" for name, (_, shape) in inputs.items())
            raise RuntimeError(f"the engine did not run on {shapes}")


class Flavor:
    """One of the two, installed.

    Args:
        name: One of ``FLAVORS``.
        module: ``tensorrt`` or ``tensorrt_rtx``.

    Attributes:
        version: All four numbers of it: engines load in the version that built them.
    """

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        self.title = _FLAVORS[name][2]
        self.module = module
        self.version = str(module.__version__)

    @_without_collection()
    def build(
        self,
        onnx: bytes,
        profiles: Sequence[Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]],
        targets: Sequence[str] | None,
        tf32: bool,
        level: int,
        workspace: int | None,
        timing_cache: bytes | None,
    ) -> Built:
        """Parse an ONNX model into a strongly typed network and build it.

        Args:
            onnx: The model.
            profiles: For each optimization profile smallest, preferred and largest shape of every input.
            targets: RTX only: names of compute capabilities.
            tf32: Let float32 layers round their inputs to 10 bits of mantissa.
            level: The builder's optimization level, 0 to 5.
            workspace: Largest scratch memory in bytes; None leaves it to the flavor.
            timing_cache: TensorRT only: a former build's cache, or None.

        Raises:
            InputError: The parser or the builder refuses the model; the message names the nodes.
        """
        trt = self.module
        log = self._log()
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(onnx):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            found = [_parse_error(e.node_operator(), e.node_name(), e.node(), e.code(), e.desc()) for e in errors]
            raise InputError(f"{self.title} {self.version} does not parse the graph: {'; '.join(found) or log.errors()}")
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # keeps names, so that layers can be told apart
        config.builder_optimization_level = level
        (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
        if workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        for shapes in profiles:
            profile = builder.create_optimization_profile()
            for name, (smallest, preferred, largest) in shapes.items():
                profile.set_shape(name, smallest, preferred, largest)
            if config.add_optimization_profile(profile) < 0:
                raise InputError(f"{self.title} {self.version} does not take the profile {dict(shapes)}: {log.errors()}")
        cache = None
        if targets is not None:  # RTX only
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, target), index)
        else:  # TensorRT only
            cache = config.create_timing_cache(timing_cache or b"")
            if not config.set_timing_cache(cache, False):
                raise InputError(f"timing_cache: {self.title} {self.version} does not take it: {log.errors()}")
        layers = [_describe(network.get_layer(index)) for index in range(network.num_layers)]
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            where = ", ".join(targets or ["the GPU of this machine"])
            raise InputError(f"{self.title} {self.version} builds no engine for {where}: {log.errors()}")
        kept = None if cache is None else bytes(memoryview(cache.serialize()))
        return Built(bytes(memoryview(plan)), layers, log.kernels(), kept)

    @_without_collection()
    def open(self, plan: bytes) -> Callable[[int, int], Context]:
        """Deserialize an engine.

        Args:
            plan: An engine's bytes. They are code: only pass what a trusted sidecar vouches for.

        Returns:
            A function of an optimization profile's index and the address of a CUDA stream, which makes an execution context.

        Raises:
            InputError: The engine cannot be deserialized here.
        """
        log = self._log()
        runtime = self.module.Runtime(log)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise InputError(f"{self.title} {self.version} does not load the engine: {log.errors()}")

        @_without_collection()
        def context(profile: int, stream: int) -> Context:
            made = engine.create_execution_context()
            if made is None or not made.set_optimization_profile_async(profile, stream):
                raise InputError(f"{self.title} {self.version} makes no context for profile {profile}: {log.errors()}")
            return Context(made, (runtime, engine))

        return context

    def _log(self) -> Any:
        """A logger that keeps what it is told, made where its base class is known."""
        base = self.module.ILogger
        severe = (base.INTERNAL_ERROR, base.ERROR)

        class Log(base):  # type: ignore[misc, valid-type]  # the base class is the installed flavor's
            def __init__(self) -> None:
                base.__init__(self)
                self.failures: list[str] = []
                self.table = ""

            def log(self, severity: Any, message: str) -> None:
                if severity in severe:
                    self.failures.append(message)
                elif message.startswith("Layers:"):
                    self.table = message

            def errors(self) -> str:
                return " ".join("; ".join(dict.fromkeys(map(_plain, self.failures))).split()) or "it gives no reason"

            def kernels(self) -> list[dict[str, Any]]:
                return _kernels(self.table)

        return Log()


def choose_flavor(flavor: Literal["auto"] | FlavorName, has_gpu: Callable[[], bool]) -> tuple[Flavor, str]:
    """The flavor to build with, and why.

    Args:
        flavor: One of ``FLAVORS``, or ``"auto"``: TensorRT where it is installed and there is a GPU to build for, else
            TensorRT-RTX.
        has_gpu: Whether there is one; asked only where it matters.

    Raises:
        MissingExtraError: It is not installed; with ``"auto"``, neither is.
        InputError: No such flavor.
    """
    if flavor != "auto":
        return open_flavor(flavor), f"{flavor} was asked for"
    if not _installed("tensorrt"):
        why = "tensorrt is not installed"
    elif not has_gpu():
        why = "tensorrt builds for the GPU at hand, and there is none"
    else:
        return open_flavor("tensorrt"), "tensorrt is installed, and there is a GPU to build for"
    if not _installed("tensorrt-rtx"):
        commands = " or ".join(f"pip install 'iiae_fast[{extra}]'" for _, extra, _ in _FLAVORS.values())
        raise MissingExtraError(f"{why}, and tensorrt_rtx is not installed; install one with: {commands}")
    return open_flavor("tensorrt-rtx"), why


def open_flavor(name: str) -> Flavor:
    """An installed flavor.

    Raises:
        MissingExtraError: It is not installed.
        InputError: No such flavor, or its libraries do not load.
    """
    if name not in FLAVORS:
        raise InputError(f"flavor={name!r}: accepted are auto, {', '.join(FLAVORS)}")
    module, extra, title = _FLAVORS[name]
    try:
        return Flavor(name, require(module, extra))
    except MissingExtraError:
        raise
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(f"{title} is installed but does not load: {' '.join(str(error).split())}") from error


def _installed(name: str) -> bool:
    return importlib.util.find_spec(_FLAVORS[name][0]) is not None


def _parse_error(operator: str, name: str, index: int, code: Any, description: str) -> str:
    if not operator:
        return _plain(description)
    return f"node {name or index} ({operator}): {str(code).removeprefix('ErrorCode.')}, {_plain(description)}"


def _plain(message: str) -> str:
    """A message without where in TensorRT's own sources it comes from."""
    message = re.sub(r"\s*\(?\bIn \w+ at /_src/[^)]*\)?", "", message)
    message = re.sub(r"\[?[\w/.]+\.(?:cpp|h|hpp):\d+(?:: *\w+)?\]? *", "", message)
    return message[:400]


def _describe(layer: Any) -> dict[str, Any]:
    """A layer of a parsed network, in plain values."""
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]

    def tensors(values: list[Any]) -> list[dict[str, Any]]:
        present = [value for value in values if value is not None]  # optional inputs that are not given
        return [{"name": value.name, "dtype": value.dtype.name, "shape": list(value.shape)} for value in present]

    return {"name": layer.name, "type": layer.type.name, "inputs": tensors(inputs), "outputs": tensors(outputs)}


_KERNEL = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[.*?\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), StreamId: .*?, Metadata: (?P<nodes>.*)$",
    re.MULTILINE,
)


def _kernels(table: str) -> list[dict[str, Any]]:
    """The fused layers that the builder's log lists."""
    return [
        {
            "name": match["name"],
            "type": match["type"],
            "inputs": re.findall(r"Datatype: (\w+)", match["inputs"]),
            "outputs": re.findall(r"Datatype: (\w+)", match["outputs"]),
            "tactic": match["tactic"],
            "nodes": re.findall(r"\[ONNX Layer: (.*?)\]", match["nodes"]),
        }
        for match in _KERNEL.finditer(table)
    ]
