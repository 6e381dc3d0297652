"""From a model to an ONNX file: torch's exporter, then graph passes, metadata and a checksum."""

from __future__ import annotations

__all__ = ["to_onnx", "weights_sha256"]

import contextlib
import copy
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from iiae_fast.errors import InputError, require
from iiae_fast.export.graphs import Graph, Head, evaluate, graph_named, head_named, output_shape, tensor_shape
from iiae_fast.export.passes import image_layers, last_layers, simplify
from iiae_fast.export.precision import OPSET, lower
from iiae_fast.export.sealing import finish
from iiae_fast.model import IIAE
from iiae_fast.storage import write_atomic
from iiae_fast.version import __version__

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "fp16", "bf16"]
Input = Literal["float32", "uint8"]

PROTOBUF_LIMIT = 2**31  # bytes of one protobuf message


def to_onnx(
    model: IIAE,
    graph: str,
    path: str | Path,
    precision: Precision = "fp32",
    input: Input = "float32",
    max_batch: int | None = None,
    head: Head = "mean",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write one graph of a model as an ONNX file, for any batch size and in evaluation mode; the model itself is left as it is.

    Codes are the posteriors' means, so the graph is deterministic. BatchNorm is folded into the layer before it, and the
    log-variance half of an encoder's last layer is not computed where the output does not need it. Inputs and outputs are
    float32 at every precision (uint8 images apart); within, ``"fp16"`` and ``"bf16"`` hold for the layers and their
    activations, while the image normalization, log-variances and the length of a normalized code stay float32. With ``"bf16"``
    so do transposed convolutions, which no runtime takes in bf16, and of encoders the convolution that reads the image and the
    last layer, where 8 bits of precision would change which codes are nearest.

    Args:
        model: On any device, in any mode.
        graph: One of ``GRAPHS``; its table says which inputs and outputs each has.
        path: The file to write, whole or not at all.
        precision: Of weights and activations.
        input: ``"float32"``: images ``(B, C, H, W)`` in [−1, 1], features ``(B, F)``. ``"uint8"``: images ``(B, H, W, C)`` as
            image files hold them, v/127.5 − 1 taken within the graph.
        max_batch: Largest batch of one run, kept in the file: sessions split larger ones, and engines and servers are built for
            it. None: no limit.
        head: What an encoder gives: ``"mean"``, ``"normalized"`` or ``"gaussian"``; see ``iiae_fast.export.graphs.evaluate``.
        metadata: More facts to keep in the file, such as the preset and the training run.

    Returns:
        ``path``. The file's metadata hold ``graph``, ``family``, ``config`` (JSON), ``precision``, ``input``, ``head``,
        ``max_batch``, ``iiae_fast`` (the version), ``weights`` (SHA-256, as ``weights_sha256`` gives it), and ``checksum``, the
        SHA-256 of the rest of the file.

    Raises:
        InputError: An argument is not one of those accepted, or a weight does not fit the precision.
        MissingExtraError: ``onnx`` or ``onnxscript`` is not installed.
    """
    if not isinstance(model, IIAE):
        raise InputError(f"model of type {type(model).__name__}: accepted is iiae_fast.IIAE")
    spec = graph_named(graph)
    accepted_head = head_named(head, spec)
    _check_choice("precision", precision, get_args(Precision))
    _check_choice("input", input, get_args(Input))
    if input == "uint8" and (model.config.family == "feature" or not spec.samples):
        raise InputError(f"input='uint8' with graph {graph!r} of the {model.config.family} family: it takes no images")
    if max_batch is not None and (not isinstance(max_batch, int) or isinstance(max_batch, bool) or max_batch < 1):
        raise InputError(f"max_batch={max_batch!r}: accepted is a whole number of at least 1, or None")
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a directory, expected the name of a file to write")
    if sum(parameter.numel() for parameter in model.parameters()) * 4 >= PROTOBUF_LIMIT:
        raise InputError("the model's weights take 2 GiB or more, which one ONNX file cannot hold")
    require("onnxscript", "onnx")

    exported = _trace(model, spec, input, accepted_head)
    simplify(exported)
    if precision != "fp32":
        lower(exported, precision, _delicate_layers(exported.graph) if precision == "bf16" and spec.kind == "encoder" else ())
    facts = {
        "graph": graph,
        "family": model.config.family,
        "config": json.dumps(asdict(model.config)),
        "precision": precision,
        "input": input,
        "head": head,
        "max_batch": "" if max_batch is None else str(max_batch),
        "iiae_fast": __version__,
        "weights": weights_sha256(model),
    }
    write_atomic(path, finish(exported, {**facts, **_extra(metadata, facts)}))
    return path


def _delicate_layers(graph: onnx.GraphProto) -> list[str]:
    """What an encoder's bf16 graph computes in float32, so that neighbours among its codes stay neighbours.

    The 8 bits of bf16 hold neither a pixel (v/127.5 − 1) nor a code as exactly as the layers between need them.
    """
    return [*image_layers(graph), *last_layers(graph)]


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}\0{values.dtype}\0{tuple(values.shape)}\0".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_choice(name: str, given: object, accepted: tuple[str, ...]) -> None:
    if given not in accepted:
        raise InputError(f"{name}={given!r}: accepted are {', '.join(accepted)}")


def _extra(metadata: Mapping[str, str] | None, facts: Mapping[str, str]) -> dict[str, str]:
    extra = dict(metadata or {})
    for key, value in extra.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InputError(f"metadata {key!r}: {value!r}: accepted are text keys and values")
        if key in facts or key == "checksum":
            raise InputError(f"metadata {key!r}: this key is taken; taken are {', '.join([*facts, 'checksum'])}")
    return extra


class _GraphModule(nn.Module):
    """One graph as a module with positional inputs, which is what the exporter takes."""

    def __init__(self, model: IIAE, graph: Graph, head: Head) -> None:
        super().__init__()
        self.model = model
        self.graph = graph
        self.head = head

    def forward(self, first: Tensor, second: Tensor | None = None) -> tuple[Tensor, ...]:
        inputs = {name: tensor for name, tensor in zip(self.graph.inputs, (first, second)) if tensor is not None}
        # uint8 images come as files hold them, channels last; the model normalizes them itself
        inputs = {name: t.permute(0, 3, 1, 2) if t.dtype == torch.uint8 else t for name, t in inputs.items()}
        return evaluate(self.model, self.graph, inputs, self.head)


def _trace(model: IIAE, graph: Graph, input: Input, head: Head) -> onnx.ModelProto:
    """The graph as torch's exporter gives it, in float32."""
    frozen = copy.deepcopy(model).to("cpu", torch.float32).eval()
    # torch 2.9 tells apart a batch of one where it flattens; what it writes is the same, and right for one too.
    batch = torch.export.Dim("batch", min=2)
    examples = tuple(_example(model, name, input) for name in graph.inputs)
    with _quiet():
        program = torch.onnx.export(
            _GraphModule(frozen, graph, head),
            examples,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            external_data=False,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=tuple({0: batch} for _ in examples),
        )
    assert program is not None
    exported: onnx.ModelProto = program.model_proto
    for value, name in zip(exported.graph.output, graph.outputs, strict=True):
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert dims == ["batch", *output_shape(model, name, head)], dims
    return exported


def _example(model: IIAE, name: str, input: Input) -> Tensor:
    shape = tensor_shape(model, name)
    if input == "uint8" and name in ("x", "y"):
        channels, height, width = shape
        return torch.zeros(2, height, width, channels, dtype=torch.uint8)
    return torch.zeros(2, *shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress lines, its warnings about its own internals and about packages it does not find."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
