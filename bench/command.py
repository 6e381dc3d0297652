"""``iiae bench``, and ``python -m iiae_fast.bench`` where the command line's own packages are missing.

The parent process only starts others: each pass over a suite is a process of its own with its own time limit, so that one that
hangs or crashes costs its own results and nothing else.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import iiae_fast
from iiae_fast.bench import environment
from iiae_fast.bench.compare import TOLERANCE, compare, table
from iiae_fast.bench.registry import OURS, RIVALS, SUITES
from iiae_fast.bench.results import device_folder, read
from iiae_fast.bench.worker import PROBLEMS
from iiae_fast.errors import InputError

RUNS = 3
_LIMIT = {True: 300.0, False: 3600.0}  # seconds of one process, quick and not
_PLACE = Path("bench/results")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


@dataclass(frozen=True)
class _Job:
    """One process."""

    label: str
    arguments: list[str]


def main(arguments: Sequence[str], prog: str = "iiae bench") -> int:
    """Run, compare or render; the exit code.

    Raises:
        InputError: The arguments, or a file that they name, cannot be used.
    """
    others = {"compare": _compare, "render": _render, "convergence": _convergence}
    if arguments and arguments[0] in others:
        return others[arguments[0]](list(arguments[1:]), f"{prog} {arguments[0]}")
    options = _parse(list(arguments), prog)
    if not arguments:
        _list(prog)
        return 0
    return _run(options, shlex.join([*prog.split(), *arguments]))


def _parse(arguments: list[str], prog: str) -> argparse.Namespace:
    parser = _Parser(
        prog=prog,
        description="Measure this package beside what one would otherwise use; every result is checked before it is timed.",
        epilog=f"Also: {prog} compare A B says what is faster, slower or the same; {prog} render writes tables into documents; "
        f"{prog} convergence trains to the end beside the plain port.",
    )
    accepted = [*SUITES, "all"]
    parser.add_argument("suite", nargs="?", default="all", metavar="SUITE", help=f"{', '.join(accepted)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases, to 5 %% instead of 2 %%: minutes")
    parser.add_argument("--against", nargs="+", metavar="RIVAL", default=[], help=f"only these rivals: {', '.join(RIVALS)}")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to measure")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"processes for each suite (default: {RUNS})")
    parser.add_argument("--threads", type=int, default=environment.cores(), help="CPU threads of every contestant (all cores)")
    parser.add_argument("--seed", type=int, default=0, help="of all inputs")
    parser.add_argument("--out", type=Path, help=f"folder of results and report (default: {_PLACE}/DEVICE)")
    parser.add_argument("--json", action="store_true", help="print every timing as JSON on stdout")
    options = parser.parse_args(arguments)
    if options.suite not in accepted:
        accepted += ["compare", "render", "convergence"]
        raise InputError(f"unknown benchmark {options.suite!r}; accepted are {', '.join(accepted)}")
    for name in options.against:
        if name not in RIVALS:
            raise InputError(f"--against: unknown rival {name!r}; accepted are {', '.join(RIVALS)}")
    for name in ("runs", "threads"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)}: accepted is a whole number of at least 1")
    return options


def _list(prog: str) -> None:
    print(f"{prog} SUITE, where SUITE is all or one of")
    for suite, benchmarks in SUITES.items():
        print(f"  {suite:10} {', '.join(benchmarks)}")
    print("contestants:")
    for name, what in {**OURS, **RIVALS}.items():
        print(f"  {name:15} {what}")
    print(f"see {prog} --help, {prog} compare --help, {prog} render --help, {prog} convergence --help")


def _run(options: argparse.Namespace, command: str) -> int:
    device = _pick(options.device)
    folder = options.out or _PLACE / device_folder(environment.device_name(device))
    name = options.suite + ("-quick" if options.quick else "")
    partial, final = folder / f".{name}.jsonl.partial", folder / f"{name}.jsonl"
    partial.unlink(missing_ok=True)
    jobs = _jobs(options, device, partial, command)
    started = time.monotonic()
    failures = []
    for number, job in enumerate(jobs):
        spent = time.monotonic() - started
        left = f", about {spent / number * (len(jobs) - number):.0f} s left" if number else ""
        print(f"[{number + 1}/{len(jobs)}] {job.label} ({spent:.0f} s so far{left})", file=sys.stderr, flush=True)
        problem = _start(job, options.threads, _LIMIT[options.quick])
        if problem:
            print(f"  {job.label}: {problem}", file=sys.stderr, flush=True)
            failures.append({"suite": job.label, "what": "the process", "reason": problem})
    if not partial.exists():
        raise InputError(f"nothing could be measured: {failures[0]['reason'] if failures else 'no process wrote a result'}")
    _note(partial, failures)
    partial.replace(final)
    return _finish(final, name, options.json)


def _finish(file: Path, name: str, as_json: bool) -> int:
    """Write the report and say where it is; 1 when something failed or was refused."""
    from iiae_fast.bench.report import write_report
    from iiae_fast.bench.summary import rows

    results = read([file])
    paths = write_report(results, file.parent, name)
    bad = [line for line in results.timings if line["status"] in ("failed", "refused")]
    failures = [line["value"] for line in results.facts if line["name"] == "failure"]
    if as_json:
        timings = [{field: value for field, value in vars(row).items() if field != "runs"} for row in rows(results)]
        problems = [*failures, *({field: line[field] for field in _PROBLEM} for line in bad)]
        print(json.dumps({"results": str(file), "timings": timings, "problems": problems}, indent=2, ensure_ascii=False))
    else:
        for path in (file, *paths):
            print(path)
    print(f"{len(results.measured())} timings, {len(bad) + len(failures)} problems", file=sys.stderr)
    return 1 if bad or failures else 0


_PROBLEM = ("suite", "benchmark", "case", "contestant", "status", "reason")


def _jobs(options: argparse.Namespace, device: str, file: Path, command: str) -> list[_Job]:
    common = ["--file", str(file), "--threads", str(options.threads), "--command", command]
    common += ["--quick"] if options.quick else []
    worker = ["iiae_fast.bench.worker", *common, "--device", device, "--seed", str(options.seed)]
    against = ["--against", *options.against] if options.against else []
    jobs = [_Job("limits of this machine", [*worker, "--suite", "limits"])]
    for run in range(1, options.runs + 1):
        for suite in SUITES if options.suite == "all" else [options.suite]:
            jobs.append(_Job(f"{suite}, run {run} of {options.runs}", [*worker, "--suite", suite, *against]))
    if options.suite in ("all", "kernels"):
        jobs.append(_Job("counts and machine code", ["iiae_fast.bench.static", *common]))
    return jobs


def _start(job: _Job, threads: int, limit: float) -> str:
    """Run a job to its end or its limit; what went wrong, or nothing."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "IIAE_NUM_THREADS"):
        variables[name] = str(threads)
    root = str(Path(iiae_fast.__file__).parent.parent)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", *job.arguments]
    process = subprocess.Popen(command, env=variables, stdout=sys.stderr, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"cut off after {limit:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
            process.wait()
    return "" if code in (0, PROBLEMS) else f"ended with exit code {code}" if code > 0 else f"killed by signal {-code}"


def _note(file: Path, failures: list[dict[str, str]]) -> None:
    """Add failures of whole processes to the results, under the last run's name."""
    run = read([file]).runs[-1]["run"]
    with file.open("a", encoding="utf-8") as out:
        for failure in failures:
            line: dict[str, Any] = {"kind": "fact", "run": run, "name": "failure", "value": failure}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _pick(device: str) -> str:
    import torch

    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise InputError("--device cuda: no CUDA device here; accepted are auto and cpu")
    return "cuda" if cuda and device == "auto" else device.replace("auto", "cpu")


def _compare(arguments: list[str], prog: str) -> int:
    parser = _Parser(
        prog=prog,
        description="Say what is faster, slower, the same or unclear in B against A, with 95 %% intervals.",
        epilog=f"Each side needs {RUNS} runs of a timing for a verdict; a file of {RUNS} runs is what iiae bench writes.",
    )
    parser.add_argument("a", metavar="A", type=Path, help="results file, or a folder of them")
    parser.add_argument("b", metavar="B", type=Path, help="the same, of what may have changed")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"difference that nobody minds ({TOLERANCE})")
    parser.add_argument("--all", action="store_true", help="rivals too, not only this package")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not 0 < options.tolerance < 1:
        raise InputError(f"--tolerance {options.tolerance}: accepted is a share between 0 and 1")
    a, b = read([options.a]), read([options.b])
    found = [one for one in compare(a, b, options.tolerance) if options.all or one.key[3] in OURS]
    if not found:
        raise InputError(f"{options.a} and {options.b} have no timing in common")
    if options.json:
        print(json.dumps([vars(one) for one in found], indent=2, ensure_ascii=False))
        return 0
    devices = [", ".join(dict.fromkeys(run["device"] for run in side.runs)) for side in (a, b)]
    if devices[0] != devices[1]:
        print(f"A was measured on {devices[0]}, B on {devices[1]}")
    print("\n".join(table(found)))
    return 0


def _convergence(arguments: list[str], prog: str) -> int:
    from iiae_fast.bench.convergence import CONTESTANTS, run

    parser = _Parser(
        prog=prog,
        description="Train to the end with this package and with the plain port, from the same pairs in the same order: "
        "recall, time, and every loss term's curve. A run that is finished already is not repeated.",
    )
    parser.add_argument("--preset", default="mnist-cdcb", help="of the spatial family (mnist-cdcb)")
    parser.add_argument("--image-size", type=int, default=32, help="side of the images (32)")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the training pairs (1)")
    parser.add_argument("--batch", type=int, help="pairs of a step (the preset's)")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on (3)")
    names = list(CONTESTANTS)
    parser.add_argument("--contestants", nargs="+", choices=names, default=["iiae_fast", "plain"], help=", ".join(names))
    parser.add_argument("--threads", type=int, default=1, help="of every run (1)")
    parser.add_argument("--target", type=float, default=0.99, help="R@1 of the validation pairs to reach (0.99)")
    parser.add_argument(
        "--until", type=float, help="end a run with the epoch that reaches this R@1 of the test pairs both ways"
    )
    parser.add_argument("--stop", action="store_true", help="end a run with the epoch that reaches --target")
    parser.add_argument("--runs", type=Path, default=Path("runs/convergence"), help="where runs go (runs/convergence)")
    return run(parser.parse_args(arguments))


def _render(arguments: list[str], prog: str) -> int:
    from iiae_fast.bench.render import MARKERS, render

    parser = _Parser(prog=prog, description=f"Write tables of results between the markers of documents: {MARKERS}")
    default = [Path("README.md"), Path("docs/benchmarks.md")]
    parser.add_argument("documents", nargs="*", type=Path, default=default, metavar="FILE", help="README.md docs/benchmarks.md")
    parser.add_argument("--results", type=Path, default=_PLACE, help=f"holds a folder for each device (default: {_PLACE})")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a document is stale")
    options = parser.parse_args(arguments)
    stale = [path for path in options.documents if render(path, options.results, write=not options.check)]
    for path in stale:
        print(f"{path}: {'stale' if options.check else 'updated'}")
    return 1 if stale and options.check else 0
