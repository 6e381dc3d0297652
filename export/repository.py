"""A model repository for NVIDIA Triton Inference Server: a folder per graph, and ensembles that take images as files hold them.

The configuration files follow the server's ``model_config.proto`` and its ONNX Runtime and TensorRT backends.
"""

from __future__ import annotations

__all__ = ["model_repository"]

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from iiae_fast.errors import InputError, require
from iiae_fast.export.precision import OPSET
from iiae_fast.export.session import TensorInfo, is_engine, load
from iiae_fast.storage import write_atomic

Kind = Literal["auto", "cpu", "gpu"]

_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
_NORMALIZE = "normalize"


@dataclass(frozen=True)
class _Model:
    """A graph or an engine; ``profiles`` are how many an engine has, and None of a graph."""

    data: bytes
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    graph: str
    max_batch: int | None
    profiles: int | None


@dataclass(frozen=True)
class _Step:
    """One model's turn in an ensemble: the model's tensor names to the ensemble's."""

    model: str
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True)
class _Ensemble:
    name: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    steps: list[_Step]


def model_repository(
    paths: Iterable[str | Path] | Mapping[str, str | Path],
    directory: str | Path,
    max_batch: int = 64,
    kind: Kind = "auto",
    instances: int = 1,
    max_queue_delay: float = 0.001,
    threads: int | None = None,
) -> Path:
    """Lay graphs and engines out as NVIDIA Triton Inference Server loads them: ``MODEL/1/model.onnx``, ``MODEL/config.pbtxt``.

    As far as their parts are given there are ensembles beside the graphs: ``encode_x`` and ``encode_y`` take a sample and give
    every code that there is an encoder for; ``translate_x_to_y`` and ``translate_y_to_x`` take a sample and a ``style`` of the
    other domain. Their images are uint8 ``(B, H, W, C)``; a model named ``normalize`` brings them to [−1, 1] for the graphs
    that take float32. Requests that arrive together are batched.

    Args:
        paths: What ``to_onnx``, ``quantize`` or ``build_tensorrt`` wrote; a model is named after its graph. A dictionary gives
            names of your own; of two files with the same graph, ensembles take the first. Engines are copied as
            ``MODEL/1/model.plan`` and must be TensorRT's: the server has no TensorRT-RTX.
        directory: Of the repository, made when absent. Models of the same names are written over, others left alone.
        max_batch: Largest batch that the server forms, where a file sets no lower limit of its own.
        kind: Where instances of graphs run: ``"cpu"``, ``"gpu"``, or ``"auto"``, on GPUs where the server finds them. Engines
            run on GPUs.
        instances: Of each graph, on each device.
        max_queue_delay: Longest wait for a batch to fill, in seconds.
        threads: CPU threads of one run of a graph; None leaves it to ONNX Runtime.

    Returns:
        ``directory``, for ``tritonserver --model-repository``.

    Raises:
        InputError: No path, a name twice or not usable, graphs of models with other inputs, an engine that the server cannot
            run, or an argument out of range.
        CheckpointError: A file is missing, altered, or not of this package.
        MissingExtraError: ``onnx`` or ``onnxruntime`` is not installed.
    """
    for name, value in (("max_batch", max_batch), ("instances", instances), ("threads", threads)):
        optional = name == "threads" and value is None
        if not optional and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"{name}={value!r}: accepted is a whole number of at least 1")
    if kind not in get_args(Kind):
        raise InputError(f"kind={kind!r}: accepted are {', '.join(get_args(Kind))}")
    if not 0 <= max_queue_delay <= 60:
        raise InputError(f"max_queue_delay={max_queue_delay!r}: accepted are 0 to 60 seconds")
    files = _named(paths)
    models = {name: _open(path) for name, path in files.items()}
    ensembles = _ensembles(models)
    for ensemble in ensembles:
        if ensemble.name in files:
            raise InputError(f"model name {ensemble.name!r}: this is the name of the ensemble of these graphs")
    image = _image_to_normalize(ensembles)

    directory = Path(directory)
    options = _graph_options(kind, instances, max_queue_delay, threads)
    batches = {_NORMALIZE: max_batch}
    for name, model in models.items():
        batches[name] = min(max_batch, model.max_batch or max_batch)
        engine = model.profiles is not None
        write_atomic(directory / name / "1" / ("model.plan" if engine else "model.onnx"), model.data)
        of_model = _engine_options(instances, max_queue_delay, model.profiles) if model.profiles is not None else options
        write_atomic(directory / name / "config.pbtxt", _config(name, batches[name], model.inputs, model.outputs, of_model))
    if image is not None:
        normalized = TensorInfo("normalized", "float32", (None, image.shape[3], *image.shape[1:3]))
        write_atomic(directory / _NORMALIZE / "1" / "model.onnx", _normalizer(image, normalized))
        write_atomic(directory / _NORMALIZE / "config.pbtxt", _config(_NORMALIZE, max_batch, [image], [normalized], options))
    for ensemble in ensembles:
        # the server wants a version folder of every model, though an ensemble has no file to put there
        (directory / ensemble.name / "1").mkdir(parents=True, exist_ok=True)
        batch = min(batches[step.model] for step in ensemble.steps)
        scheduling = ['platform: "ensemble"', *_scheduling(ensemble.steps)]
        config = _config(ensemble.name, batch, ensemble.inputs, ensemble.outputs, scheduling)
        write_atomic(directory / ensemble.name / "config.pbtxt", config)
    return directory


def _named(paths: Iterable[str | Path] | Mapping[str, str | Path]) -> dict[str, Path]:
    """Model names to files."""
    if isinstance(paths, (str, Path)):
        paths = [paths]
    if isinstance(paths, Mapping):
        files = {name: Path(path) for name, path in paths.items()}
    else:
        files = {}
        for path in paths:
            graph = _open(Path(path)).graph
            if graph in files:
                raise InputError(
                    f"{path}: graph {graph!r} is also that of {files[graph]}; give a dictionary of names and paths"
                )
            files[graph] = Path(path)
    if not files:
        raise InputError("paths: no graph given")
    for name in files:
        if not re.fullmatch(r"\w[\w.-]*", name) or name == _NORMALIZE:
            raise InputError(f"model name {name!r}: accepted are letters, digits, '_', '-' and '.', but not {_NORMALIZE!r}")
    return files


def _open(path: Path) -> _Model:
    if not is_engine(path):
        session = load(path, device="cpu")
        graph = session.metadata["graph"]
        return _Model(path.read_bytes(), session.inputs, session.outputs, graph, session.max_batch, None)
    from iiae_fast.export.engines import read_engine

    info, plan = read_engine(path)
    if info.flavor != "tensorrt":
        raise InputError(f"{path}: an engine of {info.flavor}, which the server has no backend for; give it the ONNX file")
    smallest = min(batches[0] for batches in info.profiles)
    if smallest > 1:
        raise InputError(f"{path}: takes batches from {smallest} on, and a server's start at 1")
    return _Model(plan, info.inputs, info.outputs, info.metadata["graph"], info.max_batch, len(info.profiles))


def _ensembles(models: Mapping[str, _Model]) -> list[_Ensemble]:
    graphs: dict[str, str] = {}
    for name, model in models.items():
        graphs.setdefault(model.graph, name)
    ensembles = []
    for domain in ("x", "y"):
        name = f"encode_{domain}"
        if graphs.get(name) == name:
            continue  # the graph is what the ensemble would be
        single = (name,) if name in graphs else (f"shared_{domain}", f"exclusive_{domain}")
        parts = [graphs[graph] for graph in single if graph in graphs]
        if parts:
            outputs = [info for part in parts for info in models[part].outputs]
            ensembles.append(_ensemble(name, {domain: domain}, parts, outputs, models))
    for source, target in (("x", "y"), ("y", "x")):
        wanted = (f"exclusive_{target}", f"{source}_to_{target}")
        if all(graph in graphs for graph in wanted):
            parts = [graphs[graph] for graph in wanted]
            names = {source: source, target: "style"}
            outputs = list(models[parts[1]].outputs)
            ensembles.append(_ensemble(f"translate_{source}_to_{target}", names, parts, outputs, models))
    return ensembles


def _ensemble(
    name: str, sources: Mapping[str, str], parts: list[str], outputs: list[TensorInfo], models: Mapping[str, _Model]
) -> _Ensemble:
    """Parts in order, fed from the ensemble's inputs (``sources``: the models' names to the ensemble's) or from codes."""
    inputs: dict[str, TensorInfo] = {}
    steps: list[_Step] = []
    for part in parts:
        mapped = {}
        for info in models[part].inputs:
            source = sources.get(info.name)
            if source is None:
                mapped[info.name] = info.name  # a code from the step before
                continue
            image = info.dtype == "float32" and len(info.shape) == 4
            shape = (None, *info.shape[2:], info.shape[1]) if image else info.shape
            given = TensorInfo(source, "uint8" if image else info.dtype, shape)
            if inputs.setdefault(source, given) != given:
                raise InputError(f"{part} takes {source} as {shape}, another graph as {inputs[source].shape}: not of one model")
            mapped[info.name] = f"{source}_normalized" if image else source
            step = _Step(_NORMALIZE, {"image": source}, {"normalized": f"{source}_normalized"})
            if image and step not in steps:
                steps.append(step)
        steps.append(_Step(part, mapped, {info.name: info.name for info in models[part].outputs}))
    return _Ensemble(name, list(inputs.values()), outputs, steps)


def _image_to_normalize(ensembles: list[_Ensemble]) -> TensorInfo | None:
    """What ``normalize`` takes, or None where no ensemble needs it."""
    shapes = {
        info.shape: ensemble.name
        for ensemble in ensembles
        for info in ensemble.inputs
        if any(step.model == _NORMALIZE and info.name in step.inputs.values() for step in ensemble.steps)
    }
    if len(shapes) > 1:
        raise InputError(
            f"images differ: {', '.join(f'{name} takes {shape}' for shape, name in shapes.items())}; not of one model"
        )
    return TensorInfo("image", "uint8", next(iter(shapes))) if shapes else None


def _normalizer(image: TensorInfo, normalized: TensorInfo) -> bytes:
    """An ONNX model from uint8 ``(B, H, W, C)`` to v/127.5 − 1, ``(B, C, H, W)``."""
    onnx = require("onnx", "onnx")
    make = onnx.helper
    nodes = [
        make.make_node("Cast", ["image"], ["values"], to=onnx.TensorProto.FLOAT),
        make.make_node("Div", ["values", "half_range"], ["scaled"]),
        make.make_node("Sub", ["scaled", "one"], ["centred"]),
        make.make_node("Transpose", ["centred"], ["normalized"], perm=[0, 3, 1, 2]),
    ]
    constants = {"half_range": 127.5, "one": 1.0}
    graph = make.make_graph(
        nodes,
        _NORMALIZE,
        [make.make_tensor_value_info(image.name, onnx.TensorProto.UINT8, ["batch", *image.shape[1:]])],
        [make.make_tensor_value_info(normalized.name, onnx.TensorProto.FLOAT, ["batch", *normalized.shape[1:]])],
        [make.make_tensor(name, onnx.TensorProto.FLOAT, [], [value]) for name, value in constants.items()],
    )
    model = make.make_model_gen_version(graph, opset_imports=[make.make_opsetid("", OPSET)], producer_name="iiae_fast")
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _graph_options(kind: Kind, instances: int, max_queue_delay: float, threads: int | None) -> list[str]:
    lines = [
        'platform: "onnxruntime_onnx"',
        f"instance_group [ {{ count: {instances} kind: KIND_{kind.upper()} }} ]",
        f"dynamic_batching {{ max_queue_delay_microseconds: {round(max_queue_delay * 1e6)} }}",
    ]
    if threads is not None:
        lines.append(f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}')
    return lines


def _engine_options(instances: int, max_queue_delay: float, profiles: int) -> list[str]:
    names = ", ".join(f'"{index}"' for index in range(profiles))
    return [
        'platform: "tensorrt_plan"',
        f"instance_group [ {{ count: {instances} kind: KIND_GPU profile: [ {names} ] }} ]",
        f"dynamic_batching {{ max_queue_delay_microseconds: {round(max_queue_delay * 1e6)} }}",
    ]


def _scheduling(steps: Iterable[_Step]) -> list[str]:
    lines = ["ensemble_scheduling {"]
    for step in steps:
        lines += ["  step [ {", f'    model_name: "{step.model}"', "    model_version: -1"]
        for field, tensors in (("input_map", step.inputs), ("output_map", step.outputs)):
            lines += [f'    {field} {{ key: "{inner}" value: "{outer}" }}' for inner, outer in tensors.items()]
        lines.append("  } ]")
    return [*lines, "}"]


def _config(
    name: str, max_batch: int, inputs: Iterable[TensorInfo], outputs: Iterable[TensorInfo], options: Iterable[str]
) -> bytes:
    """``config.pbtxt``: the batch axis is the server's and stays out of ``dims``."""
    lines = [f'name: "{name}"', f"max_batch_size: {max_batch}"]
    for field, infos in (("input", inputs), ("output", outputs)):
        for info in infos:
            dims = ", ".join(map(str, info.shape[1:]))
            lines.append(f'{field} [ {{ name: "{info.name}" data_type: {_TYPES[info.dtype]} dims: [ {dims} ] }} ]')
    return ("\n".join([*lines, *options]) + "\n").encode()
