"""Evidence that needs no GPU: what kernels compile to, what they must move, how many operators and launches there are.

python -m iiae_fast.bench.static --file results.jsonl [--quick]
"""

from __future__ import annotations

__all__ = ["blocks", "main", "summary"]

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from iiae_fast.bench.document import Block, Heading, Paragraph, Table
from iiae_fast.bench.environment import cores, describe_run
from iiae_fast.bench.registry import Settings, Unavailable
from iiae_fast.bench.results import Results, Writer

_Show = Callable[[dict[str, Any]], list[Block]]


def _resources(settings: Settings) -> dict[str, Any]:
    """Registers, spills, shared memory and machine instructions of every kernel, compiled ahead of time."""
    from iiae_fast.kernels import aot
    from iiae_fast.kernels._registry import INTERPRETED, triton

    if triton is None or INTERPRETED:
        raise Unavailable("compiling ahead of time needs Triton, and TRITON_INTERPRET not in the environment")
    targets = ("sm_90",) if settings.quick else aot.TARGETS
    matches = ("bf16 channels_last", "bf16 u8 contiguous laplace tanh") if settings.quick else ("",)
    reports = [report for match in matches for report in aot.compile_all(targets, match, settings.threads)]
    rows = list(dict.fromkeys((report.name, report.target) for report in reports))
    by_name = {(report.name, report.target): report._asdict() for report in reports}
    return {"reports": [by_name[row] for row in rows], "triton": triton.__version__}


def _counts(settings: Settings) -> dict[str, Any]:
    from iiae_fast.bench import counts

    return {"rows": counts.count(compiled=not settings.quick)}


def _traffic(settings: Settings) -> dict[str, Any]:
    """In a process of its own, since kernels are interpreted there."""
    if importlib.util.find_spec("triton") is None:
        raise Unavailable("counting the kernels' memory accesses needs Triton (its interpreter)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traffic.json"
        command = [sys.executable, "-m", "iiae_fast.bench.traffic", "--json", str(path), *(["--quick"] * settings.quick)]
        run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(run.stderr[-400:])
        return {"rows": json.loads(path.read_text())}


FACTS: dict[str, Callable[[Settings], Any]] = {"aot": _resources, "counts": _counts, "traffic": _traffic}
"""Name: what gathers it. Each is attempted; one that raises leaves its reason."""


def gather(settings: Settings, writer: Writer) -> None:
    """Write every fact, or why it is missing."""
    for name, collect in FACTS.items():
        try:
            writer.fact(name, collect(settings))
        except Unavailable as reason:
            writer.fact(name, {"missing": str(reason)})
        except Exception as error:
            writer.fact("failure", {"suite": "static", "what": name, "reason": f"{type(error).__name__}: {error}"[:500]})


def blocks(results: Results) -> list[Block]:
    """The report's section; nothing when no fact was gathered."""
    page = [
        block
        for name, value, show in _found(results, _show_resources)
        for block in ([Paragraph(f"{name}: {value['missing']}.")] if "missing" in value else show(value))
    ]
    return [Heading("Counted without a GPU"), *page] if page else []


def summary(results: Results) -> list[Block]:
    """The section in short, for documents: the machine code as one row for each kernel, and nothing of what is missing."""
    found = _found(results, _summarize_resources)
    return [block for _, value, show in found if "missing" not in value for block in show(value)]


def _found(results: Results, show_resources: _Show) -> Iterator[tuple[str, dict[str, Any], _Show]]:
    """Every fact that was gathered, or that says why it is missing, and what shows it."""
    for name, show in (("counts", _show_counts), ("traffic", _show_traffic), ("aot", show_resources)):
        value = results.fact(name)
        if value is not None:
            yield name, value, show


def _summarize_resources(value: dict[str, Any]) -> list[Block]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for report in value["reports"]:
        groups.setdefault(report["name"].split()[0], []).append(report)
    rows = []
    for name, reports in groups.items():
        registers, shared, instructions = (
            max(one[field] for one in reports) for field in ("registers", "shared", "instructions")
        )
        spills = sum(one["spills"] for one in reports)
        load = min((one["load"] for one in reports if one["wide"]), default="")
        rows.append((name, *map(str, (len(reports), registers, spills, shared, instructions, load))))
    targets = ", ".join(dict.fromkeys(report["target"] for report in value["reports"]))
    note = (
        f"{len(value['reports'])} variants (dtype, layout, options, target) compiled with Triton {value['triton']} without a "
        f"GPU for {targets}; of each kernel the worst variant."
    )
    columns = ("kernel", ">variants", ">registers", ">spilled bytes", ">shared bytes", ">instructions", ">load, contiguous")
    return [Heading("Machine code", 3), Paragraph(note), Table(columns, rows)]


def _show_resources(value: dict[str, Any]) -> list[Block]:
    columns = ("kernel", "target", ">registers", ">spilled bytes", ">shared bytes", ">widest load", ">instructions")
    fields = ("name", "target", "registers", "spills", "shared", "load", "instructions")
    kinds = tuple(value["reports"][0]["mix"])
    rows = [
        (*(str(report[field]) for field in fields), *(str(report["mix"][kind]) for kind in kinds), report["problem"])
        for report in value["reports"]
    ]
    bad = sum(bool(report["problem"]) for report in value["reports"])
    note = f"{len(rows)} kernels compiled with Triton {value['triton']} without a GPU; {bad} with a problem."
    return [
        Heading("Machine code of the Triton kernels", 3),
        Paragraph(note),
        Table((*columns, *(f">{kind}" for kind in kinds), "problem"), rows),
    ]


def _show_counts(value: dict[str, Any]) -> list[Block]:
    rows = [(row["what"], str(row["operators"]), str(row["launches"]), row["note"]) for row in value["rows"]]
    note = (
        "From the encoder heads to the total loss and back: operators that PyTorch dispatches (views left out), and kernels "
        "that a GPU would launch."
    )
    columns = ("the loss block of one training step", ">operators", ">launches", "")
    return [Heading("Operators and launches", 3), Paragraph(note), Table(columns, rows)]


def _show_traffic(value: dict[str, Any]) -> list[Block]:
    def number(count: float | None) -> str:
        return "" if count is None else f"{count:.2f}"

    rows = [
        (row["operation"], row["per"], *(number(row[column]) for column in ("must", "ours", "eager", "inductor")))
        for row in value["rows"]
    ]
    note = (
        "Bytes per element, forward with backward. Must: each pass reads its inputs once and writes its outputs once. Triton: "
        "the 32-byte sectors that its block accesses touch, recorded in the interpreter. Eager: inputs and outputs of every "
        "operator. Inductor: its own count for the kernels that it fuses on this machine."
    )
    columns = ("operation", "per", ">must", ">Triton", ">eager", ">inductor")
    return [Heading("Memory traffic", 3), Paragraph(note), Table(columns, rows)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Gather the facts into a results file."""
    parser = argparse.ArgumentParser(prog="python -m iiae_fast.bench.static", description="Evidence that needs no GPU.")
    parser.add_argument("--file", required=True, type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--command", default="")
    options = parser.parse_args(arguments)
    settings = Settings("cpu", options.quick, options.threads)
    gather(settings, Writer(options.file, describe_run(settings, options.command)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
