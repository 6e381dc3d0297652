"""Search against the oracle, bit for bit."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import oracle
import pytest
import torch
from cases import Case, cases, make_case
from hypothesis import given, settings
from hypothesis import strategies as st

from iiae_fast import _C
from iiae_fast.retrieval import METRICS, FlatIndex, evaluate, search

METHODS = ("brute_force", "int8", "int16", "float32", "auto")


def check(case: Case) -> None:
    """Assert that the engine returns what the oracle does, by every method on every instruction set of this machine."""
    index = FlatIndex(case.rows, case.metric)
    expected = oracle.search(case.exact_queries, case.exact_rows, case.k, case.metric, case.permitted)
    best = _C.instruction_set()
    try:
        for instruction_set in _C.instruction_sets():
            _C.select_instruction_set(instruction_set)
            for method in METHODS:
                _C.select_method(method)
                hits = index.search(case.queries, case.k, allowed=case.permitted, threads=case.threads)
                where = f"{method} on {instruction_set}"
                np.testing.assert_array_equal(np.asarray(hits.indices), expected[1], where)
                np.testing.assert_array_equal(np.asarray(hits.distances), expected[0], where)
        _C.select_method("int8")
        database = index._database  # as it is after many searches of few queries in a large database
        database._packed = [_C.PackedRows(piece, database.engine_dtype, case.metric, 2) for piece in database._pieces]
        hits = index.search(case.queries, case.k, allowed=case.permitted, threads=case.threads)
        np.testing.assert_array_equal(np.asarray(hits.indices), expected[1], "packed")
        np.testing.assert_array_equal(np.asarray(hits.distances), expected[0], "packed")
    finally:
        _C.select_instruction_set(best)
        _C.select_method("auto")


CASES = int(os.environ.get("IIAE_SEARCH_CASES", "300"))


@settings(max_examples=CASES, deadline=None)
@given(cases())
def test_equals_oracle(case: Case) -> None:
    check(case)


@settings(max_examples=CASES // 15, deadline=None)
@given(cases(max_rows=2000, max_dim=20))
def test_equals_oracle_many_rows(case: Case) -> None:
    check(case)


@settings(max_examples=CASES // 15, deadline=None)
@given(cases(max_rows=40, max_dim=1500))
def test_equals_oracle_many_columns(case: Case) -> None:
    check(case)


@settings(max_examples=CASES // 15, deadline=None)
@given(cases(min_rows=800, max_rows=2500, max_dim=24), st.integers(100, 200))
def test_equals_oracle_where_rows_are_sampled(case: Case, k: int) -> None:
    """From k = 100 on, in at least 4 k rows, the scan starts from a guess by a sample."""
    check(dataclasses.replace(case, k=k))


def test_a_sampled_row_is_not_found_twice() -> None:
    """Bounds so wide that the sample's candidates are measured at once: they came up again in the scan that follows."""
    check(make_case(166, "gaussian_kl", ("float32", "float32"), (1306, 10, 7), 1))


def test_searches_of_few_queries_switch_to_packed_rows() -> None:
    """A recurring small search gives the same before and after the index packs its rows, and after rows are added."""
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(20000, 64)).astype(np.float32), rng.normal(size=(3, 64)).astype(np.float32)
    index = FlatIndex(rows[:17000])
    mask = rng.random(17000) < 0.5
    for _ in range(5):
        hits = index.search(queries, 9, allowed=mask)
        np.testing.assert_array_equal(hits.indices, search(queries, rows[:17000], 9, allowed=mask).indices)
    assert index._database._packed[0] is not None
    index.add(rows[17000:])
    expected = oracle.search(queries, rows, 9, "sqeuclidean")
    for _ in range(2):
        hits = index.search(queries, 9)
        np.testing.assert_array_equal(hits.indices, expected[1])
        np.testing.assert_array_equal(hits.distances, expected[0])


def test_packed_rows_of_another_array_are_refused() -> None:
    rows = np.eye(4, dtype=np.float32)
    packed = _C.PackedRows(rows, "float32", "sqeuclidean", 1)
    searcher = _C.Searcher(rows, "float32", "cosine", 1, 1)
    with pytest.raises(ValueError, match="another array or metric"):
        searcher.scan(rows, "float32", 0, None, None, None, packed)
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    packed, searcher = _C.PackedRows(rows[:2], "float32", "sqeuclidean", 1), _C.Searcher(rows, "float32", "sqeuclidean", 1, 1)
    with pytest.raises(ValueError, match="another array or metric"):
        searcher.scan(rows[::2], "float32", 0, None, None, None, packed)


def test_a_guess_that_does_not_hold() -> None:
    """The first strip of the scan, every third row here, is nearer than all others: its cost at a rank says nothing."""
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(3000, 16)).astype(np.float32), rng.normal(size=(5, 16)).astype(np.float32)
    rows[::3] *= 0.01
    check(Case(queries, rows, queries, rows, "sqeuclidean", 1500, None, 2))


def test_costs_bounded_on_one_side_only() -> None:
    """Intervals as wide as fp32 reaches, some from -inf to a finite cost, none to inf: once a point in them was NaN."""
    rng = np.random.default_rng(0)
    queries, rows = np.zeros((16, 8)), np.zeros((2000, 8))
    # KL's products are up to m_q^2 / (2 v_x), and errors are steps of int8: both are as large here as accepted means allow.
    queries[:, 0] = 9.5e15
    queries[:, 1:4] = 9.5e15 * np.sqrt((rng.integers(0, 3, (16, 3)) + 0.49) / 127)
    wide = rng.random(len(rows)) < 0.1
    rows[:, 4:] = -14
    rows[wide, 4] = 9
    scale = np.where(wide, rng.uniform(0.7, 0.88, len(rows)) * 1.4e8, 5e7)
    signs = rng.choice([-1, 1], (len(rows), 4)) * rng.uniform(0.98, 1, (len(rows), 4))
    rows[:, :4] = scale[:, None] * signs * np.exp(rows[:, 4:])
    rows[wide, 0] = rng.normal(size=wide.sum())
    check(Case(queries, rows, queries, rows, "gaussian_kl", 300, None, 1))


def test_a_searcher_is_done_after_its_result() -> None:
    rows = np.eye(4, dtype=np.float32)
    searcher = _C.Searcher(rows, "float32", "cosine", 1, 1)
    searcher.scan(rows, "float32", 0, None, None, None)
    np.testing.assert_array_equal(searcher.result()[1], [[0], [1], [2], [3]])
    with pytest.raises(RuntimeError, match="after result"):
        searcher.scan(rows, "float32", 4, None, None, None)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("length", [1e-141, 1e-160, 1e-170, 1e-250])
def test_a_row_whose_squares_underflow(metric: str, length: float) -> None:
    """It lies nearly at the centre of the others, and is the nearest of all."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(400, 64))
    rows = np.concatenate([np.stack([half, -half], 1).reshape(800, 64), np.sign(rng.normal(size=(1, 64))) * length])
    queries = -0.3 * np.sign(rows[800]) + 0.05 * rng.normal(size=(8, 64))
    check(Case(queries, rows, queries, rows, metric, 3, None, 2))


def test_the_callers_floating_point_mode_does_not_matter() -> None:
    """fp16 goes through subnormal fp32 on its way to float64, and small distances end there."""
    rng = np.random.default_rng(0)
    both = (rng.normal(size=(305, 16)) * 2e-5).astype(np.float16), (rng.normal(size=(305, 16)) * 1e-20).astype(np.float32)
    expected = [oracle.search(one[300:], one[:300], 3, "sqeuclidean") for one in both]
    assert torch.set_flush_denormal(True) or not _C.instruction_set().startswith("avx")
    try:
        found = [search(one[300:], one[:300], 3, threads=2) for one in both]
        labels = np.arange(5) % 2
        measures = evaluate(both[0][300:], both[0][:300], labels, np.arange(300) % 2)
    finally:
        torch.set_flush_denormal(False)
    for hits, (distances, indices) in zip(found, expected):
        np.testing.assert_array_equal(hits.indices, indices)
        np.testing.assert_array_equal(hits.distances, distances)
    assert measures == evaluate(both[0][300:], both[0][:300], labels, np.arange(300) % 2)


def test_unknown_instruction_set_and_method() -> None:
    with pytest.raises(ValueError, match=r"'sse9' is not available here; available are .*scalar"):
        _C.select_instruction_set("sse9")
    with pytest.raises(ValueError, match="'guess' is not known"):
        _C.select_method("guess")


@pytest.mark.parametrize("metric", METRICS)
def test_textbook_values(metric: str) -> None:
    """The metrics against their definitions, with library functions where there are some."""
    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(50, 8)), rng.normal(size=(4, 8))
    mq, mx, lq, lx = q[:, None, :4], x[:, :4], q[:, None, 4:], x[:, 4:]
    expected = {
        "sqeuclidean": lambda: torch.cdist(torch.tensor(q), torch.tensor(x)).numpy() ** 2,
        "euclidean": lambda: torch.cdist(torch.tensor(q), torch.tensor(x)).numpy(),
        "inner_product": lambda: q @ x.T,
        "cosine": lambda: 1 - torch.cosine_similarity(torch.tensor(q)[:, None], torch.tensor(x), dim=-1).numpy(),
        "gaussian_kl": lambda: (
            torch.distributions.kl_divergence(
                torch.distributions.Normal(torch.tensor(mq), torch.tensor(np.exp(lq / 2))),
                torch.distributions.Normal(torch.tensor(mx), torch.tensor(np.exp(lx / 2))),
            )
            .sum(-1)
            .numpy()
        ),
        "gaussian_w2": lambda: ((mq - mx) ** 2).sum(-1) + ((np.exp(lq / 2) - np.exp(lx / 2)) ** 2).sum(-1),
    }[metric]()
    hits = search(q, x, 50, metric=metric)
    np.testing.assert_allclose(hits.distances, np.take_along_axis(expected, hits.indices, axis=1), rtol=1e-6)
    steps = np.diff(hits.distances, axis=1)
    assert (steps <= 0).all() if metric == "inner_product" else (steps >= 0).all()
    assert hits.distances.dtype == np.float32
    assert hits.indices.dtype == np.int64


def test_ties_go_to_the_lowest_index() -> None:
    rows = np.zeros((100, 3), np.float32)
    for metric in ("sqeuclidean", "inner_product", "cosine"):
        np.testing.assert_array_equal(search(rows[:2], rows, 100, metric=metric).indices, [np.arange(100)] * 2)


def test_ties_after_rounding_go_to_the_lowest_index() -> None:
    """Distances that differ in float64 but not in fp32 are equal."""
    rows = np.array([[1.0 + 1e-12], [1.0]])
    np.testing.assert_array_equal(search(np.zeros((1, 1)), rows, 2).indices, [[0, 1]])


def test_zero_vectors_have_cosine_distance_one() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    hits = search(np.array([[1.0, 0.0], [0.0, 0.0]]), rows, 3, metric="cosine")
    np.testing.assert_array_equal(hits.distances, [[0, 1, 2], [1, 1, 1]])
    np.testing.assert_array_equal(hits.indices, [[1, 0, 2], [0, 1, 2]])


def test_cosine_of_extreme_float64_rows() -> None:
    """Norms that overflow or underflow float64 don't disturb the angle."""
    rows = np.array([[1e300, 1e300], [1e-300, 0.0], [3e-320, 0.0]])
    hits = search(np.array([[2e-310, 0.0]]), rows, 3, metric="cosine")
    np.testing.assert_array_equal(hits.indices, [[1, 2, 0]])
    np.testing.assert_allclose(hits.distances, [[0, 0, 1 - 2**-0.5]], rtol=1e-6)


def test_strided_and_mixed_inputs() -> None:
    rng = np.random.default_rng(1)
    wide = rng.normal(size=(60, 14)).astype(np.float32)
    queries = rng.normal(size=(7, 5)).astype(np.float16)
    expected = oracle.search(queries, wide[::3, ::2][:, :5], 4, "sqeuclidean")
    for rows in (wide[::3, ::2][:, :5], np.asfortranarray(wide[::3, ::2][:, :5]), wide[::3, ::2][:, :5].astype(">f4")):
        hits = search(queries, rows, 4)
        np.testing.assert_array_equal(hits.indices, expected[1])
        np.testing.assert_array_equal(hits.distances, expected[0])
    flipped = search(queries[::-1], wide[::-1][:, :5], 2)
    np.testing.assert_array_equal(flipped.indices, oracle.search(queries[::-1], wide[::-1][:, :5], 2, "sqeuclidean")[1])


def test_unaligned_rows() -> None:
    buffer = np.zeros(4 * 12 + 1, np.uint8)
    rows = buffer[1:].view(np.float32).reshape(4, 3)
    rows[...] = np.arange(12).reshape(4, 3)
    np.testing.assert_array_equal(search(rows[2:3].copy(), rows, 1).indices, [[2]])


def test_masks() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(30, 6)).astype(np.float32)
    index = FlatIndex(rows)
    one = rng.random(30) < 0.5
    each = rng.random((30, 30)) < 0.5
    for mask in (one, each, np.asfortranarray(each), each[:, ::-1]):
        full = np.broadcast_to(mask, (30, 30))
        for given_as, permitted in (({"allowed": mask}, full), ({"exclude": mask}, ~full)):
            hits = index.search(rows, 9, **given_as)
            expected = oracle.search(rows, rows, 9, "sqeuclidean", permitted)
            np.testing.assert_array_equal(hits.indices, expected[1])
            np.testing.assert_array_equal(hits.distances, expected[0])
    both = index.search(rows, 5, allowed=one, exclude=each)
    np.testing.assert_array_equal(both.indices, oracle.search(rows, rows, 5, "sqeuclidean", one & ~each)[1])
    others = index.search(rows, 29, exclude="self")
    expected = oracle.search(rows, rows, 29, "sqeuclidean", ~np.eye(30, dtype=bool))
    np.testing.assert_array_equal(others.indices, expected[1])
    np.testing.assert_array_equal(index.search(rows[4:6], 1, exclude=np.array([4, -1])).indices[1], [5])
    assert index.search(rows[4:6], 1, exclude=np.array([4, -1])).indices[0] != 4


def test_too_few_allowed_rows_are_filled_up() -> None:
    rows = np.eye(4, dtype=np.float32)
    allowed = np.array([False, True, False, False])
    hits = search(rows[:2], rows, 3, allowed=allowed)
    np.testing.assert_array_equal(hits.indices, [[1, -1, -1]] * 2)
    np.testing.assert_array_equal(hits.distances[:, 1:], np.inf)
    hits = search(rows[:2], rows, 3, metric="inner_product", allowed=allowed)
    np.testing.assert_array_equal(hits.distances[:, 1:], -np.inf)


def test_no_queries() -> None:
    hits = search(np.zeros((0, 3), np.float32), np.zeros((5, 3), np.float32), 2)
    assert hits.distances.shape == hits.indices.shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int8])
def test_torch_in_torch_out(dtype: torch.dtype) -> None:
    rows = (torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 30).to(dtype)
    hits = search(rows[:3], rows, 2)
    assert isinstance(hits.indices, torch.Tensor)
    assert hits.indices.dtype == torch.int64
    assert hits.distances.dtype == torch.float32
    assert hits.indices.device == rows.device
    assert hits.distances[:, 0].tolist() == [0, 0, 0]


def test_tensors_that_need_grad() -> None:
    rows = torch.randn(5, 4, requires_grad=True)
    assert search(rows, rows, 1).indices.flatten().tolist() == [0, 1, 2, 3, 4]


def test_index_owns_its_rows() -> None:
    rows = np.eye(3, dtype=np.float32)
    index = FlatIndex(rows)
    rows[...] = 7
    np.testing.assert_array_equal(index.search(np.eye(3, dtype=np.float32), 1).distances, 0)
