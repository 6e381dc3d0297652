"""How long a call takes: side by side with its rivals, until the median is known to a stated relative error.

Rounds: in each, every contestant is sampled once, in an order drawn anew, so that whatever drifts (clocks, a neighbour's load)
drifts for all. A sample is one call, or the mean of enough calls to last a millisecond. Rounds go on until the 95 % interval of
every median (from order statistics, so without an assumption about the distribution) is narrow enough, or time is up.
"""

from __future__ import annotations

__all__ = ["Clock", "CpuClock", "CudaClock", "Plan", "Timing", "measure", "median_interval", "peak_memory"]

import ctypes
import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

Call = Callable[[], Any]

_SAMPLE_SECONDS = 1e-3  # of a sample at least: long against a clock's resolution and an interrupt
_MAX_CALLS = 1000
_MAX_COPIES = 20  # of a call in one graph


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        relative_error: Half width of the median's 95 % interval, relative to the median, to stop at.
        seconds: For all contestants of a case under one condition together; rounds stop there whether precise or not.
        min_rounds: Taken whatever the time.
        max_rounds: Then stop.
    """

    relative_error: float = 0.02
    seconds: float = 10.0
    min_rounds: int = 5
    max_rounds: int = 500


@dataclass(frozen=True)
class Timing:
    """Of one contestant.

    Attributes:
        samples: Seconds a call, in the order taken.
        calls: Averaged in each sample.
        relative_error: Reached.
        precise: Whether that is what was asked for.
    """

    samples: list[float]
    calls: int
    relative_error: float
    precise: bool


class Timed(NamedTuple):
    """A call made ready for a clock: ``run`` makes ``copies`` calls at once, and a sample runs it ``loops`` times."""

    run: Call
    loops: int = 1
    copies: int = 1


class Clock(Protocol):
    """Times calls on one device, under one condition of cache and launch."""

    def prepare(self, call: Call) -> Timed:
        """What ``seconds`` is given: how often it runs, and perhaps a graph captured from it. The call must have run before."""

    def seconds(self, timed: Timed) -> float:
        """One sample: seconds a call."""


def measure(timed: Mapping[str, Timed], clock: Clock, plan: Plan, seed: int = 0) -> dict[str, Timing]:
    """Time contestants by name, in rounds; each as ``clock.prepare`` gave it."""
    order = random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in timed}
    names = list(timed)
    end = time.perf_counter() + plan.seconds
    for done in range(1, plan.max_rounds + 1):
        order.shuffle(names)
        for name in names:
            samples[name].append(clock.seconds(timed[name]))
        if done < plan.min_rounds:
            continue
        if time.perf_counter() >= end or all(_relative_error(samples[name]) <= plan.relative_error for name in names):
            break
    return {name: _timing(samples[name], timed[name], plan) for name in timed}


def _timing(samples: list[float], timed: Timed, plan: Plan) -> Timing:
    error = _relative_error(samples)
    return Timing(samples, timed.loops * timed.copies, error, error <= plan.relative_error)


def _times_per_sample(once: float, most: int) -> int:
    return max(1, min(most, math.ceil(_SAMPLE_SECONDS / max(once, 1e-9))))


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median: the order statistics that enclose it by the binomial distribution.

    Below 6 samples no two of them reach 95 %; then the range, which is the most they can say.
    """
    ordered = sorted(samples)
    n = len(ordered)
    # The largest r with P(at most r of n samples lie below the median) ≤ 2.5 %.
    tail, r = 0.0, -1
    while tail + math.comb(n, r + 1) * 0.5**n <= 0.025:
        r += 1
        tail += math.comb(n, r) * 0.5**n
    return ordered[max(r, 0)], ordered[n - 1 - max(r, 0)]


def _relative_error(samples: Sequence[float]) -> float:
    low, high = median_interval(samples)
    return (high - low) / (high + low)


class CpuClock:
    """The monotonic clock.

    Args:
        cold: Write over more memory than the last-level cache holds before each call.
    """

    def __init__(self, cold: bool = False) -> None:
        import torch

        self._scratch = torch.zeros(2 * last_level_cache(), dtype=torch.uint8) if cold else None

    def prepare(self, call: Call) -> Timed:
        if self._scratch is not None:
            return Timed(call)
        return Timed(call, loops=_times_per_sample(self.seconds(Timed(call)), _MAX_CALLS))

    def seconds(self, timed: Timed) -> float:
        if self._scratch is not None:
            self._scratch.add_(1)  # by all threads, so that the cores' own caches are written over too
        start = time.perf_counter()
        for _ in range(timed.loops):
            timed.run()
        return (time.perf_counter() - start) / timed.loops


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core; 32 MiB where the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=32 << 20)


class CudaClock:
    """CUDA events.

    With the launch included the device is idle when the call starts, so the time holds the host's way to the first kernel and
    between kernels. A replayed graph has neither: hot, one graph holds many copies of the call; cold, the graph is queued
    behind the work that writes over the cache, which hides its own launch.

    Args:
        cold: Write over more memory than the second-level cache holds before each call.
        replay: Capture the call in a CUDA graph, and time that.
    """

    def __init__(self, cold: bool = False, replay: bool = False) -> None:
        import torch

        self._replay = replay
        self._scratch = None
        if cold:
            cache = torch.cuda.get_device_properties().L2_cache_size
            self._scratch = torch.zeros(max(4 * cache, 1 << 28), dtype=torch.uint8, device="cuda")

    def prepare(self, call: Call) -> Timed:
        import torch

        if not self._replay:
            return Timed(call)
        once = self.seconds(Timed(call))
        copies = 1 if self._scratch is not None else _times_per_sample(once, _MAX_COPIES)
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # as capture wants it: warm, off the default stream
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(copies):
                call()
        return Timed(graph.replay, copies=copies)

    def seconds(self, timed: Timed) -> float:
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        if self._scratch is not None:
            self._scratch.add_(1)
        if self._scratch is None or not self._replay:
            torch.cuda.synchronize()
        start.record()
        for _ in range(timed.loops):
            timed.run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / (timed.loops * timed.copies)


def peak_memory(call: Call, device: str) -> int | None:
    """Bytes that one call takes at its peak beyond what was there before it; None where the system does not say.

    On a CUDA device the allocator's count; on the CPU the growth of the process's resident set.
    """
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that the call has to ask for it again
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10
