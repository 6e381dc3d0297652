"""No figure in a document is older than the results it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_fakes import write_timing, writer
from paths import ROOT

from iiae_fast.bench.command import main
from iiae_fast.bench.render import rendered
from iiae_fast.errors import InputError

TEXT = "# Title\n\n<!-- bench:begin headline -->\nold\n<!-- bench:end -->\n\nmore\n"
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for run in range(3):
        out = writer(tmp_path / "results" / "made-up" / "all.jsonl", str(run))
        write_timing(out, "reference", [2e-6, 2e-6, 2e-6])
        write_timing(out, "eager", [5e-6, 5e-6, 5e-6])
        write_timing(out, "eager", [9e-6, 9e-6, 9e-6], case="another")
    return tmp_path / "results"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_of_this_repository_are_not_stale(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert rendered(text, ROOT / "bench" / "results", str(document)) == text, "bring it up to date with: iiae bench render"


def test_sections_are_written_and_everything_else_kept(folder: Path, tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(TEXT + TEXT.replace("headline", "full"))
    arguments = ["render", str(document), "--results", str(folder)]
    assert main([*arguments, "--check"]) == 1
    assert "old" in document.read_text()
    assert main(arguments) == 0
    text = document.read_text()
    assert "old" not in text
    assert text.startswith("# Title\n\n<!-- bench:begin headline -->\n")
    assert text.count("\n\nmore\n") == 2
    headline, full = text.split("<!-- bench:begin full -->")
    assert "| double of 1,000 | reference | 2.00 µs | 500 M numbers/s | eager | 5.00 µs | 2.50× |" in headline
    assert "another" not in headline
    assert "another" in full
    assert main([*arguments, "--check"]) == 0
    assert main(arguments) == 0
    assert document.read_text() == text


def test_counts_are_rendered_without_timings(folder: Path) -> None:
    report = {"name": "k bf16", "target": "sm_90", "registers": 40, "spills": 0, "shared": 16, "instructions": 99, "load": 16}
    narrow = {**report, "name": "k fp32 strided", "registers": 50, "load": 4, "wide": False}
    out = writer(folder / "made-up" / "all.jsonl", "static")
    out.fact("aot", {"reports": [{**report, "wide": True}, narrow], "triton": "3.9.0"})
    row = {"operation": "sum", "per": "value", "elements": 3, "must": 5.0, "ours": 5.02, "eager": 93.0, "inductor": None}
    out.fact("traffic", {"rows": [row]})
    text = rendered(TEXT.replace("headline", "counted"), folder)
    assert "| k | 2 | 50 | 0 | 16 | 99 | 16 |" in text
    assert "| sum | value | 5.00 | 5.02 | 93.00 |  |" in text
    assert "double of 1,000" not in text


def test_new_results_make_a_document_stale(folder: Path) -> None:
    text = rendered(TEXT, folder)
    assert rendered(text, folder) == text
    write_timing(writer(folder / "made-up" / "more.jsonl", "late"), "eager", [5e-6], case="later")
    assert rendered(text.replace("headline", "full"), folder) != text.replace("headline", "full")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEXT.replace("<!-- bench:end -->", ""), "markers do not pair"),
        (TEXT.replace("headline", "nonsense"), "unknown section 'nonsense'; accepted are headline, full"),
    ],
)
def test_bad_markers_are_named(text: str, says: str, folder: Path) -> None:
    with pytest.raises(InputError, match=says):
        rendered(text, folder, "README.md")


def test_missing_results_and_documents_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no results"):
        rendered(TEXT, tmp_path)
    assert rendered("no markers\n", tmp_path) == "no markers\n"
    with pytest.raises(InputError, match="no such file"):
        main(["render", str(tmp_path / "absent.md")])
