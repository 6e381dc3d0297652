"""Sampling in rounds, the interval of a median, memory."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter

import numpy as np
import pytest
import torch

from iiae_fast.bench.timing import CpuClock, Plan, Timed, measure, median_interval, peak_memory


class ScriptedClock:
    """Gives what each call returns as its seconds, and remembers who was sampled."""

    def __init__(self) -> None:
        self.order: list[float] = []

    def prepare(self, call) -> Timed:
        return Timed(call)

    def seconds(self, timed: Timed) -> float:
        value = timed.run()
        self.order.append(value)
        return value


def test_rounds_sample_everyone_once_in_changing_order() -> None:
    clock = ScriptedClock()
    timed = {str(value): Timed(lambda value=value: value) for value in (1.0, 2.0, 3.0)}
    timings = measure(timed, clock, Plan(relative_error=0.0, seconds=0.0, min_rounds=20))
    rounds = [tuple(clock.order[i : i + 3]) for i in range(0, 60, 3)]
    assert all(Counter(one) == Counter((1.0, 2.0, 3.0)) for one in rounds)
    assert len(set(rounds)) > 3
    assert [len(timing.samples) for timing in timings.values()] == [20, 20, 20]


def test_stops_when_every_median_is_known_well_enough() -> None:
    steady, noisy = itertools.repeat(1.0), itertools.cycle((1.0, 1.5))
    timed = {"steady": Timed(lambda: next(steady)), "noisy": Timed(lambda: next(noisy))}
    plan = Plan(relative_error=0.01, seconds=60.0, min_rounds=5, max_rounds=80)
    timings = measure({"steady": timed["steady"]}, ScriptedClock(), plan)
    assert len(timings["steady"].samples) == 5
    assert timings["steady"].precise
    timings = measure(timed, ScriptedClock(), plan)
    assert [len(timing.samples) for timing in timings.values()] == [80, 80]
    assert not timings["noisy"].precise
    assert timings["noisy"].relative_error == pytest.approx(0.2)


def test_time_that_is_up_ends_rounds_but_not_before_the_least() -> None:
    def slow() -> float:
        time.sleep(0.02)
        return 1.0

    noise = itertools.count()
    timed = {"slow": Timed(slow), "noisy": Timed(lambda: 1.0 + next(noise))}
    timings = measure(timed, ScriptedClock(), Plan(relative_error=0.0, seconds=0.01, min_rounds=4))
    assert len(timings["slow"].samples) == 4


def test_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    for n in (6, 9, 30, 101):
        drawn = random.exponential(size=(2000, n))
        hits = [low <= math.log(2) <= high for low, high in map(median_interval, drawn.tolist())]
        assert 0.94 <= np.mean(hits) <= 1.0, n
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_cpu_clock_measures_a_sleep_and_averages_what_is_short() -> None:
    clock = CpuClock()
    slow = clock.prepare(lambda: time.sleep(0.01))
    assert slow.loops == 1
    assert 0.01 <= clock.seconds(slow) < 1.0
    assert clock.prepare(lambda: None).loops > 100
    assert CpuClock(cold=True).prepare(lambda: None).loops == 1


def test_peak_memory_is_what_a_call_adds() -> None:
    size = 64 << 20
    found = peak_memory(lambda: torch.ones(size, dtype=torch.uint8).max(), "cpu")
    if found is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert 0.9 * size <= found <= 2 * size
