"""What the machine can do at best, measured: copy bandwidth and matrix products. Every figure stands beside these."""

from __future__ import annotations

__all__ = ["measure_limits"]

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from iiae_fast.bench.registry import Settings
from iiae_fast.bench.timing import last_level_cache

_SECONDS = 1.0  # for each limit


def measure_limits(settings: Settings) -> dict[str, float]:
    """The best of several: ``"copy"`` in bytes read and written a second, ``"float32"``, ``"bfloat16"``, … in FLOP a second.

    On a CUDA device ``"tf32"``, ``"float16"`` and, where its library multiplies it, ``"int8"`` too.
    """
    cuda = settings.device == "cuda"
    size = (1 << 24) if settings.toy else (1 << 31) if cuda else max(1 << 27, 4 * last_level_cache())
    source = torch.ones(size, dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    found = {"copy": 2 * size / _best(lambda: target.copy_(source), cuda)}
    n = 64 if settings.toy else 8192 if cuda else 1536
    dtypes = ("float32", "tf32", "bfloat16", "float16") if cuda else ("float32", "bfloat16")
    for name in dtypes:
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        a, b = (torch.randn(n, n, device=settings.device).to(dtype) for _ in range(2))
        with _tf32(name == "tf32"):
            found[name] = 2 * n**3 / _best(lambda a=a, b=b: a @ b, cuda)  # type: ignore[misc]
    if cuda:
        with suppress(RuntimeError):  # as cuBLAS does where it has no such product
            found["int8"] = _int8_product(n, settings.device, cuda)
    return found


def _int8_product(n: int, device: str, cuda: bool) -> float:
    """Operations a second of an ``(n, n)`` int8 matrix product, of which torch has no public function."""
    a, b = (torch.randint(-128, 128, (n, n), dtype=torch.int8, device=device) for _ in range(2))
    return 2 * n**3 / _best(lambda: torch._int_mm(a, b.t()), cuda)


def _best(call: Callable[[], object], cuda: bool) -> float:
    """Seconds of the fastest call."""

    def once() -> float:
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    end = time.perf_counter() + _SECONDS
    best = once()
    while time.perf_counter() < end:
        best = min(best, once())
    return best


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
