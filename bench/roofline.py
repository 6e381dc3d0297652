"""The roofline plot: what was reached, under what the machine can do."""

from __future__ import annotations

__all__ = ["plot"]

import io
from collections.abc import Mapping, Sequence

from iiae_fast.bench.summary import Row
from iiae_fast.errors import require

_OURS, _RIVAL, _LINE = "#0b6bcb", "#c0392b", "#8a8f98"
_PEAKS = {"float32": "fp32", "tf32": "TF32", "bfloat16": "bf16", "float16": "fp16", "int8": "int8"}


def plot(rows: Sequence[Row], limits: Mapping[str, float], device: str) -> bytes | None:
    """PNG of every timing with counted bytes and FLOPs against copy bandwidth and matrix peaks; None where there is none.

    Cold times are drawn, where there are some: work that stays in a cache is not bound by the memory that the slope stands for.
    Times with launch overhead are left out where graph replays were measured.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    points = _points(rows)
    if not points or "copy" not in limits:
        return None
    require("matplotlib", "train")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    intensities = [row.work["flops"] / row.work["bytes"] for row in points]
    peaks = {name: limits[name] for name in _PEAKS if name in limits}
    left = min(intensities) / 3
    right = max(*intensities, *(peak / limits["copy"] for peak in peaks.values())) * 6
    top = max(peaks.values(), default=left * limits["copy"])
    axes.plot([left, top / limits["copy"]], [left * limits["copy"], top], color=_LINE, linewidth=1.2)
    axes.annotate(
        f"copy {limits['copy'] / 1e9:,.0f} GB/s",
        (left, left * limits["copy"]),
        textcoords="offset points",
        xytext=(8, 20),
        fontsize=8,
        color=_LINE,
    )
    for name, peak in peaks.items():
        axes.plot([peak / limits["copy"], right], [peak, peak], color=_LINE, linewidth=1.2)
        axes.annotate(
            f"{_PEAKS[name]} {peak / 1e9:,.0f} GFLOP/s",
            (right, peak),
            textcoords="offset points",
            xytext=(-4, 3),
            ha="right",
            fontsize=8,
            color=_LINE,
        )
    for row, x in zip(points, intensities):
        y = _speed(row)
        axes.plot(
            [x],
            [y],
            marker="o" if row.ours else "x",
            color=_OURS if row.ours else _RIVAL,
            markersize=6 if row.ours else 5,
            linestyle="none",
            alpha=0.9,
        )
    for row, x, leftwards in _labelled(points, intensities):
        axes.annotate(
            row.benchmark,
            (x, _speed(row)),
            textcoords="offset points",
            xytext=(-7 if leftwards else 7, -3),
            ha="right" if leftwards else "left",
            fontsize=7.5,
            color=_OURS,
        )
    axes.plot([], [], marker="o", color=_OURS, linestyle="none", label="ours")
    axes.plot([], [], marker="x", color=_RIVAL, linestyle="none", label="rivals")
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_xlabel("counted FLOPs per counted byte")
    axes.set_ylabel("counted FLOPs per second")
    axes.set_title(device, fontsize=10, loc="left")
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    axes.grid(which="major", color="#e3e5e8", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _points(rows: Sequence[Row]) -> list[Row]:
    """Rows with counts, under the one condition of each case that memory bounds."""
    counted = [row for row in rows if row.work["bytes"] and row.work["flops"]]
    best: dict[tuple[str, ...], tuple[bool, bool]] = {}
    for row in counted:
        name = (row.suite, row.benchmark, row.case)
        best[name] = max(best.get(name, (False, False)), _condition(row))
    return [row for row in counted if _condition(row) == best[row.suite, row.benchmark, row.case]]


def _condition(row: Row) -> tuple[bool, bool]:
    return row.cache == "cold", row.launch == "replay"


def _labelled(points: Sequence[Row], intensities: Sequence[float]) -> list[tuple[Row, float, bool]]:
    """One point of ours for each benchmark gets its name: the highest. True: on the left, as another is close on the right."""
    best: dict[str, tuple[Row, float]] = {}
    for row, x in zip(points, intensities):
        if row.ours and (row.benchmark not in best or _speed(row) > _speed(best[row.benchmark][0])):
            best[row.benchmark] = (row, x)

    def close(left: tuple[Row, float], right: tuple[Row, float]) -> bool:
        return left[1] < right[1] < 10 * left[1] and 0.7 < _speed(left[0]) / _speed(right[0]) < 1.4

    return [(*one, any(close(one, other) for other in best.values())) for one in best.values()]


def _speed(row: Row) -> float:
    return float(row.work["flops"] / row.p50)
