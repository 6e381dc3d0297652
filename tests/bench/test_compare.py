"""Verdicts: from samples whose truth is known, and never from a single run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bench_fakes import write_timing, writer

from iiae_fast.bench.command import main
from iiae_fast.bench.compare import compare, compare_samples, speedup
from iiae_fast.bench.results import read
from iiae_fast.errors import InputError

RECORDED = Path(__file__).parent / "recorded"  # by record_runs.py


def runs(random: np.random.Generator, spread: float, factor: float = 1.0, count: int = 3) -> list[list[float]]:
    """Runs whose medians vary by ``spread``, with skewed samples within."""
    middles = factor * np.exp(random.normal(0, spread, count))
    return [list(middle * np.exp(np.abs(random.normal(0, 0.03, 20)))) for middle in middles]


@pytest.mark.parametrize("spread", [0.005, 0.02, 0.05])
def test_equal_code_is_rarely_called_different(spread: float) -> None:
    random = np.random.default_rng(1)
    found = [compare_samples(runs(random, spread), runs(random, spread))[0] for _ in range(60)]
    assert found.count("faster") + found.count("slower") <= 6  # a chance of 5 % would exceed it once in 28
    assert spread > 0.01 or found.count("same") == 60


def test_a_real_difference_is_found_where_runs_agree_well_enough() -> None:
    random = np.random.default_rng(2)
    found = [compare_samples(runs(random, 0.01), runs(random, 0.01, 1.1))[0] for _ in range(30)]
    assert found.count("slower") == 30
    low, high = compare_samples(runs(random, 0.01), runs(random, 0.01, 1.1))[2:]
    assert low < 1.1 < high


def test_recorded_runs_of_the_same_code_are_the_same() -> None:
    (found,) = compare(read([RECORDED / "first.jsonl"]), read([RECORDED / "again.jsonl"]))
    assert found.verdict == "same"
    assert found.low < 1 < found.high


def test_recorded_runs_slowed_by_a_tenth_are_slower() -> None:
    for name in ("first", "again"):
        (found,) = compare(read([RECORDED / f"{name}.jsonl"]), read([RECORDED / "slowed.jsonl"]))
        assert found.verdict == "slower"
        assert found.low < 1.1 < found.high
        (back,) = compare(read([RECORDED / "slowed.jsonl"]), read([RECORDED / f"{name}.jsonl"]))
        assert back.verdict == "faster"


def test_a_single_run_decides_nothing() -> None:
    random = np.random.default_rng(4)
    for factor in (1.0, 1.1, 3.0):
        assert compare_samples(runs(random, 0.01), runs(random, 0.01, factor, count=1))[0] == "unclear"
        assert compare_samples(runs(random, 0.01, count=1), runs(random, 0.01, factor))[0] == "unclear"


def test_speedup_is_paired_by_round_and_so_free_of_drift() -> None:
    random = np.random.default_rng(3)
    drift = [np.exp(random.normal(0, 0.5, 30)) for _ in range(3)]
    ours, rival = [list(one) for one in drift], [list(2.5 * one) for one in drift]
    assert speedup(ours, rival) == pytest.approx((2.5, 2.5, 2.5))
    noisy = [list(np.asarray(one) * np.exp(random.normal(0, 0.02, 30))) for one in rival]
    ratio, low, high = speedup(ours, noisy)
    assert 2.4 < low < ratio < high < 2.6
    assert low < 2.5 < high


def test_command_says_it_and_names_what_it_cannot_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, factor in (("a", 1.0), ("b", 1.2)):
        for run in range(3):
            out = writer(tmp_path / f"{name}.jsonl", f"{name}{run}", device=f"Machine {name}")
            write_timing(out, "reference", [factor * (1 + 0.001 * sample) for sample in range(9)])
            write_timing(out, "eager", [1 + 0.001 * sample for sample in range(9)])
    assert main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 0
    text = capsys.readouterr().out
    assert "A was measured on Machine a, B on Machine b" in text
    assert "slower    1.200 ×" in text
    assert "1 timings: 1 slower, 0 faster, 0 same, 0 unclear" in text
    assert main(["compare", "--all", "--json", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 0
    assert [one["verdict"] for one in json.loads(capsys.readouterr().out)] == ["slower", "same"]
    writer(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="no timing in common"):
        main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "empty.jsonl")])
    with pytest.raises(InputError, match="no such file"):
        main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "nothing")])
