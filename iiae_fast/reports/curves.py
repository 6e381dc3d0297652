"""Curves of a training log, as small inline SVG that takes its colours from the page (light or dark)."""

from __future__ import annotations

__all__ = ["COLOURS", "Chart", "charts", "line_chart", "read_log"]

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from iiae_fast.errors import CheckpointError

Points = list[tuple[float, float]]

COLOURS = {"training": "first", "validation": "second"}
"""Classes of the lines, by the event of the log; the page says what they look like."""

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24
_MAX_POINTS = 400
_LOG_RATIO = 30  # of the largest value to the median: then half of all would lie in the lowest 3 % of a linear axis


@dataclass(frozen=True)
class Chart:
    """One drawn term.

    Attributes:
        name: What is drawn.
        svg: Inline SVG; its classes are styled by the page.
        logarithmic: Whether the vertical axis is.
    """

    name: str
    svg: str
    logarithmic: bool


def read_log(path: str | Path) -> dict[str, dict[str, Points]]:
    """Every number of a ``log.jsonl`` against its step: ``{term: {event: [(step, value), …]}}``.

    A line without an event is one of training. Lines that repeat a step, as after a resumed run, replace it.

    Raises:
        CheckpointError: A line is not a JSON object with a ``step``. Only a last line without its end, torn by the
            end of the run that wrote it, is left out.
    """
    path = Path(path)
    found: dict[str, dict[str, dict[float, float]]] = {}
    lines = path.read_bytes().splitlines(keepends=True)  # as the writer's own reader splits them
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            event, step = record.get("event", "training"), record["step"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise CheckpointError(f"{path}, line {number}: not a line of a training log ({error})") from None
        for name, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                found.setdefault(name, {}).setdefault(event, {})[step] = value
    return {name: {event: sorted(points.items()) for event, points in events.items()} for name, events in found.items()}


def charts(log: Mapping[str, Mapping[str, Points]], names: Mapping[str, str] | None = None) -> list[Chart]:
    """One chart for each term of ``read_log``; ``names`` gives titles, and the order of those it has."""
    titles = names or {}
    terms = [name for name in log if name not in _PLACE]
    ordered = [name for name in titles if name in terms] + [name for name in terms if name not in titles]
    return [line_chart(titles.get(name, name), log[name]) for name in ordered]


_PLACE = {"step", "epoch", "seconds"}  # where in the run a line was written


def line_chart(title: str, series: Mapping[str, Points], x_label: str = "step") -> Chart:
    """Lines over a common horizontal axis.

    Args:
        title: For screen readers and the chart's name.
        series: ``{name: [(x, y), …]}``; at least one point in all. Long ones are thinned to means of neighbours.
        x_label: Of the horizontal axis.

    Raises:
        ValueError: There is no point.
    """
    thinned = {name: _thin(points) for name, points in series.items() if points}
    every = [point for points in thinned.values() for point in points]
    if not every:
        raise ValueError(f"chart {title!r} has no point")
    low_x, high_x = min(x for x, _ in every), max(x for x, _ in every)
    low, high = min(y for _, y in every), max(y for _, y in every)
    logarithmic = low > 0 and high / statistics.median(y for _, y in every) >= _LOG_RATIO
    ticks = _decades(low, high) if logarithmic else _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def place(value: float) -> float:
        if logarithmic:
            value, bottom, top = math.log(value), math.log(low), math.log(high)
        else:
            bottom, top = low, high
        share = (value - bottom) / (top - bottom) if top > bottom else 0.5
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def across(value: float) -> float:
        share = (value - low_x) / (high_x - low_x) if high_x > low_x else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{escape(title)}</title>']
    for tick in ticks:
        y = place(tick)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{_short(tick)}</text>')
    for x, anchor in ((low_x, "start"), (high_x, "end")):
        parts.append(f'<text x="{across(x):.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{_short(x)}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for name, points in thinned.items():
        label, colour = escape(f"{name}: last {_short(points[-1][1])}"), COLOURS.get(name, "third")
        if len(points) == 1:
            x, y = points[0]
            parts.append(
                f'<circle class="dot {colour}" cx="{across(x):.1f}" cy="{place(y):.1f}" r="3"><title>{label}</title></circle>'
            )
        else:
            path = " ".join(f"{across(x):.1f},{place(y):.1f}" for x, y in points)
            parts.append(f'<polyline class="line {colour}" points="{path}"><title>{label}</title></polyline>')
    return Chart(title, "".join(parts) + "</svg>", logarithmic)


def _thin(points: Sequence[tuple[float, float]]) -> Points:
    """At most ``_MAX_POINTS`` means of consecutive points; the first and the last stay."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    inner = points[1:-1]
    size = math.ceil(len(inner) / (_MAX_POINTS - 2))
    blocks = [inner[start : start + size] for start in range(0, len(inner), size)]
    means = [(sum(x for x, _ in block) / len(block), sum(y for _, y in block) / len(block)) for block in blocks]
    return [points[0], *means, points[-1]]


def _ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) that enclose [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [count * step for count in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    stride = max(1, math.ceil((last - first) / 5))
    return [10.0**power for power in range(first, last + stride, stride)]


def _short(value: float) -> str:
    """A number in few characters: 12k, 1400, 0.25, 1e-05."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.4g}" if size >= 1 else f"{value:.3g}"
