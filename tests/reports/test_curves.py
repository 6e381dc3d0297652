"""Reading training logs, and drawing them."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from iiae_fast.errors import CheckpointError
from iiae_fast.reports.curves import charts, line_chart, read_log


def write_log(path: Path, records: list[dict[str, object]], end: str = "") -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + end)
    return path


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, pair.split(","))) for pair in line.split()]  # type: ignore[misc]
        for line in re.findall(r'points="([^"]+)"', svg)
    ]


def test_log_is_read_by_term_and_event(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"step": 20, "epoch": 0.5, "total": 9.0, "rec_x": 5.0},
        {"step": 40, "epoch": 1.0, "total": 7.0, "rec_x": 4.0},
        {"step": 40, "epoch": 1.0, "event": "validation", "total": 8.0, "x_to_y": 0.5, "best": True},
    ]
    log = read_log(write_log(tmp_path / "log.jsonl", records))
    assert log["total"] == {"training": [(20, 9.0), (40, 7.0)], "validation": [(40, 8.0)]}
    assert log["x_to_y"] == {"validation": [(40, 0.5)]}
    assert "best" not in log
    assert "event" not in log


def test_repeated_step_replaces_and_torn_last_line_is_left_out(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"step": 20, "total": 9.0}, {"step": 20, "total": 3.0}]
    assert read_log(write_log(tmp_path / "log.jsonl", records, '{"step": 40, "to'))["total"] == {"training": [(20, 3.0)]}


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"total": 1.0}'])
def test_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "total": 2.0}\n' + line + '\n{"step": 2, "total": 2.0}\n')
    with pytest.raises(CheckpointError, match=r"log\.jsonl, line 2"):
        read_log(path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1, "total": 2.0}\n\xff\xfe\n{"step": 2, "total": 2.0}\n')
    with pytest.raises(CheckpointError, match=r"log\.jsonl, line 2"):
        read_log(path)


def test_every_term_has_a_chart_in_the_order_of_the_titles(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"step": s, "seconds": 1.0 * s, "odd": 1.0, "total": 2.0, "kl_x": 3.0} for s in (1, 2)]
    drawn = charts(read_log(write_log(tmp_path / "log.jsonl", records)), {"kl_x": "KL <x>", "total": "Loss", "absent": "?"})
    assert [chart.name for chart in drawn] == ["KL <x>", "Loss", "odd"]
    assert "KL &lt;x&gt;" in drawn[0].svg
    assert "<x>" not in drawn[0].svg


def test_line_goes_down_where_values_do_and_stays_inside() -> None:
    chart = line_chart("loss", {"training": [(step, 10.0 - step / 20) for step in range(100)]})
    root = ET.fromstring(chart.svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    (line,) = points_of(chart.svg)
    xs, ys = zip(*line)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys)
    assert min(xs) >= 0
    assert max(xs) <= width
    assert min(ys) >= 0
    assert max(ys) <= height
    assert not chart.logarithmic


def test_axis_is_logarithmic_where_most_values_would_lie_at_its_foot() -> None:
    chart = line_chart("kl", {"training": [(0, 1000.0), (1, 10.0), (2, 0.1)]})
    (line,) = points_of(chart.svg)
    assert chart.logarithmic
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.11)  # equal ratios, equal steps
    assert not line_chart("kl", {"training": [(0, 1000.0), (1, 10.0), (2, 0.0)]}).logarithmic
    assert not line_chart("lr", {"training": [(0, 1e-3), (1, 5e-4), (2, 1e-9)]}).logarithmic


def test_long_series_are_thinned_to_means_but_keep_their_ends() -> None:
    points = [(float(step), float(step % 2)) for step in range(100_001)]
    (line,) = points_of(line_chart("noise", {"training": points}).svg)
    inner = [y for _, y in line[1:-1]]
    assert len(line) <= 400
    assert max(inner) - min(inner) < 2  # means of zeros and ones are all about one half, of a chart 150 high
    alone = points_of(line_chart("ends", {"training": [points[0], points[-1]]}).svg)[0]
    assert [line[0][0], line[-1][0]] == [alone[0][0], alone[-1][0]]


@pytest.mark.parametrize("points", [[(5.0, 1.0)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, -3.0), (2.0, -3.0)]])
def test_degenerate_series_are_drawn(points: list[tuple[float, float]]) -> None:
    ET.fromstring(line_chart("flat", {"validation": points}).svg)


def test_chart_without_a_point_is_refused() -> None:
    with pytest.raises(ValueError, match="no point"):
        line_chart("empty", {"training": []})
