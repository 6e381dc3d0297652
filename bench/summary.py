"""What results files say, put together: one row for each timing, over all its runs, beside its rivals and the limits."""

from __future__ import annotations

__all__ = ["Row", "percent", "rate", "rows", "seconds", "size", "times"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iiae_fast.bench.compare import speedup
from iiae_fast.bench.results import Results, key, quantiles


@dataclass(frozen=True)
class Row:
    """One timing over all its runs.

    Attributes:
        suite, benchmark, case, contestant, ours, cache, launch: What it is.
        p20, p50, p80, p99: Seconds a call, of the samples of all runs.
        error: Half width of the median's 95 % interval within a run, relative to it; the worst run's.
        spread: Half the range of the runs' medians, relative to the median.
        runs: Samples by run.
        peak_memory: Bytes, or None.
        work: The counted fields: bytes, flops, items, unit, matmul.
        speedup: For a rival, how many times faster ours is, with the ends of its interval; None for ours.
        bandwidth: Counted bytes a second as a share of the measured copy bandwidth, or None.
        compute: Counted FLOP a second as a share of the measured matrix peak, or None.
    """

    suite: str
    benchmark: str
    case: str
    contestant: str
    ours: bool
    cache: str
    launch: str
    p20: float
    p50: float
    p80: float
    p99: float
    error: float
    spread: float
    runs: list[list[float]]
    peak_memory: int | None
    work: Mapping[str, Any]
    speedup: tuple[float, float, float] | None
    bandwidth: float | None
    compute: float | None


def rows(results: Results) -> list[Row]:
    """One row for each timing that was measured, in the order of the files."""
    grouped: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in results.measured():
        grouped.setdefault(key(line), []).append(line)
    limits: dict[str, float] = results.fact("limits") or {}
    best: dict[tuple[str, ...], dict[str, list[float]]] = {}  # ours by case and condition: samples by run
    for name, lines in grouped.items():
        if lines[0]["ours"]:
            best.setdefault(_opponents(name), {line["run"]: line["samples"] for line in lines})
    return [_row(name, lines, best.get(_opponents(name)), limits) for name, lines in grouped.items()]


def _opponents(name: tuple[str, ...]) -> tuple[str, ...]:
    """What timings that are compared with each other have in common: all but the contestant."""
    return (*name[:3], *name[4:])


def _row(
    name: tuple[str, ...], lines: Sequence[dict[str, Any]], ours: dict[str, list[float]] | None, limits: Mapping[str, float]
) -> Row:
    suite, benchmark, case, contestant, cache, launch = name
    runs = [line["samples"] for line in lines]
    medians = [line["p50"] for line in lines]
    samples = [sample for run in runs for sample in run]
    pooled = quantiles(samples)
    work = {field: lines[-1][field] for field in ("bytes", "flops", "items", "unit", "matmul")}
    against = None
    if ours is not None and not lines[0]["ours"]:
        pairs = [(ours[line["run"]], line["samples"]) for line in lines if line["run"] in ours]
        pairs = [(mine, theirs) for mine, theirs in pairs if len(mine) == len(theirs)]
        against = speedup([mine for mine, _ in pairs], [theirs for _, theirs in pairs]) if pairs else None
    return Row(
        suite,
        benchmark,
        case,
        contestant,
        lines[0]["ours"],
        cache,
        launch,
        **pooled,
        p99=float(np.quantile(samples, 0.99)),
        error=max(line["relative_error"] for line in lines),
        spread=(max(medians) - min(medians)) / 2 / pooled["p50"],
        runs=runs,
        peak_memory=max((line["peak_memory"] for line in lines if line["peak_memory"] is not None), default=None),
        work=work,
        speedup=against,
        bandwidth=_share(work["bytes"], pooled["p50"], limits.get("copy")),
        compute=_share(work["flops"], pooled["p50"], limits.get(work["matmul"])),
    )


def _share(amount: float | None, time: float, limit: float | None) -> float | None:
    return None if amount is None or limit is None else amount / time / limit


def seconds(value: float) -> str:
    """A time in a readable unit, three digits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1:
            return f"{_three(value * factor)} {unit}"
    return f"{_three(value * 1e9)} ns"


def size(value: float) -> str:
    """Bytes in a readable unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{_three(value / factor)} {unit}"
    return f"{value:.0f} B"


def rate(value: float) -> str:
    """A number a second: 12.3 M, 4,560."""
    for unit, factor in ((" T", 1e12), (" G", 1e9), (" M", 1e6)):
        if value >= factor:
            return f"{_three(value / factor)}{unit}"
    return f"{value:,.0f}" if value >= 100 else _three(value)


def percent(share: float | None) -> str:
    """A share, or nothing."""
    return "" if share is None else f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"


def times(value: tuple[float, float, float] | None) -> str:
    """A speedup with its interval."""
    if value is None:
        return ""
    ratio, low, high = value
    return f"{ratio:.2f}×" if low == high else f"{ratio:.2f}× [{low:.2f}, {high:.2f}]"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"
