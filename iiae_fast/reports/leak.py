"""Do the exclusive codes know which pair they come from? They should find a partner no better than chance."""

from __future__ import annotations

__all__ = ["Leak", "leak"]

import math
from dataclasses import dataclass

SIGNIFICANCE = 0.01


@dataclass(frozen=True)
class Leak:
    """Recall@1 of one direction against guessing.

    Attributes:
        hits: Queries whose nearest row was their partner.
        pairs: Queries, and rows to choose from.
        p_value: Chance of at least so many hits if each query guessed: P(X ≥ hits) for X ~ Binomial(pairs, 1/pairs).
    """

    hits: int
    pairs: int
    p_value: float

    @property
    def recall(self) -> float:
        """Share of hits."""
        return self.hits / self.pairs

    @property
    def within_noise(self) -> bool:
        """Whether guessing gives as much in at least 1 % of all cases."""
        return self.p_value >= SIGNIFICANCE

    @property
    def statement(self) -> str:
        """In words."""
        found = f"{self.hits} of {self.pairs:,} partners found, guessing finds 1 on average"
        if self.within_noise:
            return f"{found}: within binomial noise (p = {self.p_value:.2g})"
        return f"{found}: above binomial noise (p = {self.p_value:.1e}), the code carries some of what is shared"


def leak(recall: float, pairs: int) -> Leak:
    """Judge a recall@1.

    Args:
        recall: Share of queries that found their partner first.
        pairs: How many queries there were, each choosing among as many rows.
    """
    hits = round(recall * pairs)
    return Leak(hits, pairs, _upper_tail(hits, pairs))


def _upper_tail(hits: int, count: int) -> float:
    """P(X ≥ hits) for X ~ Binomial(count, 1/count)."""
    if hits == 0 or count == 1:
        return 1.0
    log_p, log_q = -math.log(count), math.log1p(-1 / count)
    total = 0.0
    for k in range(hits, count + 1):
        choose = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        term = math.exp(choose + k * log_p + (count - k) * log_q)
        total += term
        if term < 1e-17 * total:  # the terms fall faster than geometrically above the mean of 1
            break
    return min(total, 1.0)
