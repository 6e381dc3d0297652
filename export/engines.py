"""TensorRT engines: built from an exported graph, beside a sidecar that says what they are and vouches for their bytes."""

from __future__ import annotations

__all__ = ["BuildOptions", "EngineInfo", "build_tensorrt", "inspect_engine", "read_engine"]

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from iiae_fast.errors import CheckpointError, InputError, require
from iiae_fast.export.flavors import RTX_TARGETS, Batches, Flavor, FlavorName, choose_flavor
from iiae_fast.export.sealing import sealed
from iiae_fast.export.session import SIDECAR, TensorInfo
from iiae_fast.storage import load_json, read_whole, save_json, write_atomic

_FORMAT = 1
_BATCH = (1, 16, 256)
_FP8_TARGETS = ("SM89", "SM120")  # the first GPUs with 8-bit floats are those of compute capability 8.9


@dataclass(frozen=True)
class BuildOptions:
    """What can be left at its default.

    Attributes:
        optimization_level: Of the builder, 0 to 5: higher levels search longer.
        tf32: Whether float32 layers may round their inputs to TF32. None: only where the graph's layers are of a lower
            precision anyway, so that an fp32 engine keeps the accuracy of fp32.
    """

    optimization_level: int = 3
    tf32: bool | None = None


@dataclass(frozen=True)
class EngineInfo:
    """An engine's sidecar.

    Attributes:
        path: Of the engine; an ``EngineInfo`` may be given wherever a path is taken.
        flavor: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        version: Of it, all four numbers: only the same version loads the engine.
        reason: Why this flavor built it.
        targets: Compute capabilities of the GPUs that it runs on, such as ``"SM89"``.
        profiles: Smallest, preferred and largest batch of each optimization profile.
        inputs, outputs: As a session has them.
        metadata: What ``to_onnx`` or ``quantize`` wrote into the graph.
        source_sha256: Of the ONNX file.
        plan_sha256: Of the engine.
        size: Of the engine, in bytes.
        build_seconds: Parsing and building.
        options: ``optimization_level``, ``tf32``, ``workspace``.
        layers, kernels: As ``iiae_fast.export.flavors.Built`` describes them.
    """

    path: Path
    flavor: str
    version: str
    reason: str
    targets: tuple[str, ...]
    profiles: tuple[Batches, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    source_sha256: str
    plan_sha256: str
    size: int
    build_seconds: float
    options: dict[str, Any]
    layers: list[dict[str, Any]]
    kernels: list[dict[str, Any]]

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def max_batch(self) -> int:
        """Largest batch of one run."""
        return max(largest for _, _, largest in self.profiles)


def build_tensorrt(
    onnx_path: str | Path,
    path: str | Path,
    batch: Sequence[int] | Sequence[Sequence[int]] | None = None,
    flavor: Literal["auto"] | FlavorName = "auto",
    targets: Sequence[str] | None = None,
    workspace: int | None = None,
    timing_cache: str | Path | None = None,
    options: BuildOptions | None = None,
) -> EngineInfo:
    """Build a TensorRT engine from an exported graph.

    Networks are strongly typed: every layer computes in the dtype that the graph says, so the precision is the graph's
    (``to_onnx(precision=…)``, ``quantize(target="tensorrt")``).

    Args:
        onnx_path: A file of ``to_onnx`` or ``quantize``.
        path: The engine to write; its sidecar is written beside it, as ``PATH.json``.
        batch: Smallest batch, the one to tune for, and the largest; or several such triples, each an optimization profile with
            an execution context and memory of its own. None: (1, 16, 256), cut to the file's ``max_batch``. Runs of more
            samples than the largest are split.
        flavor: ``"tensorrt"`` builds for the GPU of this machine. ``"tensorrt-rtx"`` builds for any of its targets, on a
            machine without a GPU too. ``"auto"``: the former where it is installed and there is a GPU, else the latter;
            ``EngineInfo.reason`` says what was chosen and why.
        targets: TensorRT-RTX only: compute capabilities to build for, such as ``("SM86", "SM89")``. None: all that can be
            built for without a GPU, 8.0, 8.6, 8.9 and 12.0; for fp8 the last two.
        workspace: Largest scratch memory in bytes; None leaves it to the flavor.
        timing_cache: TensorRT only: a file to keep kernel timings in from build to build; made when absent.
        options: See ``BuildOptions``.

    Returns:
        What the sidecar holds, ``layers`` and ``kernels`` with their precisions among it.

    Raises:
        InputError: An argument is not accepted, the flavor refuses the graph (the message names its nodes), or TensorRT is to
            build and there is no GPU.
        CheckpointError: ``onnx_path`` is missing, altered, or not of ``to_onnx``.
        MissingExtraError: The flavor, or ``onnx``, is not installed; the message holds the command that installs it.
    """
    require("onnx", "onnx")
    onnx_path, path = Path(onnx_path), Path(path)
    options = options or BuildOptions()
    _check_options(options, workspace, path)
    source = read_whole(onnx_path, "an ONNX file")
    metadata, inputs, outputs = _interface(onnx_path, source)
    profiles = _profiles(batch, metadata)
    chosen, reason = choose_flavor(flavor, _has_gpu)
    built_for, named = _targets(chosen, targets, metadata["precision"])
    cache = _read_cache(chosen, timing_cache)
    tf32 = metadata["precision"] != "fp32" if options.tf32 is None else options.tf32
    shapes = [{info.name: _shapes(info, batches) for info in inputs} for batches in profiles]

    start = time.perf_counter()
    built = chosen.build(source, shapes, named, tf32, options.optimization_level, workspace, cache)
    seconds = time.perf_counter() - start
    info = EngineInfo(
        path=path,
        flavor=chosen.name,
        version=chosen.version,
        reason=f"{chosen.title} {chosen.version}: {reason}",
        targets=built_for,
        profiles=profiles,
        inputs=inputs,
        outputs=outputs,
        metadata=metadata,
        source_sha256=hashlib.sha256(source).hexdigest(),
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        size=len(built.plan),
        build_seconds=seconds,
        options={"optimization_level": options.optimization_level, "tf32": tf32, "workspace": workspace},
        layers=built.layers,
        kernels=built.kernels,
    )
    if timing_cache is not None and built.timing_cache is not None:
        write_atomic(timing_cache, built.timing_cache)
    _write(info, built.plan)
    return info


def inspect_engine(path: str | os.PathLike[str]) -> EngineInfo:
    """An engine's sidecar, once the engine's bytes were found to be those that it vouches for. Nothing is deserialized.

    Raises:
        CheckpointError: The engine or its sidecar is missing, altered, or not of ``build_tensorrt``.
    """
    return read_engine(path)[0]


def read_engine(path: str | os.PathLike[str]) -> tuple[EngineInfo, bytes]:
    """What ``inspect_engine`` gives, and the engine's bytes.

    Raises:
        CheckpointError: As ``inspect_engine``.
    """
    path = Path(path)
    plan = read_whole(path, "an engine")
    sidecar = path.with_name(path.name + SIDECAR)
    if not sidecar.exists():
        raise CheckpointError(
            f"{path}: has no sidecar {sidecar.name} beside it. An engine is code: only one that a sidecar of build_tensorrt "
            "vouches for is loaded"
        )
    values = load_json(sidecar)
    try:
        if values.pop("format") != _FORMAT:
            raise CheckpointError(f"{sidecar}: written by another version of iiae_fast; build the engine again")
        for name in ("inputs", "outputs"):
            values[name] = tuple(TensorInfo(t["name"], t["dtype"], tuple(t["shape"])) for t in values[name])
        values["profiles"] = tuple((smallest, preferred, largest) for smallest, preferred, largest in values["profiles"])
        values["targets"] = tuple(values["targets"])
        info = EngineInfo(path=path, **values)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{sidecar}: not a sidecar of build_tensorrt ({error})") from None
    if hashlib.sha256(plan).hexdigest() != info.plan_sha256:
        raise CheckpointError(f"{path}: its bytes are not those that {sidecar.name} vouches for: altered, or truncated")
    return info, plan


def _write(info: EngineInfo, plan: bytes) -> None:
    values = {name: getattr(info, name) for name in info.__dataclass_fields__ if name != "path"}
    for name in ("inputs", "outputs"):
        values[name] = [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in values[name]]
    values |= {"format": _FORMAT, "targets": list(info.targets), "profiles": [list(batches) for batches in info.profiles]}
    write_atomic(info.path, plan)
    save_json(info.path.with_name(info.path.name + SIDECAR), values)


def _check_options(options: BuildOptions, workspace: int | None, path: Path) -> None:
    level = options.optimization_level
    if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level <= 5:
        raise InputError(f"optimization_level={level!r}: accepted are 0 to 5")
    if options.tf32 not in (None, True, False):
        raise InputError(f"tf32={options.tf32!r}: accepted are True, False, None")
    if workspace is not None and (not isinstance(workspace, int) or isinstance(workspace, bool) or workspace < 1):
        raise InputError(f"workspace={workspace!r}: accepted is a number of bytes of at least 1, or None")
    if path.is_dir():
        raise InputError(f"{path}: is a directory, expected the name of a file to write")


def _interface(path: Path, source: bytes) -> tuple[dict[str, str], tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Metadata, inputs and outputs of an exported graph."""
    intact = sealed(source)
    if not intact:
        how = "altered since it was exported (checksum differs)" if intact is False else "not as iiae_fast.export wrote it"
        raise CheckpointError(f"{path}: {how}")
    import onnx

    model = onnx.ModelProto.FromString(source)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    dtypes = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.UINT8: "uint8"}

    def describe(value: Any) -> TensorInfo:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
        return TensorInfo(value.name, dtypes[tensor.elem_type], shape)

    return metadata, tuple(map(describe, model.graph.input)), tuple(map(describe, model.graph.output))


def _profiles(batch: Sequence[int] | Sequence[Sequence[int]] | None, metadata: dict[str, str]) -> tuple[Batches, ...]:
    limit = int(metadata["max_batch"]) if metadata["max_batch"] else None
    if batch is None:
        smallest, preferred, largest = (min(size, limit or size) for size in _BATCH)
        return ((smallest, preferred, largest),)
    triples = list(batch)
    if triples and not isinstance(triples[0], Sequence):
        triples = [cast("Sequence[int]", triples)]
    accepted = "accepted is (smallest, preferred, largest) with 1 <= smallest <= preferred <= largest, or a list of such"
    profiles = []
    for triple in cast("list[Sequence[int]]", triples):
        sizes = tuple(triple)
        whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
        if len(sizes) != 3 or not whole or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise InputError(f"batch={batch!r}: {accepted}")
        if limit is not None and sizes[2] > limit:
            raise InputError(f"batch={batch!r}: the graph was exported for batches of at most {limit}")
        profiles.append((sizes[0], sizes[1], sizes[2]))
    if not profiles:
        raise InputError(f"batch={batch!r}: {accepted}")
    return tuple(profiles)


def _shapes(info: TensorInfo, batches: Batches) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Smallest, preferred and largest shape of an input."""
    smallest, preferred, largest = (tuple(size if dim is None else dim for dim in info.shape) for size in batches)
    return smallest, preferred, largest


def _targets(flavor: Flavor, targets: Sequence[str] | None, precision: str) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The GPUs that the engine is for, and what the flavor is told of them."""
    if flavor.name == "tensorrt":
        if targets is not None:
            raise InputError(f"targets={targets!r}: TensorRT builds for the GPU of this machine; accepted is None")
        if not _has_gpu():
            raise InputError(
                "TensorRT builds on the GPU that the engine is for, and this machine has none; flavor='tensorrt-rtx' needs none"
            )
        import torch

        return ("SM{}{}".format(*torch.cuda.get_device_capability()),), None
    possible = _FP8_TARGETS if precision == "fp8" else RTX_TARGETS
    chosen = possible if targets is None else (targets,) if isinstance(targets, str) else tuple(targets)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(possible):
        raise InputError(f"targets={targets!r}: accepted for {precision} are {', '.join(possible)}, each at most once")
    return chosen, chosen


def _read_cache(flavor: Flavor, path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    if flavor.name == "tensorrt-rtx":
        raise InputError(
            f"timing_cache={str(path)!r}: TensorRT-RTX has none, it times no kernels when it builds; accepted is None"
        )
    return read_whole(Path(path), "a timing cache") if Path(path).exists() else None


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
