"""The leak judgement against scipy-free oracles: exact sums in rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest

from iiae_fast.reports.leak import leak


def exact_tail(hits: int, count: int) -> Fraction:
    p = Fraction(1, count)
    return sum((comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(hits, count + 1)), Fraction(0))


@pytest.mark.parametrize(
    ("hits", "count"), [(0, 360), (1, 360), (3, 360), (5, 360), (11, 360), (1, 1), (2, 2), (40, 40), (7, 50)]
)
def test_p_value_is_the_binomial_upper_tail(hits: int, count: int) -> None:
    assert leak(hits / count, count).p_value == pytest.approx(float(exact_tail(hits, count)), rel=1e-9)


def test_hits_come_back_from_the_share() -> None:
    for hits in range(361):
        assert leak(hits / 360, 360).hits == hits


def test_judgement_turns_where_guessing_becomes_unlikely() -> None:
    assert leak(4 / 10_000, 10_000).within_noise  # P(X >= 4) = 1.9 %
    assert not leak(5 / 10_000, 10_000).within_noise  # P(X >= 5) = 0.4 %
    assert "within binomial noise" in leak(1 / 360, 360).statement
    assert "above binomial noise" in leak(40 / 360, 360).statement
