"""Where Triton meets PyTorch: its import, the registration of ops, and the launch of kernels."""

from __future__ import annotations

__all__ = [
    "INTERPRETED",
    "Launch",
    "code_settings",
    "constant",
    "jit",
    "launch",
    "next_power_of_2",
    "record_launches",
    "register",
    "tl",
    "traced",
    "triton",
    "warps",
]

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # Triton has no wheels outside Linux; the reference works without it
    triton = tl = None

# Triton reads TRITON_INTERPRET when a kernel is declared, which happens when this package is imported.
INTERPRETED = triton is not None and bool(triton.knobs.runtime.interpret)


if TYPE_CHECKING:
    from typing import no_type_check as jit  # a kernel's body is in Triton's language
else:

    def jit(kernel: Callable[..., Any]) -> Any:
        """``triton.jit``, or the bare function where Triton is absent and no kernel will be launched."""
        return kernel if triton is None else triton.jit(kernel)


def constant(value: Any) -> Any:
    """A number that kernels may use by its global name."""
    return value if tl is None else tl.constexpr(value)


def register(name: str, mutates: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a launcher to become ``torch.ops.iiae_fast.<name>``.

    A ``triton_op`` shows its kernels to the compiler. Traced under the interpreter it would run them on tensors without data,
    so there it becomes an opaque ``custom_op``.
    """
    kind = torch.library.custom_op if INTERPRETED or triton is None else torch.library.triton_op

    def decorate(launcher: Callable[..., Any]) -> Any:
        op: Any = kind(f"iiae_fast::{name}", mutates_args=mutates)(launcher)
        op.launcher = launcher
        return op

    return decorate


class Launch(NamedTuple):
    """One launch of a kernel, as ``launch`` takes it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    num_warps: int
    maxnreg: int | None
    constants: dict[str, Any]

    def options(self, amd: bool) -> dict[str, Any]:
        """Of compilation, for a GPU of NVIDIA's or AMD's."""
        # Fusion is pinned, since Triton 3.10 turns it off by default.
        found = {"num_warps": warps(self.num_warps, amd), "enable_fp_fusion": True}
        return found if amd or self.maxnreg is None else {**found, "maxnreg": self.maxnreg}


_recorded: list[Launch] | None = None


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Collect launches instead of making them, so that a launcher called with meta tensors tells what it would run."""
    global _recorded
    outer, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = outer


def traced(tensor: Tensor) -> bool:
    """Whether a compiler is looking at the program, with tensors that hold no data."""
    return isinstance(tensor, (FakeTensor, FunctionalTensor))


def warps(num_warps: int, amd: bool) -> int:
    """As many threads in AMD's wavefronts of 64 as in warps of 32, so that each keeps its eight elements and wide loads."""
    return max(1, num_warps // 2) if amd else num_warps


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, maxnreg: int | None = None, **constants: Any
) -> None:
    """Run a kernel, on the device of its first argument; an empty grid launches nothing.

    Args:
        kernel: A jitted kernel.
        grid: Programs along each axis.
        arguments: Tensors and numbers, in the kernel's order.
        num_warps: Warps of 32 threads of a program.
        maxnreg: Registers that a thread may have; None leaves it to the assembler, which may rather spill some to memory.
        constants: The kernel's compile-time arguments.
    """
    if 0 in grid:
        return
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, num_warps, maxnreg, constants))
        return
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
    elif traced(arguments[0]):
        torch.library.wrap_triton(kernel)[grid](*arguments, **constants, num_warps=num_warps)
    else:
        # The compiler, above, has no way to pass the other options on.
        options = Launch(kernel, grid, arguments, num_warps, maxnreg, constants).options(torch.version.hip is not None)
        with torch.cuda.device(arguments[0].device):
            kernel[grid](*arguments, **constants, **options)


def next_power_of_2(n: int, least: int, most: int) -> int:
    """The least power of two that is at least ``n``, between ``least`` and ``most`` (powers of two)."""
    size = least
    while size < n and size < most:
        size *= 2
    return size


def code_settings(size: int, most: int, itemsize: int) -> dict[str, int]:
    """Block, warps and registers for a code of ``size`` numbers of ``itemsize`` bytes: a 16-byte load a thread, two in fp64.

    Forward has one program for a whole code, so a large ``most``; backward spreads a code over many small programs. The largest
    programs may have all the registers that there are: the assembler would rather spill than use more than half of them.
    """
    block = next_power_of_2(size, 128, min(most, 512) if itemsize == 8 else most)
    num_warps = max(1, block // (32 * max(4, 16 // itemsize)))
    return {"BLOCK": block, "num_warps": num_warps} | ({"maxnreg": min(255, 2048 // num_warps)} if num_warps >= 4 else {})
