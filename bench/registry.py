"""What is measured: suites of benchmarks, their cases, and who competes in each.

A benchmark is a module of this package with one function::

    def cases(settings: Settings) -> Iterator[Case]: ...

and its name in ``SUITES``. A case holds inputs of one size; its contestants are ours and what a user would otherwise pick. The
runner makes each contestant, checks what it computes, refuses to time what is wrong, and times the rest side by side.
"""

from __future__ import annotations

__all__ = [
    "OURS",
    "RIVALS",
    "SUITES",
    "Call",
    "Case",
    "Contestant",
    "Ready",
    "Settings",
    "Unavailable",
    "Work",
    "cases_of",
    "importable",
]

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

SUITES: dict[str, tuple[str, ...]] = {
    "kernels": ("iiae_latents", "reparameterize", "reconstruction", "elbo", "philox", "total_correlation", "hsic"),
    "retrieval": ("retrieval",),
    "training": ("training", "layers", "adam"),
    "inference": ("inference",),
}
"""Suite: the modules of its benchmarks, in order."""


OURS = {
    "triton": "this package's Triton kernels",
    "reference": "this package's plain PyTorch definition of its kernels",
    "iiae_fast": "this package",
    "iiae_fast fp32": "this package's training step in fp32",
    "iiae_fast compiled": "this package's training step under torch.compile",
    "iiae_fast graph": "this package's training step as one CUDA graph",
    "iiae_fast overlap": "this package's training step, both domains side by side on two streams",
    "iiae_fast graph overlap": "that as one CUDA graph",
    "onnx fp32": "this package's exported graph in ONNX Runtime",
    "onnx fp16": "the same at fp16",
    "onnx int8": "the same, statically quantized to int8",
    "engine fp16": "the fp16 graph as an engine of TensorRT or TensorRT-RTX, on the caller's stream",
}
RIVALS = {
    "eager": "the same in plain PyTorch, as one would write it",
    "eager fused": "PyTorch's own fused optimizer",
    "torch.compile": "that, compiled by inductor",
    "faiss": "FAISS, exact flat index",
    "scikit-learn": "scikit-learn and numpy, as the published evaluation does it",
    "matmul + topk": "torch: one matrix product, then torch.topk",
    "flashlib": "flashlib, exact nearest neighbours on a GPU",
    "cuvs": "cuVS brute force on a GPU",
    "plain": "a plain PyTorch port of the published code (bench/baselines), fp32 with PyTorch's defaults",
    "plain compiled": "that port under torch.compile",
}
"""Everyone who may compete, for the report's legend and for ``--against``."""

Call = Callable[[], Any]


class Ready(NamedTuple):
    """A call, and what the check looks at in place of its result where that is random."""

    call: Call
    probe: Call


class Unavailable(Exception):
    """A contestant cannot run here; the message is the reason that the report states."""


@dataclass(frozen=True)
class Settings:
    """What a run was asked for.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        quick: Fewer and smaller cases.
        toy: The first case of each benchmark at the smallest size that runs all of its code; implies ``quick``.
        threads: Of every contestant on the CPU.
        seed: Of all inputs.
    """

    device: str = "cpu"
    quick: bool = False
    threads: int = 1
    seed: int = 0
    toy: bool = False


@dataclass(frozen=True)
class Work:
    """What one call has to do at least, counted, not measured.

    Attributes:
        bytes: Every input read once and every output written once. None: not counted.
        flops: Additions, multiplications, and each exp, log, tanh, … as one. None: not counted.
        items: Things done, for a rate.
        unit: What they are, in the plural: ``"pairs"``, ``"queries"``.
        matmul: Dtype of the matrix units that could do it (a name in ``limits``), or ``""`` for elementwise work.
    """

    bytes: int | None = None
    flops: int | None = None
    items: float | None = None
    unit: str = ""
    matmul: str = ""


@dataclass(frozen=True)
class Contestant:
    """One implementation.

    Attributes:
        name: A key of ``OURS`` or ``RIVALS``.
        make: Prepares everything and returns the call to time. Raises ``Unavailable``.
        check: Its own check in place of the case's, where a rival promises less.
    """

    name: str
    make: Callable[[], Call | Ready]
    check: Callable[[Any], str] | None = None

    @property
    def ours(self) -> bool:
        """Whether it is this package's."""
        return self.name in OURS


@dataclass(frozen=True)
class Case:
    """One size of one benchmark.

    Attributes:
        name: Says operation, direction, dtype and size; unique within the benchmark.
        contestants: The first that is ours is the one that rivals are compared with.
        check: ``""`` when a result is right, else what is wrong with it. Its expectation comes from other code than ours.
        work: Counted.
        parameters: Sizes and dtypes, for the results file.
        cold: Whether to time with cold caches too.
        replay: Whether to time replays of a CUDA graph too, on a CUDA device.
    """

    name: str
    contestants: Sequence[Contestant]
    check: Callable[[Any], str]
    work: Work = Work()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cold: bool = True
    replay: bool = True


def cases_of(benchmark: str, settings: Settings) -> Iterator[Case]:
    """The cases of one benchmark, one at a time, so that the inputs of one are gone before the next."""
    module = importlib.import_module(f"iiae_fast.bench.{benchmark}")
    cases: Iterator[Case] = module.cases(settings)
    return cases


def importable(module: str, install: str) -> ModuleType:
    """A rival's module.

    Raises:
        Unavailable: It is not installed; the reason names the command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"{module} cannot be imported ({error}); pip install {install}") from None
