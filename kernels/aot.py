"""Compile every kernel ahead of time for every target, without a GPU, and report what the assembler made of it.

    python -m iiae_fast.kernels.aot [--targets sm_90 ...] [--match SUBSTRING] [--json PATH]

Launchers are called with meta tensors of the published sizes, and what they would launch is compiled, specialized as Triton
specializes it at run time. Fails on a register spill, and on a contiguous variant whose widest global load is under 16 bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iiae_fast.kernels import reference
from iiae_fast.kernels._registry import INTERPRETED, Launch, record_launches, triton
from iiae_fast.kernels.elbo import backward as elbo_backward
from iiae_fast.kernels.elbo import forward as elbo_forward
from iiae_fast.kernels.iiae_latents import backward as latents_backward
from iiae_fast.kernels.iiae_latents import forward as latents_forward
from iiae_fast.kernels.philox import forward as philox_forward
from iiae_fast.kernels.reconstruction import forward as reconstruction_forward
from iiae_fast.kernels.reconstruction import scale_gradients
from iiae_fast.kernels.reparameterize import backward as reparameterize_backward
from iiae_fast.kernels.reparameterize import forward as reparameterize_forward

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64, "u8": torch.uint8}
FLOATS = ("fp32", "bf16", "fp16", "fp64")
LAYOUTS = ("contiguous", "channels_last", "strided")
WIDE = 16  # bytes


class Variant(NamedTuple):
    """One kernel with one specialization.

    Attributes:
        name: Kernel, dtypes, layout and options.
        launch: What a launcher would run.
        wide: Whether its loads are contiguous, so that the widest must be of 16 bytes.
    """

    name: str
    launch: Launch
    wide: bool


class Report(NamedTuple):
    """What one variant became on one target.

    ``load`` is the width of the widest global load in bytes, ``wide`` whether it must be 16; ``mix`` counts the instructions by
    kind, as they stand in the program, not as often as they run.
    """

    name: str
    target: str
    registers: int
    spills: int
    shared: int
    instructions: int
    load: int
    wide: bool
    mix: dict[str, int]
    problem: str


def _tensor(shape: tuple[int, ...], dtype: str, layout: str) -> Tensor:
    """A meta tensor; strided means every other channel of a tensor with twice as many."""
    if layout == "strided":
        return torch.empty((shape[0], 2 * shape[1], *shape[2:]), dtype=DTYPES[dtype], device="meta")[:, ::2]
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return torch.empty(shape, dtype=DTYPES[dtype], device="meta", memory_format=order)


def _calls() -> Iterator[tuple[str, bool, Any, tuple[Any, ...]]]:
    """Name, whether loads are contiguous, launcher and arguments of all that is compiled: the explicit table."""
    seed = torch.empty(1, dtype=torch.int64, device="meta")
    for dtype, layout in itertools.product(FLOATS, LAYOUTS):
        wide = layout != "strided"
        head, code = _tensor((8, 256, 8, 8), dtype, layout), _tensor((8, 128, 8, 8), dtype, layout)
        small, small_code = _tensor((8, 16), dtype, "contiguous"), _tensor((8, 8), dtype, "contiguous")
        kl = torch.empty((5, 8), dtype=reference.compute_dtype(DTYPES[dtype]), device="meta")
        heads = (small, head, small, head, head)
        yield f"iiae_latents {dtype} {layout}", wide, latents_forward, (*heads, seed)
        gradients = (small_code, code, small_code, kl)
        yield f"iiae_latents {dtype} {layout}", wide, latents_backward, (*gradients, *heads, seed, [True] * 5)
        for prior, name in ((None, "standard"), (head, "prior")):
            needs = [True, prior is not None]
            yield f"reparameterize {dtype} {layout} {name}", wide, reparameterize_forward, (head, prior, seed, 0)
            arguments = (code, kl[0], head, prior, seed, 0, needs)
            yield f"reparameterize {dtype} {layout} {name}", wide, reparameterize_backward, arguments
    likelihoods = [*itertools.product(("laplace", "gaussian"), (None, "tanh", "sigmoid")), ("bernoulli", None)]
    for dtype, target, layout in itertools.product(FLOATS, DTYPES, ("contiguous", "strided")):
        for likelihood, activation in likelihoods if (dtype, target) == ("bf16", "u8") else [("laplace", "tanh")]:
            pair = (_tensor((8, 3, 256, 256), dtype, layout), _tensor((8, 3, 256, 256), target, layout))
            options: tuple[Any, ...] = (*pair, *pair, likelihood, activation, 0.1, [True, True])
            name = f"reconstruction {dtype} {target} {layout} {likelihood} {activation}"
            yield name, layout == "contiguous", reconstruction_forward, options
    for dtype, layout in itertools.product(FLOATS, ("contiguous", "strided")):
        gradient = _tensor((8, 3, 256, 256), dtype, layout)
        dloss = torch.empty(8, dtype=reference.compute_dtype(DTYPES[dtype]), device="meta")
        yield f"reconstruction {dtype} {layout}", layout == "contiguous", scale_gradients, (gradient, dloss) * 2
    for dtype in ("fp32", "fp64"):
        loss, kl = _tensor((8,), dtype, "contiguous"), _tensor((5, 8), dtype, "contiguous")
        weights = ([1.2, 1.2, 0.2, 1.0], 25000.0)
        yield f"elbo {dtype}", False, elbo_forward, (loss, loss, kl, seed, *weights)
        for dterms, name in ((None, "total"), (_tensor((8,), dtype, "contiguous"), "terms")):
            yield f"elbo {dtype} {name}", False, elbo_backward, (_tensor((), dtype, "contiguous"), dterms, seed, 8, *weights)
    yield "philox_normal", False, philox_forward, ((8, 8192), seed, 0)


def variants() -> list[Variant]:
    """Every kernel, dtype and layout that is compiled, each once."""
    found: dict[str, Variant] = {}
    for name, wide, op, arguments in _calls():
        with record_launches() as launches:
            op.launcher(*arguments)
        for launch in launches:
            kernel = launch.kernel.__name__.strip("_").removesuffix("_kernel")
            if kernel == "reconstruction_sum":
                full, wide = f"{kernel} {'fp64' if 'fp64' in name.split()[1] else 'fp32'}", False
            else:
                full = " ".join([kernel, *name.split()[1:]])
            found.setdefault(full, Variant(full, launch, wide))
    return list(found.values())


def _source(launch: Launch) -> Any:
    """The kernel with its signature, specialized as Triton's launcher does: by 1 and by divisibility by 16."""
    short = {dtype: f"*{name}" for name, dtype in DTYPES.items()} | {torch.int64: "*i64"}
    names = launch.kernel.arg_names
    signature, constants, hints = {}, dict(launch.constants), {}
    for index, (name, value) in enumerate(zip(names, launch.arguments)):
        if isinstance(value, Tensor):
            signature[name] = short[value.dtype]
            hints[index,] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            constants[name] = 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                hints[index,] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    from triton.compiler import ASTSource

    return ASTSource(launch.kernel, {name: signature[name] for name in names}, constants, hints)


# The first pattern that an instruction's name begins with, NVIDIA's or AMD's, decides what it is.
_KINDS = {
    "memory": r"LD|ST|ATOM|RED\b|global_|buffer_|flat_|ds_|s_load",
    "special": r"MUFU|v_(exp|log|rcp|rsq|sqrt|sin|cos)_",
    "float": r"[FDH](ADD|MUL|FMA|SEL|SET|MNMX|CHK)|[FIHD]2F|F2|I2F|v_\w+_(f|bf)(16|32|64)|v_(pk_)?fma",
    "integer": r"I|U?(LOP|SHF|LEA|PRMT|MOV|SEL|IMAD|IADD|ISETP)|VIADD|POPC|BREV|FLO|v_|s_(?!waitcnt|barrier|nop|c?branch|end)",
}


def _sass(cubin: bytes) -> str:
    """The machine code in text, by the disassembler of Triton's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        disassembler = triton.knobs.nvidia.nvdisasm.path
        return subprocess.run([disassembler, "-c", path], capture_output=True, text=True, check=True).stdout


def compile_variant(variant: Variant, target: str) -> Report:
    """Compile one variant for one target and read registers, spills and loads from the result."""
    from triton.backends.compiler import GPUTarget

    amd = target.startswith("gfx")
    where = GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(_source(variant.launch), target=where, options=variant.launch.options(amd))
    if amd:
        text = compiled.asm["amdgcn"]
        # Scalar registers spill into lanes of vector registers, not into memory.
        fields = {key: int(value) for key, value in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", text)}
        registers, spills = fields["vgpr_count"], fields["vgpr_spill_count"]
        instructions = re.findall(r"^\t([a-z]\w+_\w+)", text, re.MULTILINE)
        words = [int(width or 1) for width in re.findall(r"(?:global|buffer)_load_dword(?:x(\d))?\b", text)]
        loads = [4 * count for count in words] or [1]
    else:
        assembler = log.getvalue()
        registers = max(map(int, re.findall(r"Used (\d+) registers", assembler)))
        spills = sum(map(int, re.findall(r"(\d+) bytes spill", assembler)))
        text = _sass(compiled.asm["cubin"])
        instructions = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ )?\s*(\w+)", text, re.MULTILINE)
        widths = re.findall(r"\bLDG\.E[\w.]*?(?:\.(U8|S8|U16|S16|64|128|256))?(?:\.CONSTANT)?\s", text)
        loads = [{"": 4, "8": 1, "16": 2, "64": 8, "128": 16, "256": 32}[width.lstrip("US")] for width in widths]
    load = max(loads)
    problem = "spills" if spills else f"loads of {load} bytes" if variant.wide and load < WIDE else ""
    mix = dict.fromkeys((*_KINDS, "other"), 0)
    for instruction in instructions:
        mix[next((kind for kind, pattern in _KINDS.items() if re.match(pattern, instruction)), "other")] += 1
    shared = compiled.metadata.shared
    return Report(variant.name, target, registers, spills, shared, len(instructions), load, variant.wide, mix, problem)


def _compile(job: tuple[int, str]) -> Report:
    return compile_variant(_table[job[0]], job[1])


_table: list[Variant] = []


def compile_all(targets: tuple[str, ...] = TARGETS, match: str = "", jobs: int | None = None) -> list[Report]:
    """Compile every variant whose name contains ``match`` for every target, on ``jobs`` processes."""
    if triton is None or INTERPRETED:
        raise RuntimeError("compiling ahead of time needs Triton, and TRITON_INTERPRET not in the environment")
    triton.knobs.compilation.always_compile = True  # a cached kernel would have no assembler's log
    triton.knobs.nvidia.dump_ptxas_log = True
    _table[:] = [variant for variant in variants() if match in variant.name]
    todo = [(index, target) for index in range(len(_table)) for target in targets]
    with multiprocessing.get_context("fork").Pool(jobs or os.cpu_count()) as pool:
        return pool.map(_compile, todo, chunksize=1)


def main() -> int:
    """Print the table; 1 when a variant has a problem."""
    parser = argparse.ArgumentParser(description="Compile every Triton kernel for every target; report registers and spills.")
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS, help="GPU architectures")
    parser.add_argument("--match", default="", help="only variants whose name contains this")
    parser.add_argument("--jobs", type=int, help="processes; all cores when left out")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    reports = compile_all(tuple(options.targets), options.match, options.jobs)
    if not reports:
        parser.error(f"no variant contains {options.match!r}")
    width = max(len(report.name) for report in reports)
    print(f"{'variant':{width}}  target  registers  spills  shared  instructions  widest load")
    for report in reports:
        numbers = f"{report.registers:9}  {report.spills:6}  {report.shared:6}  {report.instructions:12}  {report.load:8} B"
        print(f"{report.name:{width}}  {report.target:6}  {numbers}  {report.problem}")
    problems = sum(bool(report.problem) for report in reports)
    print(f"{len(reports)} kernels compiled with Triton {triton.__version__}; {problems} with a problem")
    if options.json:
        options.json.write_text(json.dumps([report._asdict() for report in reports], indent=1) + "\n")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
