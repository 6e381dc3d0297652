"""One pass over a suite in a process of its own: check every contestant, refuse what is wrong, time the rest.

    python -m iiae_fast.bench.worker --suite kernels --file results.jsonl [--device cuda] [--quick] …

``iiae bench`` starts it; results go to the file line by line.
"""

from __future__ import annotations

__all__ = ["PROBLEMS", "main", "run_case", "run_suite"]

import argparse
import gc
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iiae_fast.bench.environment import cores, describe_run
from iiae_fast.bench.registry import SUITES, Call, Case, Contestant, Ready, Settings, Unavailable, cases_of
from iiae_fast.bench.results import Writer, quantiles
from iiae_fast.bench.timing import Clock, CpuClock, CudaClock, Plan, Timed, Timing, measure, peak_memory

PROBLEMS = 3
"""Exit code of a pass that ran to its end but in which something was refused or failed; the file says what."""

TOY = Plan(seconds=0.0, min_rounds=1)
QUICK = Plan(relative_error=0.05, seconds=1.0, min_rounds=3)
FULL = Plan(relative_error=0.02, seconds=10.0)


@dataclass(frozen=True)
class _Entrant:
    """A contestant that passed the gate."""

    contestant: Contestant
    call: Call
    peak_memory: int | None


def run_suite(suite: str, settings: Settings, plan: Plan, writer: Writer, against: Sequence[str] = ()) -> None:
    """Measure every case of a suite; a benchmark that raises is recorded, and the next one follows."""
    for benchmark in SUITES[suite]:
        try:
            for case in cases_of(benchmark, settings):
                run_case(suite, benchmark, case, settings, plan, writer, against)
                del case
                _free(settings)
                if settings.toy:
                    break
        except Exception as error:
            traceback.print_exc()
            writer.fact("failure", {"suite": suite, "what": benchmark, "reason": _describe(error)})


def run_case(
    suite: str,
    benchmark: str,
    case: Case,
    settings: Settings,
    plan: Plan,
    writer: Writer,
    against: Sequence[str] = (),
) -> None:
    """The gate, then the clock, for one case; every contestant leaves at least one line.

    Args:
        suite, benchmark: Where the case belongs.
        case: To measure.
        settings: Device, seed.
        plan: How much to measure.
        writer: Takes the lines.
        against: Rivals by name; empty means all.
    """
    common = {
        "suite": suite,
        "benchmark": benchmark,
        "case": case.name,
        "bytes": case.work.bytes,
        "flops": case.work.flops,
        "items": case.work.items,
        "unit": case.work.unit,
        "matmul": case.work.matmul,
        "parameters": dict(case.parameters),
    }
    entrants = {}
    for contestant in case.contestants:
        if against and not contestant.ours and contestant.name not in against:
            continue
        status, reason, call = _admit(case, contestant)
        if call is None:
            _unmeasured(writer, common, contestant, status, reason)
        else:
            entrants[contestant.name] = _Entrant(contestant, call, peak_memory(call, settings.device))
    for cache, launch, clock in _conditions(case, settings) if entrants else ():
        timed: dict[str, Timed] = {}
        for name, entrant in entrants.items():
            try:
                timed[name] = clock.prepare(entrant.call)
            except Exception as error:
                _unmeasured(writer, common, entrant.contestant, "failed", _describe(error), cache, launch)
        for name, timing in measure(timed, clock, plan, settings.seed).items():
            entrant = entrants[name]
            memory = {"peak_memory": entrant.peak_memory}
            _measured(writer, common | memory, entrant.contestant, timing, cache, launch)
        del clock, timed
    say(f"  {case.name}")


def _admit(case: Case, contestant: Contestant) -> tuple[str, str, Call | None]:
    """Status, reason, and the call, which is None unless its result is right."""
    try:
        made = contestant.make()
        ready = made if isinstance(made, Ready) else Ready(made, made)
        result = ready.probe()
        problem = (contestant.check or case.check)(result)
        del result
        if problem:
            return "refused", problem, None
        if ready.probe is not ready.call:
            ready.call()
        return "measured", "", ready.call
    except Unavailable as error:
        return "skipped", str(error), None
    except Exception as error:
        traceback.print_exc()
        return "failed", _describe(error), None


def _conditions(case: Case, settings: Settings) -> list[tuple[str, str, Clock]]:
    """Cache, launch and the clock that makes them so."""
    caches = (("hot", False), ("cold", True)) if case.cold else (("hot", False),)
    if settings.device == "cpu":
        return [(name, "n/a", CpuClock(cold)) for name, cold in caches]
    launches = (("included", False), ("replay", True)) if case.replay else (("included", False),)
    return [(name, launch, CudaClock(cold, replay)) for name, cold in caches for launch, replay in launches]


def _measured(writer: Writer, common: dict[str, Any], contestant: Contestant, timing: Timing, cache: str, launch: str) -> None:
    writer.timing(
        **common,
        contestant=contestant.name,
        ours=contestant.ours,
        status="measured",
        reason="",
        cache=cache,
        launch=launch,
        samples=[float(f"{sample:.5g}") for sample in timing.samples],
        calls=timing.calls,
        **quantiles(timing.samples),
        relative_error=round(timing.relative_error, 5),
        precise=timing.precise,
    )


def _unmeasured(
    writer: Writer,
    common: dict[str, Any],
    contestant: Contestant,
    status: str,
    reason: str,
    cache: str = "n/a",
    launch: str = "n/a",
) -> None:
    empty = dict.fromkeys(("calls", "p20", "p50", "p80", "relative_error", "precise", "peak_memory"))
    names = {"contestant": contestant.name, "ours": contestant.ours, "status": status, "reason": reason}
    writer.timing(**common, **names, cache=cache, launch=launch, samples=[], **empty)
    say(f"  {contestant.name} {status}: {reason}")


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]


def _free(settings: Settings) -> None:
    gc.collect()
    if settings.device == "cuda":
        import torch

        torch.cuda.empty_cache()


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """One pass."""
    parser = argparse.ArgumentParser(prog="python -m iiae_fast.bench.worker", description="One pass over a suite.")
    parser.add_argument("--suite", required=True, choices=[*SUITES, "limits"])
    parser.add_argument("--file", required=True, type=Path)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", nargs="*", default=[])
    parser.add_argument("--command", default="")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(options.threads)
    settings = Settings(options.device, options.quick or options.toy, options.threads, options.seed, options.toy)
    writer = Writer(options.file, describe_run(settings, options.command))
    if options.suite == "limits":
        from iiae_fast.bench.limits import measure_limits

        writer.fact("limits", measure_limits(settings))
        return 0
    plan = TOY if settings.toy else QUICK if settings.quick else FULL
    run_suite(options.suite, settings, plan, writer, options.against)
    return PROBLEMS if writer.problems else 0


if __name__ == "__main__":
    sys.exit(main())
