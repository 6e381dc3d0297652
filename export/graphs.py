"""The graphs that an IIAE is deployed as: what goes in, what comes out, and what the model computes between.

| graph | inputs | outputs |
|---|---|---|
| shared_x, shared_y | x or y | z_s ``(B, D)``: mean of r(z_s\\|x) or r(z_s\\|y) |
| joint | x, y | z_s ``(B, D)``: mean of q(z_s\\|x, y) |
| exclusive_x, exclusive_y | x or y | z_x or z_y ``(B, E)``: mean of q(z_x\\|x) or q(z_y\\|y) |
| encode_x, encode_y | x or y | z_s and z_x, or z_s and z_y: both of the above in one run |
| decode_x, decode_y | z_s and z_x or z_y | x or y: mean of p(x\\|z_x, z_s) or p(y\\|z_y, z_s) |
| x_to_y | x, z_y | y: mean of p(y\\|z_y, z_s) with z_s the mean of r(z_s\\|x) |
| y_to_x | y, z_x | x: mean of p(x\\|z_x, z_s) with z_s the mean of r(z_s\\|y) |

A translator takes the exclusive code of the target as an input, so that one deterministic graph serves both uses: a sample of
N(0, I), or the code that exclusive_y (exclusive_x) gives for a style reference.
"""

from __future__ import annotations

__all__ = ["GRAPHS", "Graph", "Head", "evaluate", "graph_named", "head_named", "output_shape", "tensor_shape"]

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

from iiae_fast.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from iiae_fast.gaussian import DiagonalGaussian
    from iiae_fast.model import IIAE

Head = Literal["mean", "normalized", "gaussian"]


@dataclass(frozen=True)
class Graph:
    """One deployable computation.

    Attributes:
        name: What ``to_onnx`` calls it.
        kind: What it does.
        inputs: Input names, in order.
        outputs: Output names, in order.
    """

    name: str
    kind: Literal["encoder", "decoder", "translator"]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def samples(self) -> tuple[str, ...]:
        """The inputs that are images or features, not codes."""
        return tuple(name for name in self.inputs if name in ("x", "y"))


GRAPHS: dict[str, Graph] = {
    graph.name: graph
    for graph in (
        Graph("shared_x", "encoder", ("x",), ("z_s",)),
        Graph("shared_y", "encoder", ("y",), ("z_s",)),
        Graph("exclusive_x", "encoder", ("x",), ("z_x",)),
        Graph("exclusive_y", "encoder", ("y",), ("z_y",)),
        Graph("encode_x", "encoder", ("x",), ("z_s", "z_x")),
        Graph("encode_y", "encoder", ("y",), ("z_s", "z_y")),
        Graph("joint", "encoder", ("x", "y"), ("z_s",)),
        Graph("decode_x", "decoder", ("z_s", "z_x"), ("x",)),
        Graph("decode_y", "decoder", ("z_s", "z_y"), ("y",)),
        Graph("x_to_y", "translator", ("x", "z_y"), ("y",)),
        Graph("y_to_x", "translator", ("y", "z_x"), ("x",)),
    )
}


def graph_named(name: str) -> Graph:
    """The graph of that name.

    Raises:
        InputError: There is none.
    """
    if name not in GRAPHS:
        raise InputError(f"graph={name!r}: accepted are {', '.join(GRAPHS)}")
    return GRAPHS[name]


def head_named(head: str, graph: Graph) -> Head:
    """``head``, checked: only encoders have a choice of it.

    Raises:
        InputError: No such head, or not for this graph.
    """
    if head not in get_args(Head):
        raise InputError(f"head={head!r}: accepted are {', '.join(get_args(Head))}")
    if head != "mean" and graph.kind != "encoder":
        raise InputError(f"head={head!r} with graph {graph.name!r}: only encoders have another head than 'mean'")
    return cast(Head, head)


def tensor_shape(model: IIAE, name: str) -> tuple[int, ...]:
    """Shape of one sample of x, y, z_s, z_x or z_y, without the batch; codes are flat."""
    if name in ("x", "y"):
        return model.config.input_shape
    return (math.prod(model.shared_shape),) if name == "z_s" else (model.config.exclusive_dim,)


def output_shape(model: IIAE, name: str, head: Head) -> tuple[int, ...]:
    """Shape of an output for one sample, without the batch."""
    shape = tensor_shape(model, name)
    return (2 * shape[0],) if head == "gaussian" else shape


def evaluate(model: IIAE, graph: Graph, inputs: Mapping[str, Tensor], head: Head = "mean") -> tuple[Tensor, ...]:
    """What the graph computes, by the model's own methods.

    Args:
        model: In evaluation mode.
        graph: One of ``GRAPHS``.
        inputs: Every input of the graph by name: x and y as the model takes them, codes ``(B, D)`` and ``(B, E)``.
        head: What an encoder gives: the ``"mean"``; the mean ``"normalized"`` to unit length, for cosine similarity as an inner
            product (a zero code stays zero); or, as ``"gaussian"``, the posterior packed as [mean | logvar] ``(B, 2D)``, for
            the Gaussian metrics of retrieval.

    Returns:
        The graph's outputs, in order.
    """
    if graph.kind == "decoder":
        decoded: Tensor = getattr(model, graph.name)(*(inputs[name] for name in graph.inputs))
        return (decoded,)
    samples = {name: inputs[name] for name in graph.samples}
    if graph.kind == "translator":
        exclusive = inputs[graph.inputs[1]]
        z_s = model.encode_shared(**samples)
        return (model.decode_x(z_s, exclusive) if graph.outputs == ("x",) else model.decode_y(z_s, exclusive),)
    encoders = (model.posterior_shared if name == "z_s" else model.posterior_exclusive for name in graph.outputs)
    return tuple(_code(posterior(**samples), head) for posterior in encoders)


def _code(posterior: DiagonalGaussian, head: Head) -> Tensor:
    if head == "mean":
        return posterior.flat_mean()
    import torch

    if head == "normalized":
        return torch.nn.functional.normalize(posterior.flat_mean(), dim=1)
    return torch.cat((posterior.flat_mean(), posterior.logvar.flatten(1)), dim=1)
