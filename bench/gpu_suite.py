"""Everything that needs a GPU, out of one short visit to a bare machine.

    make gpu-suite                 # or: python -m iiae_fast.bench.gpu_suite [--budget 540] [--out FOLDER] [--resume FOLDER]
    make gpu-suite DRY_RUN=1       # every step's plumbing on the CPU, at toy sizes

Steps run in order of worth, each in a process of its own with its own time limit; one that hangs or crashes is cut off and
recorded, and the next begins. After every step the output folder (``--out``, else ``$OUT``) holds all there is so far, in a few
files under 16 MiB: ``suite.json`` (what became of each step), ``log.txt``, ``results.jsonl``, ``profile.txt``, ``report.*``,
and ``device_paths.json``, the table of paths to put into ``iiae_fast/retrieval``.

Nothing is fetched. The machine's own python needs torch with Triton, numpy, rich, safetensors, scikit-learn (its digits are
trained on), tensorboard, setuptools, pybind11, pytest and hypothesis; nvcc and a C++20 compiler build the engine for the device
at hand. With pytest-xdist and pytest-timeout more tests run and none is lost when time is up; with compute-sanitizer the
kernels' accesses are checked; without them those steps do less, or are skipped. What is missing can be carried as wheels:

    pip download --no-deps -d wheels flashlib==0.4.0     # a rival; where there is a network
    pip install --no-deps --target site wheels/*.whl     # on the machine, then: PYTHONPATH=site make gpu-suite
"""

from __future__ import annotations

__all__ = ["Step", "main", "run_steps", "steps"]

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BUDGET = 540.0
_ROOT = Path(__file__).resolve().parent.parent
_RESERVE = 25.0  # seconds kept for the report, which comes last whatever happens
_LOG_PER_STEP = 1 << 19  # bytes: the end of a step's output
_LOG = 15 << 20
_KEEP = ("results.jsonl", "profile.txt", "device_paths.json", "log.txt")


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: Unique.
        command: What runs.
        limit: Seconds; less where less of the budget is left.
        tool: Program that must be on the PATH, else the step is skipped.
        variables: Added to the environment.
        passes: Exit codes that count as success.
        always: Runs even when the budget is spent.
    """

    name: str
    command: list[str]
    limit: float
    tool: str | None = None
    variables: tuple[tuple[str, str], ...] = ()
    passes: tuple[int, ...] = (0,)
    always: bool = False


@dataclass
class Outcome:
    """What became of a step: ok, failed, cut off, skipped, not run (no time left); with the reason where it is none of ok's."""

    status: str
    seconds: float = 0.0
    reason: str = ""


def steps(out: Path, dry_run: bool) -> list[Step]:
    """The suite, the most valuable first. A dry run has the same steps on the CPU at toy sizes."""
    python = [sys.executable, "-m"]
    toy = ["--toy"] if dry_run else []

    def own(step: str) -> list[str]:
        return [*python, "iiae_fast.bench.gpu_steps", step, "--out", str(out), *toy]

    def measure(suite: str) -> list[str]:
        where = ["--device", "cpu" if dry_run else "cuda", "--file", str(out / "results.jsonl")]
        return [*python, "iiae_fast.bench.worker", "--suite", suite, "--quick", *where, *toy, "--command", "make gpu-suite"]

    def sanitize(tool: str) -> list[str]:
        return own("touch") if dry_run else ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *own("touch")]

    def test(name: str, folder: str, limit: float) -> Step:
        command = [*python, "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"tests/{folder}"]
        if dry_run:
            return Step(name, [*command, "--collect-only"], limit)
        return Step(
            name, [*command, *_test_options(limit)], limit, variables=(("IIAE_TEST_GPU", "1"), ("OMP_NUM_THREADS", "2"))
        )

    found = [
        Step("environment", own("environment"), 60),
        Step("build", own("build"), 180),
        test("retrieval tests", "retrieval", 100),
        test("kernel tests", "kernels", 120),
        test("training tests", "training", 100),
        Step("limits", measure("limits"), 60),
        Step("bench kernels 1", measure("kernels"), 150),
        Step("bench training 1", measure("training"), 150),
        Step("bench retrieval 1", measure("retrieval"), 100),
        Step("train", own("train"), 120),
        Step("memcheck", sanitize("memcheck"), 90, None if dry_run else "compute-sanitizer", _UNCACHED),
        Step("profile", own("profile"), 60),
        Step("paths", own("paths"), 130),
        Step("bench inference 1", measure("inference"), 90),
        Step("engines", own("engines"), 120),
        Step("racecheck", sanitize("racecheck"), 90, None if dry_run else "compute-sanitizer", _UNCACHED),
        Step("synccheck", sanitize("synccheck"), 60, None if dry_run else "compute-sanitizer", _UNCACHED),
    ]
    # Comparisons and intervals count runs, so whatever time is left goes into further ones.
    for run in (2,) if dry_run else (2, 3):
        found += [Step(f"bench {suite} {run}", measure(suite), 150) for suite in ("kernels", "training", "retrieval")]
    return [*found, Step("report", own("report"), 60, always=True)]


def _test_options(limit: float) -> list[str]:
    """Of pytest on the device: several processes, as a kernel that faults spoils its own, and what failed is said in time."""
    several = ["-n", "6", "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    # Where pytest-timeout is missing, the step's own limit must do.
    patience = (
        ["--timeout", "60", "--session-timeout", f"{limit - 20:.0f}"] if importlib.util.find_spec("pytest_timeout") else []
    )
    return ["--maxfail", "20", *several, *patience]


_UNCACHED = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)  # each tensor its own allocation, so that its ends are watched


def run_steps(todo: Sequence[Step], out: Path, budget: float, resume: Path | None = None) -> dict[str, Outcome]:
    """Run steps until the budget is spent; ``out`` is up to date after each.

    Args:
        todo: In order of worth.
        out: Folder for the files named above.
        budget: Seconds for all together.
        resume: An earlier output folder: steps that were ok there are not run again, and its results are kept.

    Returns:
        Outcomes by step, as in ``suite.json``.
    """
    out.mkdir(parents=True, exist_ok=True)
    outcomes = _earlier(resume, out) if resume is not None else {}
    end = time.monotonic() + budget
    for number, step in enumerate(todo, start=1):
        if step.name in outcomes and outcomes[step.name].status == "ok" and not step.always:
            print(f"[{number}/{len(todo)}] {step.name}: ok earlier", flush=True)
            continue
        left = end - time.monotonic()
        limit = min(step.limit, left if step.always else left - _RESERVE)
        if step.always:
            limit = max(limit, _RESERVE)
        if step.tool and shutil.which(step.tool) is None:
            outcomes[step.name] = Outcome("skipped", reason=f"{step.tool} is not on the PATH")
        elif limit <= 1:
            outcomes[step.name] = Outcome("not run", reason="no time left in the budget")
        else:
            print(f"[{number}/{len(todo)}] {step.name}, at most {limit:.0f} s, {left:.0f} s left in all", flush=True)
            outcomes[step.name] = _run(step, out, limit)
        outcome = outcomes[step.name]
        print(f"[{number}/{len(todo)}] {step.name}: {outcome.status} {outcome.reason}".rstrip(), flush=True)
        _save(outcomes, out)
    return outcomes


def _earlier(resume: Path, out: Path) -> dict[str, Outcome]:
    try:
        outcomes = {name: Outcome(**values) for name, values in json.loads((resume / "suite.json").read_text()).items()}
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"--resume {resume}: no output of this suite there ({error})") from None
    if resume.resolve() != out.resolve():
        for name in _KEEP:
            if (resume / name).exists():
                shutil.copyfile(resume / name, out / name)
    return outcomes


def _run(step: Step, out: Path, limit: float) -> Outcome:
    """One step in a process group of its own, which ends with it."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables |= dict(step.variables)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), variables.get("PYTHONPATH"))))
    variables["PYTHONUNBUFFERED"] = "1"
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            step.command, cwd=_ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
            reason = "" if code in step.passes else f"exit code {code}" if code > 0 else f"killed by signal {-code}"
            outcome = Outcome("failed" if reason else "ok", reason=reason)
        except subprocess.TimeoutExpired:
            outcome = Outcome("cut off", reason=f"still running after {limit:.0f} s")
        finally:
            _end_group(process)
        outcome.seconds = round(time.monotonic() - started, 1)
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - _LOG_PER_STEP))
        text = output.read()
    _log(step, outcome, text, out)
    return outcome


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what the step has left running, itself included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _log(step: Step, outcome: Outcome, text: bytes, out: Path) -> None:
    head = f"\n=== {step.name}: {outcome.status} {outcome.reason} ({outcome.seconds} s)\n$ {' '.join(step.command)}\n"
    path = out / "log.txt"
    before = path.read_bytes() if path.exists() else b""
    path.write_bytes((before + head.encode() + text)[-_LOG:])
    if outcome.status != "ok":
        sys.stdout.write(text[-2000:].decode(errors="replace"))


def _save(outcomes: dict[str, Outcome], out: Path) -> None:
    temporary = out / ".suite.json"
    temporary.write_text(json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()}, indent=1) + "\n")
    temporary.replace(out / "suite.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; 1 when a step failed or was cut off."""
    parser = argparse.ArgumentParser(prog="python -m iiae_fast.bench.gpu_suite", description="Everything that needs a GPU.")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu-suite")), help="output folder")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds in all (default: {BUDGET:.0f})")
    parser.add_argument("--resume", type=Path, help="an earlier output folder: what was ok there is not run again")
    parser.add_argument("--dry-run", action="store_true", help="all steps on the CPU at toy sizes")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    outcomes = run_steps(steps(out, options.dry_run), out, options.budget, options.resume)
    counts = [f"{sum(one.status == status for one in outcomes.values())} {status}" for status in _STATUSES]
    print(f"{', '.join(counts)}; everything is in {out}")
    return 1 if any(one.status in ("failed", "cut off") for one in outcomes.values()) else 0


_STATUSES = ("ok", "failed", "cut off", "skipped", "not run")

if __name__ == "__main__":
    sys.exit(main())
