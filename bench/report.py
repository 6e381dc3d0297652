"""The report of a run: every figure with its rivals, its limits and its uncertainty, as Markdown, HTML and a roofline plot."""

from __future__ import annotations

__all__ = ["blocks", "timing_table", "write_report"]

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iiae_fast.bench import roofline, static
from iiae_fast.bench.document import Block, Heading, Image, Paragraph, Table, to_html, to_markdown
from iiae_fast.bench.registry import OURS, RIVALS, SUITES
from iiae_fast.bench.results import Results
from iiae_fast.bench.summary import Row, percent, rate, rows, seconds, size, times
from iiae_fast.errors import MissingExtraError
from iiae_fast.storage import write_atomic

_COLUMNS = (
    "case", "contestant", "cache", "launch", ">p50", ">p20 – p80", ">p99", ">± in a run", ">between runs", ">rate", ">of copy",
    ">of matmul", ">peak memory", ">ours is faster by",
)  # fmt: skip
_READING = (
    "Times are wall-clock times of one call: the median over all samples of all runs, with the 20th, 80th and 99th percentile "
    "(the last one of fewer than a hundred samples is nearly the slowest). "
    "“± in a run” is the half width of the median's 95 % interval, relative to it, of the worst run; “between runs” is half "
    "the range of the runs' medians (a run is one process). Contestants of a case were sampled in turns, so the speedup is "
    "that of samples of the same round; its 95 % interval counts runs, and is missing for a single one. Cold means that more "
    "than the last-level cache was written over before every call. Launch “included” starts on an idle device; “replay” is a "
    "CUDA graph's. “of copy” is counted bytes (every input read once, every output written once) a second over the measured "
    "copy bandwidth, “of matmul” counted FLOPs over the measured matrix product of that dtype. Hot times of work that fits the "
    "cache may exceed the copy bandwidth. Peak memory is what one call takes beyond what was there. Every contestant's result "
    "was checked before it was timed."
)


def write_report(results: Results, folder: Path, name: str) -> list[Path]:
    """Write ``name.md``, ``name.html`` and ``name.png`` into ``folder``; the paths of those there are.

    The plot is left out, and the report says why, where Matplotlib is absent.
    """
    page, image = blocks(results, f"{name}.png")
    files = {f"{name}.md": to_markdown(page).encode(), f"{name}.html": to_html(page, _title(results)).encode()}
    if image is not None:
        files[f"{name}.png"] = image.data
    for file, data in files.items():
        write_atomic(folder / file, data)
    return [folder / file for file in files]


def blocks(results: Results, plot_file: str) -> tuple[list[Block], Image | None]:
    """The report, and its plot."""
    found = rows(results)
    page: list[Block] = [Heading(_title(results), 1), *_conditions(results), *_limits(results)]
    image, note = _plot(found, results, plot_file)
    page += [Heading("Roofline"), image or Paragraph(note)]
    if image is not None:
        page.append(
            Paragraph("Cold caches; replays of a CUDA graph where there are some. Slope: copy bandwidth. Plateaus: matmul.")
        )
    page += [Heading("Timings"), Paragraph(_READING)] if found else []
    for suite in SUITES:
        of_suite = [row for row in found if row.suite == suite]
        for benchmark in dict.fromkeys(row.benchmark for row in of_suite):
            page.append(Heading(benchmark if benchmark == suite else f"{suite}: {benchmark}", 3))
            page.append(timing_table([row for row in of_suite if row.benchmark == benchmark]))
    page += [*_unmeasured(results), *static.blocks(results), *_legend(found)]
    return page, image


def timing_table(found: Sequence[Row]) -> Table:
    """One line for each timing; ours stand out."""
    lines = []
    for row in found:
        per_second = f"{rate(row.work['items'] / row.p50)} {row.work['unit']}/s" if row.work["items"] else ""
        lines.append(
            (
                row.case,
                row.contestant,
                row.cache,
                row.launch,
                seconds(row.p50),
                f"{seconds(row.p20)} – {seconds(row.p80)}",
                seconds(row.p99),
                percent(row.error),
                percent(row.spread) if len(row.runs) > 1 else "one run",
                per_second,
                percent(row.bandwidth),
                percent(row.compute),
                "" if row.peak_memory is None else size(row.peak_memory),
                times(row.speedup),
            )
        )
    return Table(_COLUMNS, lines, frozenset(number for number, row in enumerate(found) if row.ours))


def _title(results: Results) -> str:
    return f"iiae_fast benchmarks on {', '.join(dict.fromkeys(run['device'] for run in results.runs))}"


def _conditions(results: Results) -> list[Block]:
    """Where and how, one column of values: runs differ only in what is listed as several."""

    def several(values: list[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    runs = results.runs
    versions = ", ".join(f"{name} {version}" for name, version in runs[-1]["versions"].items())
    clocks = "; ".join(f"{name} {value}" for name, value in runs[-1]["clocks"].items()) or "unknown"
    facts = (
        ("device", several([run["device"] for run in runs])),
        ("driver", several([run["driver"] for run in runs])),
        ("clocks (MHz), temperature, power", clocks),
        ("threads", several([str(run["threads"]) for run in runs])),
        ("processor", several([run["cpu"] for run in runs])),
        ("platform", several([run["platform"] for run in runs])),
        ("versions", versions),
        ("commit", several([run["commit"] for run in runs])),
        ("command", several([run["command"] for run in runs])),
        ("seed", several([str(run["seed"]) for run in runs])),
        ("processes", f"{len(runs)}, from {min(run['time'] for run in runs)} to {max(run['time'] for run in runs)}"),
        ("load when they began", "; ".join(f"{run['load'][0]:g}" for run in runs)),
    )
    return [Table(("", ""), facts)]


def _limits(results: Results) -> list[Block]:
    limits: dict[str, float] | None = results.fact("limits")
    if limits is None:
        return []
    table = [
        (f"matrix product, {name}" if name != "copy" else "copy, bytes read and written", f"{value / 1e9:,.1f} G/s")
        for name, value in limits.items()
    ]
    return [Heading("Limits of this machine"), Table(("measured", ">best"), table)]


def _plot(found: Sequence[Row], results: Results, file: str) -> tuple[Image | None, str]:
    try:
        limits = results.fact("limits")
        data = None if limits is None else roofline.plot(found, limits, results.runs[-1]["device"])
    except MissingExtraError as error:
        return None, f"No plot: {error}."
    if data is None:
        return None, "No plot: no timing has both bytes and FLOPs counted, or the limits were not measured."
    return Image(file, data, "Roofline: counted FLOPs per second against counted FLOPs per byte"), ""


def _unmeasured(results: Results) -> list[Block]:
    """Everyone who was not timed, and why; the same reason is given once for each benchmark."""
    lines: dict[tuple[str, ...], None] = {}
    for line in results.timings:
        if line["status"] != "measured":
            case = line["case"] if line["status"] != "skipped" else "all"
            lines[line["status"], f"{line['suite']}: {line['benchmark']}", case, line["contestant"], line["reason"]] = None
    failures: list[dict[str, Any]] = [line["value"] for line in results.facts if line["name"] == "failure"]
    for failure in failures:
        lines["failed", failure["suite"], failure["what"], "", failure["reason"]] = None
    if not lines:
        return []
    ordered = sorted(lines, key=lambda line: ("failed", "refused", "skipped").index(line[0]))
    return [Heading("Not measured"), Table(("", "benchmark", "case", "contestant", "reason"), ordered)]


def _legend(found: Sequence[Row]) -> list[Block]:
    names = dict.fromkeys(row.contestant for row in found)
    table = [(name, (OURS | RIVALS)[name]) for name in names]
    return [Heading("Who is who"), Table(("contestant", ""), table)] if table else []
