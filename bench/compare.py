"""Whether one set of runs is faster than another: never from a single run, and never without an interval.

A run is one process. Times within a run vary little and all together: two processes of the same code differ by memory layout,
clocks and neighbours, so runs, not samples, are what a verdict counts. The statistic is the geometric mean over runs of the
median time; its 95 % interval comes from a bootstrap that draws runs, then samples within each drawn run. Few runs make a
bootstrap too sure of itself, so its spread is widened as Student's t prescribes for their number.
"""

from __future__ import annotations

__all__ = ["MIN_RUNS", "TOLERANCE", "Comparison", "compare", "compare_samples", "speedup", "table"]

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iiae_fast.bench.results import Results, key

MIN_RUNS = 3
TOLERANCE = 0.05
_DRAWS = 1000

Runs = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Comparison:
    """Of B with A.

    Attributes:
        key: Suite, benchmark, case, contestant, cache, launch.
        verdict: ``"faster"``, ``"slower"``, ``"same"`` or ``"unclear"``.
        ratio: Time of B over time of A.
        low, high: Its 95 % interval; both equal ``ratio`` where a side has one run, which has none.
        runs: Of A and of B.
    """

    key: tuple[str, ...]
    verdict: str
    ratio: float
    low: float
    high: float
    runs: tuple[int, int]


def compare(a: Results, b: Results, tolerance: float = TOLERANCE, seed: int = 0) -> list[Comparison]:
    """Every timing that both have measured, in the order of A."""
    before, after = _by_key(a), _by_key(b)
    found = []
    for name in before:
        if name in after:
            verdict, ratio, low, high = compare_samples(before[name], after[name], tolerance, seed)
            found.append(Comparison(name, verdict, ratio, low, high, (len(before[name]), len(after[name]))))
    return found


def compare_samples(a: Runs, b: Runs, tolerance: float = TOLERANCE, seed: int = 0) -> tuple[str, float, float, float]:
    """Verdict, ratio of time b / a, and the ends of its interval.

    Args:
        a, b: Samples by run, in seconds.
        tolerance: Relative difference that nobody would care about.
        seed: Of the bootstrap.

    "faster" or "slower": the interval lies on one side of 1 and not wholly within the tolerance, and every run of the one beats
    every run of the other. "same": the interval lies wholly within the tolerance. Else, or with fewer than ``MIN_RUNS`` runs on
    a side, "unclear".
    """
    medians_a, medians_b = ([float(np.median(run)) for run in runs] for runs in (a, b))
    ratio = float(np.exp(np.mean(np.log(medians_b)) - np.mean(np.log(medians_a))))
    if min(len(a), len(b)) < MIN_RUNS:
        return "unclear", ratio, ratio, ratio
    random = np.random.default_rng(seed)
    low, high = _interval(ratio, _bootstrap(b, random) - _bootstrap(a, random), min(len(a), len(b)), len(a) + len(b) - 2)
    if 1 / (1 + tolerance) <= low and high <= 1 + tolerance:
        return "same", ratio, low, high
    if low > 1 and min(medians_b) > max(medians_a):
        return "slower", ratio, low, high
    if high < 1 and max(medians_b) < min(medians_a):
        return "faster", ratio, low, high
    return "unclear", ratio, low, high


def _interval(ratio: float, draws: NDArray[np.float64], runs: int, freedom: int) -> tuple[float, float]:
    """95 % interval from draws of the log ratio, widened for few runs.

    A bootstrap over n runs underestimates their variance by the factor (n − 1)/n, and takes it for known.
    """
    widening = _student(freedom) / 1.96 * math.sqrt(runs / (runs - 1))
    low, high = np.quantile(draws, (0.025, 0.975))
    middle = math.log(ratio)
    return math.exp(middle - widening * max(0.0, middle - low)), math.exp(middle + widening * max(0.0, high - middle))


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun, 26.7.5; by table where that is off)."""
    if freedom <= 4:
        return (12.706, 4.303, 3.182, 2.776)[freedom - 1]
    z = 1.95996
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _bootstrap(runs: Runs, random: np.random.Generator) -> NDArray[np.float64]:
    """Draws of the mean log median."""
    medians = np.stack([_medians(np.asarray(run, np.float64), random) for run in runs])  # (runs, draws)
    chosen = random.integers(len(runs), size=(len(runs), _DRAWS))
    column = random.permuted(np.broadcast_to(np.arange(_DRAWS), chosen.shape), axis=1)  # a run drawn twice is drawn anew
    means: NDArray[np.float64] = np.log(medians[chosen, column]).mean(axis=0)
    return means


def _medians(samples: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    drawn = samples[random.integers(len(samples), size=(_DRAWS, len(samples)))]
    medians: NDArray[np.float64] = np.median(drawn, axis=1)
    return medians


def _by_key(results: Results) -> dict[tuple[str, ...], list[list[float]]]:
    """Samples by timing and run."""
    found: dict[tuple[str, ...], list[list[float]]] = {}
    for line in results.measured():
        found.setdefault(key(line), []).append(line["samples"])
    return found


def speedup(ours: Runs, rival: Runs, seed: int = 0) -> tuple[float, float, float]:
    """How many times faster ours is than a rival that was sampled in the same rounds, with its 95 % interval.

    Sample i of both was taken in the same round of the same run, so their ratio is free of what drifted between rounds. The
    estimate is the geometric mean over runs of the median ratio. A single run has no interval: its ends equal the estimate.
    """
    ratios = [np.asarray(theirs, np.float64) / np.asarray(mine, np.float64) for mine, theirs in zip(ours, rival, strict=True)]
    ratio = float(np.exp(np.mean([np.log(np.median(one)) for one in ratios])))
    if len(ratios) == 1:
        return ratio, ratio, ratio
    draws = _bootstrap([one.tolist() for one in ratios], np.random.default_rng(seed))
    return ratio, *_interval(ratio, draws, len(ratios), len(ratios) - 1)


def table(found: Sequence[Comparison]) -> list[str]:
    """Lines for people: one for each comparison, the undecided last, and a count."""
    order = {"slower": 0, "faster": 1, "same": 2, "unclear": 3}
    lines = []
    for one in sorted(found, key=lambda one: order[one.verdict]):
        suite, benchmark, case, contestant, cache, launch = one.key
        name = f"{suite} · {benchmark} · {case} · {contestant} · {cache}" + ("" if launch == "n/a" else f", {launch}")
        interval = f"[{one.low:.3f}, {one.high:.3f}]" if min(one.runs) >= MIN_RUNS else "no interval: a single run"
        lines.append(f"{one.verdict:8} {one.ratio:6.3f} × {interval:16}  {name}")
    counts = ", ".join(f"{sum(one.verdict == verdict for one in found)} {verdict}" for verdict in order)
    return [*lines, f"{len(found)} timings: {counts} (time of B over time of A, 95 % interval)"]
