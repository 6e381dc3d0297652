"""What long commands show of their progress."""

from __future__ import annotations

import re

import pytest

from iiae_fast.cli import output


@pytest.mark.parametrize(("total", "size", "start"), [(10, 4, 0), (10, 4, 5), (10, 4, 10), (1, 4, 0)])
def test_spans_cover_what_is_left(total: int, size: int, start: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(output.spans(total, size, "working", start))
    assert [int(row) for span in found for row in span] == list(range(start, total))
    assert all(1 <= len(span) <= size for span in found)
    assert capsys.readouterr() == ("", "")  # quick work says nothing


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "_LINE_SECONDS", 0.0)
    list(output.spans(2500, 1000, "encoding", 500))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [["encoding", "1,500/2,500"], ["encoding", "2,500/2,500"]]
    assert all(re.fullmatch(r"encoding  [\d,]+/2,500  [\d,]+/s  [\d,]+ s left", line) for line in lines)
    assert lines[-1].endswith("  0 s left")


@pytest.mark.parametrize(("rate", "shown"), [(12345.6, "12,346"), (10.4, "10"), (3.14, "3.1"), (0.123, "0.12")])
def test_rates(rate: float, shown: str) -> None:
    assert output._rounded(rate) == shown
