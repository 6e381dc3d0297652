"""Tables of documents, written from results files, so that no figure in them is typed by hand."""

from __future__ import annotations

__all__ = ["MARKERS", "render", "rendered"]

import re
from collections.abc import Sequence
from pathlib import Path

from iiae_fast.bench.document import Block, Heading, Paragraph, Table, to_markdown
from iiae_fast.bench.report import timing_table
from iiae_fast.bench.results import Results, read
from iiae_fast.bench.static import summary
from iiae_fast.bench.summary import Row, rate, rows, seconds, times
from iiae_fast.errors import InputError
from iiae_fast.storage import write_atomic

MARKERS = "<!-- bench:begin KIND --> … <!-- bench:end -->, where KIND is headline, full or counted"

_SECTION = re.compile(r"(<!-- bench:begin (\w+) -->\n).*?(<!-- bench:end -->)", re.DOTALL)
_HEADLINE = ("what", "ours", ">time", ">rate", "against", ">its time", ">ours is faster by")


def render(document: Path, results: Path, write: bool = True) -> bool:
    """Bring the marked sections of a document up to date; whether anything was not.

    Args:
        document: Markdown with markers (``MARKERS``); without any it is left alone.
        results: Folder with one folder of ``.jsonl`` files for each device.
        write: False only looks.

    Raises:
        InputError: The document does not exist, a section has no end or is of an unknown kind, or there are no results.
    """
    try:
        before = document.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{document}: no such file") from None
    after = rendered(before, results, str(document))
    if write and after != before:
        write_atomic(document, after.encode())
    return after != before


def rendered(text: str, results: Path, name: str = "the document") -> str:
    """The text with its sections written anew."""
    kinds = {"headline": _headline, "full": _full, "counted": summary}
    sections = list(_SECTION.finditer(text))
    if len(sections) != text.count("<!-- bench:begin ") or len(sections) != text.count("<!-- bench:end -->"):
        raise InputError(f"{name}: markers do not pair; accepted are {MARKERS}")
    if not sections:
        return text
    devices = {folder.name: read([folder]) for folder in sorted(results.glob("*")) if any(folder.glob("*.jsonl"))}
    if not devices:
        raise InputError(f"{results}: holds no results; iiae bench writes them")
    for section in reversed(sections):
        if section[2] not in kinds:
            raise InputError(f"{name}: unknown section {section[2]!r}; accepted are {', '.join(kinds)}")
        blocks = [block for found in devices.values() for block in kinds[section[2]](found)]
        text = text[: section.end(1)] + "\n" + to_markdown(blocks) + "\n" + text[section.start(3) :]
    return text


def _headline(results: Results) -> list[Block]:
    """The first case of every benchmark: ours beside each rival."""
    found = [row for row in rows(results) if (row.cache, row.launch) in (("hot", "n/a"), ("hot", "included"))]
    first = {row.benchmark: row.case for row in reversed(found)}
    lines = []
    for row in found:
        if row.case == first[row.benchmark] and row.speedup is not None:
            mine = next(one for one in found if one.ours and (one.benchmark, one.case) == (row.benchmark, row.case))
            lines.append(_line(mine, row))
    return [Paragraph(_where(results)), Table(_HEADLINE, lines)]


def _line(mine: Row, rival: Row) -> Sequence[str]:
    per_second = f"{rate(mine.work['items'] / mine.p50)} {mine.work['unit']}/s" if mine.work["items"] else ""
    what = mine.case if mine.benchmark in mine.case else f"{mine.benchmark}: {mine.case}"
    return what, mine.contestant, seconds(mine.p50), per_second, rival.contestant, seconds(rival.p50), times(rival.speedup)


def _full(results: Results) -> list[Block]:
    """Every timing."""
    found = rows(results)
    devices = ", ".join(dict.fromkeys(run["device"] for run in results.runs))
    page: list[Block] = [Heading(devices, 3), Paragraph(_where(results))]
    for benchmark in dict.fromkeys(row.benchmark for row in found):
        page += [Heading(benchmark, 4), timing_table([row for row in found if row.benchmark == benchmark])]
    return page


def _where(results: Results) -> str:
    run = results.runs[-1]
    days = sorted({one["time"][:10] for one in results.runs})
    versions = ", ".join(f"{name} {run['versions'][name]}" for name in ("torch", "triton") if name in run["versions"])
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(one["command"] for one in results.runs))
    commits = ", ".join(dict.fromkeys(one["commit"] for one in results.runs))
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    threads = ", ".join(dict.fromkeys(str(one["threads"]) for one in results.runs))
    return f"{run['device']}, {threads} threads, {versions}, {when}, commit {commits}, {commands}:"
