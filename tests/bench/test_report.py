"""The report holds every figure, everyone who was left out, and the plot."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_fakes import write_timing, writer

from iiae_fast.bench import roofline
from iiae_fast.bench.document import Heading, Paragraph, Table, to_html, to_markdown
from iiae_fast.bench.report import write_report
from iiae_fast.bench.results import Results, read
from iiae_fast.bench.summary import percent, rate, rows, seconds, size, times
from iiae_fast.errors import MissingExtraError


@pytest.fixture
def results(tmp_path: Path) -> Results:
    path = tmp_path / "source" / "a.jsonl"
    for run in range(3):
        out = writer(path, str(run), load=[run, 0, 0])
        out.fact("limits", {"copy": 10e9, "float32": 100e9})
        write_timing(out, "reference", [2e-6 + 1e-9 * sample for sample in range(9)])
        write_timing(out, "eager", [4e-6 + 1e-9 * sample for sample in range(9)])
        write_timing(out, "reference", [8e-6 + 1e-9 * sample for sample in range(9)], cache="cold", matmul="float32")
        write_timing(out, "torch.compile", [], status="skipped", reason="no compiler | none at all", cache="n/a")
        write_timing(out, "faiss", [], status="refused", reason="loss is off by 0.1", cache="n/a")
    out.fact("failure", {"suite": "retrieval, run 1 of 3", "what": "the process", "reason": "cut off after 300 s"})
    return read([path])


def test_rows_put_runs_rivals_and_limits_together(results: Results) -> None:
    hot, eager, cold = rows(results)
    assert (hot.contestant, hot.cache, len(hot.runs)) == ("reference", "hot", 3)
    assert hot.p50 == pytest.approx(2.004e-6)
    assert hot.p99 == pytest.approx(2.008e-6)
    assert hot.bandwidth == pytest.approx(8000 / 2.004e-6 / 10e9)
    assert hot.speedup is None
    assert hot.compute is None  # elementwise work has no matrix peak
    assert cold.compute == pytest.approx(1000 / 8.004e-6 / 100e9)
    assert eager.speedup is not None
    assert eager.speedup[0] == pytest.approx(2.0, rel=2e-3)


def test_report_has_figures_reasons_and_plot(results: Results, tmp_path: Path) -> None:
    paths = write_report(results, tmp_path, "all")
    assert [path.name for path in paths] == ["all.md", "all.html", "all.png"]
    text = (tmp_path / "all.md").read_text()
    for part in (
        "iiae_fast benchmarks on Made up, 2 cores",
        "abcdef012345",
        "torch 2.13.0",
        "| load when they began | 0; 1; 2 |",
        "| copy, bytes read and written | 10.0 G/s |",
        "**2.00 µs**",
        "2.00× [2.00, 2.00]",
        "| skipped | kernels: double | all | torch.compile | no compiler \\| none at all |",
        "| refused | kernels: double | double of 1,000 | faiss | loss is off by 0.1 |",
        "| failed | retrieval, run 1 of 3 | the process |  | cut off after 300 s |",
        "![Roofline",
        "| eager | the same in plain PyTorch, as one would write it |",
    ):
        assert part in text, part
    assert text.count("no compiler") == 1  # once, not once a run
    page = (tmp_path / "all.html").read_text()
    assert "data:image/png;base64," in page
    assert "2.00× [2.00, 2.00]" in page
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


def test_report_without_plot_says_why(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise MissingExtraError("matplotlib is not installed; install it with: pip install 'iiae_fast[train]'")

    monkeypatch.setattr(roofline, "plot", absent)
    paths = write_report(results, tmp_path, "all")
    assert [path.suffix for path in paths] == [".md", ".html"]
    assert "No plot: matplotlib is not installed" in (tmp_path / "all.md").read_text()


def test_plot_takes_the_condition_that_memory_bounds(results: Results) -> None:
    found = rows(results)
    assert [row.cache for row in roofline._points(found)] == ["cold"]
    assert roofline.plot(found, {}, "no limits") is None


def test_documents_escape_what_they_hold() -> None:
    blocks = [Heading("a < b", 2), Paragraph("x & y"), Table((">n", "text"), [("1", "<i>|</i>")], frozenset({0}))]
    page = to_html(blocks, "t < u")
    assert "<title>t &lt; u</title>" in page
    assert '<tr class="strong"><td class="number">1</td><td>&lt;i&gt;|&lt;/i&gt;</td></tr>' in page
    assert to_markdown(blocks).splitlines()[-1] == "| **1** | **<i>\\|</i>** |"


def test_numbers_for_people() -> None:
    assert [seconds(value) for value in (1.5, 0.0123, 4.56e-5, 7e-9)] == ["1.50 s", "12.3 ms", "45.6 µs", "7.00 ns"]
    assert [size(value) for value in (12, 3400, 5.6e6, 7.89e9)] == ["12 B", "3.40 kB", "5.60 MB", "7.89 GB"]
    assert [rate(value) for value in (3.2, 4560.0, 7.8e6, 1.2e12)] == ["3.20", "4,560", "7.80 M", "1.20 T"]
    assert [percent(value) for value in (None, 0.0123, 0.5)] == ["", "1.2 %", "50 %"]
    assert [times(value) for value in (None, (2.0, 2.0, 2.0), (2.0, 1.9, 2.1))] == ["", "2.00×", "2.00× [1.90, 2.10]"]
