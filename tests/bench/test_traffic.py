"""Counted memory traffic: the counters count, and the kernels move what they promise."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from iiae_fast import kernels
from iiae_fast.bench.traffic import SECTOR, count, counted_accesses
from iiae_fast.kernels._registry import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="accesses are recorded in Triton's interpreter")


@pytest.fixture(scope="module")
def rows():
    return {row.operation.split(",")[0]: row for row in count(quick=True)}


def test_reconstruction_moves_five_bytes_a_value(rows) -> None:
    row = rows["reconstruction"]
    assert row.must == pytest.approx(5.0, abs=0.01)  # two in, one in, two out
    assert row.must <= row.ours <= 5.2
    assert row.eager > 4 * row.ours


def test_latents_move_what_they_must(rows) -> None:
    row = rows["iiae_latents"]
    assert row.must <= row.ours <= 1.02 * row.must
    assert row.eager > 4 * row.ours


def test_end_of_the_loss_is_counted_too(rows) -> None:
    assert rows["elbo"].must <= rows["elbo"].ours <= 1.05 * rows["elbo"].must


def test_scattered_accesses_cost_whole_sectors() -> None:
    dense = torch.randn(1, 4096)
    scattered = torch.randn(1, 4096, SECTOR)[..., 0]

    def moved(prediction: torch.Tensor) -> int:
        with counted_accesses() as accesses:
            kernels.reconstruction(prediction, dense, "laplace", backend="triton")
        return accesses.bytes

    assert moved(scattered) - moved(dense) == 4096 * (SECTOR - 4)


def test_counting_ends_with_its_block() -> None:
    with counted_accesses() as accesses:
        pass
    kernels.philox_normal((8,), 0, device="cpu", backend="triton")
    assert accesses.bytes == 0
