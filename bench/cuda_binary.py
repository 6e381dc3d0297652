"""What the assembler made of the CUDA engine: registers, stack, shared memory and tensor-core instructions of every kernel.

    python -m iiae_fast.bench.cuda_binary

Reads the built extension by ``cuobjdump`` (of the CUDA toolkit, or the one that comes with Triton); no GPU is needed. Fails on
a kernel that keeps registers on a stack, on a scan or count without int8 tensor-core products and asynchronous copies, and if
there is no PTX for devices that are yet to come.
"""

from __future__ import annotations

__all__ = ["Usage", "main", "problems", "ptx_targets", "resource_usage"]

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from iiae_fast import _C
from iiae_fast.bench.registry import Unavailable

_FUNCTION = re.compile(r"Function (?:: )?(\S+)")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_PRODUCTS = ("scan_kernel", "count_kernel")
_WANTED = ("IMMA.16832.S8.S8", "LDGSTS")


class Usage(NamedTuple):
    """One kernel on one target. ``stack`` and ``shared`` are bytes; ``products`` and ``copies`` count instructions."""

    kernel: str
    target: str
    registers: int
    stack: int
    shared: int
    products: int
    copies: int


def _cuobjdump(*arguments: str) -> str:
    if not hasattr(_C, "cuda"):
        raise Unavailable("the extension was built without its CUDA engine (no nvcc, or IIAE_CUDA=0)")
    tool = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if tool is None and triton is not None and triton.origin is not None:
        own = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        tool = str(own) if own.exists() else None
    if tool is None:
        raise Unavailable("cuobjdump is neither on the PATH nor in Triton's package")
    assert _C.__file__ is not None
    return subprocess.run([tool, *arguments, _C.__file__], capture_output=True, text=True, check=True).stdout


def resource_usage() -> list[Usage]:
    """Every kernel on every target that the extension holds machine code for.

    Raises:
        Unavailable: It holds none, or there is no ``cuobjdump``.
    """
    instructions: dict[tuple[str, str], list[int]] = {}
    target = name = ""
    for line in _cuobjdump("-sass").splitlines():
        if "arch = sm_" in line:
            target = line.split("=")[1].strip()
        elif found := _FUNCTION.search(line):
            name = found[1]
            instructions[name, target] = [0, 0]
        else:
            for i, wanted in enumerate(_WANTED):
                if wanted in line:
                    instructions[name, target][i] += 1
    result = []
    for line in _cuobjdump("--dump-resource-usage").splitlines():
        if "arch = sm_" in line:
            target = line.split("=")[1].strip()
        elif found := _FUNCTION.search(line):
            name = found[1].rstrip(":")
        elif found := _RESOURCES.search(line):
            registers, stack, shared, local = map(int, found.groups())
            result.append(Usage(_plain(name), target, registers, stack + local, shared, *instructions[name, target]))
    return sorted(result)


def _plain(mangled: str) -> str:
    """A kernel's name without its namespace and parameters."""
    found = re.search(r"\d([a-z_]+_kernel)", mangled)
    name = found[1] if found else mangled
    shape = re.search(r"TileShapeILj(\d+)ELj(\d+)ELj(\d+)E", mangled)
    resident = re.search(r"_kernelI.*Lb([01])E", mangled)
    if resident is None:
        return name
    queries = "" if shape is None else f"{8 // int(shape[3]) * int(shape[2]) * 8} queries, "
    return f"{name}<{queries}{'resident' if resident[1] == '1' else 'staged'}>"


def ptx_targets() -> list[str]:
    """Architectures that the extension holds PTX for."""
    return sorted(set(re.findall(r"\.(sm_\d+)\.ptx", _cuobjdump("-lptx"))))


def problems(usages: Sequence[Usage]) -> list[str]:
    """What is wrong with them, one line each."""
    found = [f"{one.kernel} on {one.target}: {one.stack} bytes of registers on the stack" for one in usages if one.stack]
    for one in usages:
        if one.kernel.startswith(_PRODUCTS) and not (one.products and one.copies):
            found.append(f"{one.kernel} on {one.target}: {one.products} {_WANTED[0]}, {one.copies} {_WANTED[1]}")
    for kernel in _PRODUCTS:
        if not any(one.kernel.startswith(kernel) for one in usages):
            found.append(f"there is no {kernel}")
    if not ptx_targets():
        found.append("there is no PTX")
    return found


def main() -> int:
    """Print the table; exit code 1 if something is wrong."""
    try:
        usages = resource_usage()
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{'kernel':44} {'target':7} {'registers':>9} {'stack':>6} {'shared':>7} {_WANTED[0]:>17} {_WANTED[1]:>7}")
    for one in usages:
        numbers = f"{one.registers:9} {one.stack:6} {one.shared:7} {one.products:17} {one.copies:7}"
        print(f"{one.kernel:44} {one.target:7} {numbers}")
    print(f"PTX: {', '.join(ptx_targets())}")
    wrong = problems(usages)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
