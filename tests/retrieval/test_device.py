"""The CUDA engine against the oracle, bit for bit: emulated on the CPU, or on a device with IIAE_TEST_GPU=1."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from cases import Case, make_case, random_case
from emulation.runtime import Emulated, Stream
from paths import ROOT

from iiae_fast import _C
from iiae_fast.bench.registry import Ready, Settings
from iiae_fast.bench.retrieval_cuda import cases_on
from iiae_fast.errors import DeviceMemoryError, InputError
from iiae_fast.retrieval import METRICS, FlatIndex, Hits, device_database, evaluate, inputs, paired_recall, search
from iiae_fast.retrieval import device as module
from iiae_fast.retrieval.device_database import DeviceDatabase
from iiae_fast.retrieval.device_paths import select_method
from iiae_fast.retrieval.runtime import runtime_of

METHODS = ("brute_force", "int8", "auto")
needs_gpu = pytest.mark.skipif(os.environ.get("IIAE_TEST_GPU") != "1", reason="needs a CUDA device, and IIAE_TEST_GPU=1")
CASES = int(os.environ.get("IIAE_DEVICE_CASES", "200" if os.environ.get("IIAE_TEST_GPU") == "1" else "60"))


def put(values: object, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(values).to(device)


def numbers(size: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def assert_same(hits: Hits, expected: tuple, where: str = "") -> None:
    np.testing.assert_array_equal(torch.as_tensor(hits.indices).cpu(), torch.as_tensor(expected[1]), where)
    np.testing.assert_array_equal(torch.as_tensor(hits.distances).cpu(), torch.as_tensor(expected[0]), where)


def check(case: Case, device: torch.device, methods: tuple[str, ...] = METHODS) -> None:
    """Assert that every method returns what the oracle does."""
    index = FlatIndex(put(case.rows, device), case.metric, device="cuda")
    expected = oracle.search(case.exact_queries, case.exact_rows, case.k, case.metric, case.permitted)
    queries = put(case.queries, device)
    allowed = None if case.permitted is None else put(case.permitted, device)
    for method in methods:
        select_method(method)
        hits = index.search(queries, case.k, allowed=allowed)
        assert hits.indices.device == hits.distances.device == device
        assert_same(hits, expected, method)


def test_equals_oracle(device: torch.device) -> None:
    for seed in range(CASES):
        check(random_case(seed), device)


def test_equals_oracle_many_rows(device: torch.device) -> None:
    for seed in range(1 + CASES // 6):
        check(random_case(seed, min_rows=300, max_rows=2500, max_dim=20), device, ("int8",))


def test_equals_oracle_many_columns(device: torch.device) -> None:
    for seed in range(1 + CASES // 6):
        check(random_case(seed, max_rows=300, max_dim=700), device, ("int8",))


def test_equals_oracle_many_queries(device: torch.device) -> None:
    """Two tiles of queries, with their values kept in shared memory or not."""
    for seed in range(1 + CASES // 20):
        case = make_case(seed, METRICS[seed % 6], ("float32", "float32"), (300, 130 + seed, 20 if seed % 2 else 300), 1)
        check(dataclasses.replace(case, k=min(case.k, 50)), device, ("int8",))


def test_a_scan_leaves_few_candidates(device: torch.device) -> None:
    """That its bounds tell most rows apart: a scan that measured every row would pass all other tests."""
    rows, queries = numbers((3000, 24)), numbers((12, 24), seed=1)
    index = FlatIndex(put(rows, device), device="cuda")
    index._database.statistics = put(torch.zeros(2, dtype=torch.int64), device)
    assert_same(index.search(put(queries, device), 5), search(queries.numpy(), rows.numpy(), 5))
    measured, lost = index._database.statistics.tolist()
    assert lost == 0
    assert 12 * 5 <= measured < 12 * 30


def test_bounds_hold_where_all_rounding_errs_one_way(device: torch.device) -> None:
    """The best row loses 0.49 in every int8 value, to the query's disadvantage, after exact rows have set the limit.

    Its product is 31 x 10.49 = 325.2, estimated as 310; the best of the others have 320, exactly. It is in the last of 4 tiles,
    of which the first two are scanned first. Mirrored rows keep the centre at zero, so that nothing else is rounded.
    """
    values = np.random.default_rng(0).integers(0, 11, (256, 32)).astype(np.float32)
    values[:8, 1:] = 10
    values[:8, 1:11] = 11
    values[3, 1:] = 10.49
    values[:, 0] = 127  # makes the scale 1
    rows = np.concatenate([values, -values])
    query = np.ones((1, 32), np.float32)
    query[0, 0] = 0
    select_method("int8")
    hits = search(put(query, device), put(rows, device), 2, metric="inner_product")
    assert hits.indices.tolist() == [[3, 0]]
    assert_same(hits, oracle.search(query, rows, 2, "inner_product"))


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
def test_candidates_that_do_not_fit_are_found_otherwise(device: torch.device, metric: str) -> None:
    """More than a thousand exact ties for some queries, and none for the others."""
    rows = numbers((2500, 8))
    rows[::2] = rows[1]
    queries = torch.cat([rows[1:2] * 1.001, numbers((3, 8), seed=1) - 3 * rows[1]])
    index = FlatIndex(put(rows, device), metric, device="cuda")
    index._database.statistics = put(torch.zeros(2, dtype=torch.int64), device)
    assert_same(index.search(put(queries, device), 5), search(queries.numpy(), rows.numpy(), 5, metric=metric))
    assert 1 <= index._database.statistics[1] < 4


def test_more_neighbours_than_are_sorted_in_shared_memory(device: torch.device) -> None:
    """Runs of keys are merged: by one block of those that a scan leaves, by many of all rows, with ties and rows left out."""
    rows, queries = numbers((5200, 2)), numbers((2, 2), seed=1)
    rows[1000:3000] = rows[4000]
    mask = torch.arange(5200) % 7 != 0
    for method, k in (("brute_force", 5200), ("int8", 2500), ("brute_force", 4000)):
        select_method(method)
        expected = search(queries.numpy(), rows.numpy(), k, allowed=mask.numpy())
        assert_same(search(put(queries, device), put(rows, device), k, allowed=put(mask, device)), expected)


def test_few_neighbours_in_many_rows(device: torch.device) -> None:
    """Selected by many blocks."""
    rows, query = numbers((33_000, 1)).round(decimals=3), numbers((1, 1), seed=1)
    select_method("brute_force")
    assert_same(search(put(query, device), put(rows, device), 300), search(query.numpy(), rows.numpy(), 300))


def test_masks(device: torch.device) -> None:
    rows = numbers((1100, 6))
    queries = rows[:9]
    one = torch.rand(1100, generator=torch.Generator().manual_seed(2)) < 0.5
    each = torch.rand((9, 1100), generator=torch.Generator().manual_seed(3)) < 0.02
    index = FlatIndex(put(rows, device), device="cuda")
    for mask in (one, each, each.t().contiguous().t()):
        for name in ("allowed", "exclude"):
            full = mask.expand(9, 1100).numpy()
            expected = oracle.search(queries.numpy(), rows.numpy(), 40, "sqeuclidean", full if name == "allowed" else ~full)
            for given_as in (put(mask, device), mask.numpy()):
                assert_same(index.search(put(queries, device), 40, **{name: given_as}), expected)
    both = index.search(put(queries, device), 5, allowed=put(one, device), exclude=put(each, device))
    assert_same(both, oracle.search(queries.numpy(), rows.numpy(), 5, "sqeuclidean", (one & ~each).numpy()))
    others = FlatIndex(put(rows[:50], device), device="cuda").search(put(rows[:50], device), 49, exclude="self")
    expected = oracle.search(rows[:50].numpy(), rows[:50].numpy(), 49, "sqeuclidean", ~np.eye(50, dtype=bool))
    assert_same(others, expected)
    ids = put(torch.tensor([4, -1, *range(7)]), device)
    expected = oracle.search(queries.numpy(), rows.numpy(), 3, "sqeuclidean", ids.cpu().numpy()[:, None] != np.arange(1100))
    assert_same(index.search(put(queries, device), 3, exclude=ids), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_add_save_and_load(device: torch.device, tmp_path: Path, metric: str, dtype: str) -> None:
    """Pieces give what one does, and files go from one device to the other."""
    rows = (numbers((300, 6)).abs() * 9).to(getattr(torch, dtype))
    expected = FlatIndex(rows.float().numpy(), metric).search(rows[:5].float().numpy(), 30)
    index = FlatIndex(put(rows[:100], device), metric, device="cuda")
    index.add(put(rows[100:220], device))
    index.save(tmp_path / "part")
    index = FlatIndex.load(tmp_path / "part", device="cuda")
    index.add(put(rows[220:], device))
    assert (len(index), index.dim, index.metric, index.dtype) == (300, 6, metric, dtype)
    assert_same(index.search(put(rows[:5], device), 30), expected)
    index.save(tmp_path / "index")
    assert_same(FlatIndex.load(tmp_path / "index").search(rows[:5].float().numpy(), 30), expected)


def test_pieces_are_searched_one_after_the_other(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_database, "PIECE_ROWS", 1)
    rows, queries = numbers((5000, 5)), numbers((12, 5), seed=1)
    index = FlatIndex(put(rows[:2000], device), device="cuda")
    index.add(put(rows[2000:2100], device))
    index.add(put(rows[2100:], device))
    assert len(index._database._pieces) == 3
    mask = torch.arange(5000) % 3 != 0
    expected = search(queries.numpy(), rows.numpy(), 70, allowed=mask.numpy())
    assert_same(index.search(put(queries, device), 70, allowed=put(mask, device)), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_streamed_from_the_host(device: torch.device, tmp_path: Path, metric: str) -> None:
    rows, queries = numbers((400, 6)).numpy(), numbers((4, 6), seed=1).numpy()
    np.save(tmp_path / "rows.npy", rows)
    expected = search(queries, rows, 40, metric=metric)
    on_device = put(queries, device)
    assert_same(search(on_device, tmp_path / "rows.npy", 40, metric=metric, memory_limit=4000), expected)
    assert_same(search(on_device, rows, 40, metric=metric, memory_limit=4000), expected)
    index = FlatIndex(np.load(tmp_path / "rows.npy", mmap_mode="r"), metric, device="cuda", memory_limit=4000)
    assert_same(index.search(on_device, 40), expected)
    with pytest.raises(InputError, match="on disk cannot be added to"):
        index.add(on_device)


def test_numpy_in_numpy_out(device: torch.device) -> None:
    rows = numbers((50, 4)).numpy()
    hits = FlatIndex(rows, device="cuda").search(rows[:3], 2)
    assert isinstance(hits.distances, np.ndarray)
    assert isinstance(hits.indices, np.ndarray)
    assert_same(hits, search(rows[:3], rows, 2))


def test_strided_tensors_and_no_copies(device: torch.device) -> None:
    wide = put(numbers((60, 14)), device)
    expected = oracle.search(wide[:7, :5].cpu().numpy(), wide[::3, 2:7].cpu().numpy(), 4, "sqeuclidean")
    for rows in (wide[::3, 2:7], wide[::3, 2:7].t().contiguous().t()):
        assert_same(search(wide[:7, :5], rows, 4), expected)
    row = wide[:1, :5].expand(9, 5)
    assert_same(search(row, wide[::3, 2:7], 4), tuple(np.repeat(part[:1], 9, axis=0) for part in expected))
    seen = DeviceDatabase(
        wide[::3, 2:7], "cosine", 1, runtime_of(device), copy=False, memory_limit=1, workspace_limit=1
    )  # what `search` makes of its database
    assert seen._pieces[0].rows.tensor.data_ptr() == wide[:, 2:].data_ptr()
    index = FlatIndex(wide, device="cuda")  # an index has its own
    wide.zero_()
    assert index.search(wide[:1], 1).distances[0, 0] > 0


def test_a_small_workspace_takes_fewer_at_a_time(device: torch.device) -> None:
    """Fewer queries, then fewer rows, and packed rows that are not kept."""
    rows, queries = numbers((1100, 8)), numbers((7, 8), seed=1)
    expected = search(queries.numpy(), rows.numpy(), 3)
    for limit, keeps in ((1_000_000, True), (150_000, True), (100_000, False), (60_000, False)):
        for method in ("int8", "brute_force"):
            select_method(method)
            index = FlatIndex(put(rows, device), device="cuda", workspace_limit=limit)
            assert_same(index.search(put(queries, device), 3), expected, f"{limit} {method}")
            (workspace,) = index._database._workspaces.values()
            packed = index._database._pieces[0].packed
            assert (packed is not None) == (keeps and method != "brute_force")
            assert workspace.nbytes + (0 if packed is None else packed.nbytes) <= limit
            index.search(put(queries[:5], device), 2)
            assert next(iter(index._database._workspaces.values())) is workspace  # steady state
    with pytest.raises(
        DeviceMemoryError,
        match=r"workspace_limit=1,000: a search with k=3 in 1,100 rows takes at least [\d,]+ bytes; raise the limit or lower k",
    ):
        search(put(queries, device), put(rows, device), 3, workspace_limit=1000)


def test_threads_may_share_an_index(device: torch.device) -> None:
    """And its workspace, where memory is too short to keep packed rows."""
    rows, queries = numbers((1100, 8)), numbers((16, 8), seed=1)
    expected = search(queries.numpy(), rows.numpy(), 3)
    select_method("int8")
    index = FlatIndex(put(rows, device), device="cuda", workspace_limit=60_000)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: index.search(put(queries[4 * i : 4 * i + 4], device), 3), range(4)))
    for i, hits in enumerate(parts):
        assert_same(hits, (expected.distances[4 * i : 4 * i + 4], expected.indices[4 * i : 4 * i + 4]))


def test_out_of_memory_says_how_much_was_needed(emulated: Emulated) -> None:
    rows = numbers((2000, 8))
    index = FlatIndex(rows, device="cuda")
    index.search(rows[:3], 1)
    emulated.full = True
    index._database._pieces[0].packed = None
    with pytest.raises(
        DeviceMemoryError, match=r"[\d,]{7,} bytes were needed for packed rows; lower workspace_limit, or keep the database on"
    ):
        index.search(rows[:3], 2)
    select_method("brute_force")
    with pytest.raises(
        DeviceMemoryError, match=r"[\d,]{7,} bytes were needed for a search with k=1500 in 2,000 rows; lower workspace_limit"
    ):
        index.search(rows[:30], 1500)
    with pytest.raises(
        DeviceMemoryError, match="64,000 bytes were needed for a copy of the rows; keep the database on the host"
    ):
        FlatIndex(rows, device="cuda")


def test_a_search_allocates_its_results_alone(emulated: Emulated) -> None:
    """So it can be captured in a CUDA graph; on a stream of its own it makes itself what it needs."""
    rows, queries = numbers((2000, 8)), numbers((30, 8), seed=1)
    index = FlatIndex(rows, device="cuda")
    mask = torch.arange(2000) % 3 != 0
    before = index.search(queries, 5, allowed=mask)
    emulated.sizes.clear()
    emulated.full = True
    assert_same(index.search(queries, 5, allowed=mask), tuple(before))
    assert emulated.sizes == []
    emulated.full, emulated.captures = False, True
    kept = dict(index._database._workspaces)
    hits = index.search(torch.full_like(queries, torch.nan), 5)  # values can't be looked at
    assert hits.indices.shape == (30, 5)
    assert len(emulated.sizes) == 1  # a workspace, which belongs to the graph
    assert index._database._workspaces == kept
    index._database._pieces[0].packed = None
    assert_same(index.search(queries, 5, allowed=mask), tuple(before))
    assert index._database._pieces[0].packed is None  # nor is what was packed there there before the graph ran


def test_streams_wait_for_what_others_packed(emulated: Emulated) -> None:
    first, second = emulated.stream, Stream(2)
    rows = numbers((2000, 8))
    index = FlatIndex(rows, device="cuda")
    copied = index._database._ready
    emulated.stream = second
    assert not second.comes_after(copied)
    index.search(rows[:3], 2)  # packs
    assert second.comes_after(copied)
    packed = index._database._ready
    emulated.stream = first
    assert not first.comes_after(packed)
    index.search(rows[:3], 2)
    assert first.comes_after(packed)
    piece = index._database._pieces[0]
    assert {piece.rows.tensor.data_ptr(), piece.packed.data_ptr()} <= set(emulated.kept)
    assert len(index._database._workspaces) == 2


@pytest.mark.parametrize("metric", ["cosine", "gaussian_kl"])
def test_streamed_blocks_are_copied_beside_the_search(emulated: Emulated, tmp_path: Path, metric: str) -> None:
    """By events alone: copies are late here, and one into a block in use is an error."""
    rows, queries = numbers((1000, 6)), numbers((4, 6), seed=1)
    expected = search(queries.numpy(), rows.numpy(), 40, metric=metric)
    np.save(tmp_path / "rows.npy", rows.numpy())
    emulated.pins.append(rows)
    for database in (tmp_path / "rows.npy", rows.numpy(), rows):
        emulated.sizes.clear()
        assert_same(search(queries, database, 40, metric=metric, memory_limit=10_000), expected)
        blocks = [size for size in emulated.sizes if 9_000 < size <= 20_000]
        assert blocks, emulated.sizes
    index = FlatIndex(rows, metric, device="cuda", memory_limit=10_000)
    assert index._database._host is not None
    assert_same(index.search(queries, 40), expected)
    emulated.captures = True
    with pytest.raises(
        InputError, match="cannot be captured" if metric == "gaussian_kl" else "in host memory cannot be captured"
    ):
        index.search(queries, 40)


def test_streamed_rows_are_refused_by_their_number(emulated: Emulated) -> None:
    rows = numbers((1000, 6))
    queries = rows[:3].clone()
    rows[700:, 3] = torch.inf
    for metric in ("sqeuclidean", "gaussian_w2"):
        with pytest.raises(InputError, match="database row 700 holds NaN or infinity"):
            search(queries, rows.numpy(), 5, metric=metric, memory_limit=3000)
        with pytest.raises(InputError, match="database row 700 holds NaN or infinity"):
            evaluate(queries, rows.numpy(), [0, 1, 2], np.arange(1000), metric=metric, memory_limit=3000)


def test_refusals(device: torch.device) -> None:
    rows = put(numbers((1200, 6)), device)
    index = FlatIndex(rows, device="cuda")
    elsewhere = torch.empty((3, 6), device="meta")
    bad = rows.clone()
    bad[700:, 3] = float("nan")
    large = rows.clone()
    large[5] = 1e19
    odd = rows[:, :5]
    refusals = [
        (lambda: index.search(elsewhere, 1), f"queries is on meta; accepted is {device}"),
        (lambda: search(rows, elsewhere, 1), "on different devices"),
        (lambda: FlatIndex(elsewhere, device="cuda"), "database is on meta"),
        (lambda: index.add(elsewhere), "rows to add is on meta"),
        (lambda: index.search(rows, 1, allowed=torch.empty(1200, dtype=torch.bool, device="meta")), "allowed is on meta"),
        (lambda: index.search(rows, 1, exclude=torch.empty(1200, dtype=torch.int64, device="meta")), "exclude is on meta"),
        (lambda: index.search(rows, 1201), "k=1201: accepted is 1 to 1200"),
        (lambda: index.search(rows, 0), "k=0"),
        (lambda: index.search(odd, 1), "queries have 5 columns; the database has 6"),
        (lambda: index.search(rows[0], 1), r"queries has shape \(6,\); accepted is \(rows, dim\)"),
        (lambda: index.search(rows.to(torch.complex64), 1), "queries has dtype complex64"),
        (lambda: index.search(bad, 1), "queries row 700 holds NaN or infinity"),
        (lambda: search(rows, bad, 1), "database row 700 holds NaN"),
        (lambda: search(rows, large, 1), "database row 5 has a squared norm of 6e.38"),
        (lambda: search(odd, odd, 1, metric="gaussian_kl"), "5 columns; gaussian_kl takes packed"),
        (lambda: search(rows, rows[:0], 1), "accepted is at least one row"),
        (lambda: index.add(rows[:, :2]), "rows to add have 2 columns; the index has 6"),
        (lambda: index.add(rows.half()), "rows to add have dtype float16; the index holds float32"),
        (lambda: index.add(bad), "database row 1900 holds NaN"),
        (lambda: index.search(rows, 1, allowed=rows[:, 0] > 0, exclude="others"), "exclude='others'"),
        (lambda: index.search(rows, 1, allowed=rows[:, 0]), "allowed has shape .* dtype torch.float32; accepted is bool"),
        (lambda: select_method("guess"), "'guess': accepted are auto"),
    ]
    for call, message in refusals:
        with pytest.raises(InputError, match=message):
            call()
    assert len(index) == 1200


@pytest.mark.parametrize("metric", METRICS)
def test_evaluate_equals_oracle(device: torch.device, metric: str) -> None:
    for seed in range(1 + CASES // 30):
        rng = np.random.default_rng(seed)
        rows, queries = rng.integers(1, 61), rng.integers(1, 21)
        x, q = np.rint(rng.normal(size=(rows, 4)) * 2), np.rint(rng.normal(size=(queries, 4)) * 2)  # with ties
        row_labels, query_labels = rng.integers(0, 5, rows), rng.integers(0, 6, queries)
        expected = oracle.measures(q, x, query_labels, row_labels, metric, (1, 5, 100))
        for method in ("int8", "auto"):
            select_method(method)
            result = evaluate(put(q, device), put(x, device), put(query_labels, device), row_labels, metric=metric)
            assert list(result) == list(expected)
            np.testing.assert_allclose(list(result.values()), list(expected.values()), rtol=1e-12, err_msg=method)


def test_evaluate_in_batches_and_streams(device: torch.device, tmp_path: Path) -> None:
    """Many relevant rows (more than are sorted in shared memory), rows that are left out, few queries at a time."""
    rows, queries = numbers((4200, 3)), numbers((5, 3), seed=1)
    row_labels, query_labels = np.arange(4200) % 2, np.array([0, 1, 2, 0, 1])
    excluded = np.array([5, -1, 7, 4000, 11])
    np.save(tmp_path / "rows.npy", rows.numpy())
    expected = evaluate(queries.numpy(), rows.numpy(), query_labels, row_labels, exclude=excluded)
    for database in (put(rows, device), tmp_path / "rows.npy"):
        result = evaluate(
            put(queries, device),
            database,
            query_labels,
            row_labels,
            exclude=put(excluded, device),
            memory_limit=30_000,
            workspace_limit=200_000,
        )
        assert result == pytest.approx(expected, rel=1e-12)
    with pytest.raises(DeviceMemoryError, match=r"workspace_limit=99: evaluating over 4,200 rows takes at least"):
        evaluate(put(queries, device), put(rows, device), query_labels, row_labels, workspace_limit=99)
    with pytest.raises(InputError, match="queries has no rows"):
        evaluate(put(queries[:0], device), put(rows, device), query_labels[:0], row_labels)


@pytest.mark.parametrize("metric", METRICS)
def test_evaluate_by_a_scan(device: torch.device, metric: str) -> None:
    """Random problems with near ties, huge and tiny norms: the same measures as the CPU's float64 distances of all pairs."""
    select_method("int8")
    try:
        for seed in range(1 + CASES // 20):
            case = make_case(seed, metric, ("float32", "float32"), (300, 12, 9 + 40 * (seed % 2)), 1)
            rng = np.random.default_rng(seed)
            labels = rng.integers(0, 7, 12), rng.integers(0, 7, 300)
            excluded = rng.integers(-1, 300, 12)
            _C.select_method("brute_force")
            expected = evaluate(case.queries, case.rows, *labels, metric=metric, exclude=excluded)
            found = evaluate(put(case.queries, device), put(case.rows, device), *labels, metric=metric, exclude=excluded)
            assert found == pytest.approx(expected, rel=1e-12)
    finally:
        _C.select_method("auto")


def test_an_evaluation_measures_few_rows(device: torch.device) -> None:
    """That a scan's bounds place most rows: one that measured every row would pass all other tests."""
    rows, queries = numbers((2000, 24)), numbers((12, 24), seed=1)
    labels = np.arange(12) % 4, np.arange(2000) % 200
    database = DeviceDatabase(
        put(rows, device), "sqeuclidean", 1, runtime_of(device), copy=False, memory_limit=1 << 20, workspace_limit=1 << 24
    )
    database.statistics = put(torch.zeros(2, dtype=torch.int64), device)
    module.evaluate(database, put(queries, device), *labels, None, [1], 1)
    assert 0 < database.statistics[0] < 12 * 2000 // 4


@pytest.mark.parametrize("metric", METRICS)
def test_paired_recall(device: torch.device, metric: str) -> None:
    x = numbers((80, 6))
    y = x + 0.4 * numbers((80, 6), seed=1)
    expected = paired_recall(x.numpy(), y.numpy(), k=2, metric=metric)
    assert paired_recall(put(x, device), put(y, device), k=2, metric=metric) == expected
    with pytest.raises(InputError, match="x_codes has 80 rows and y_codes 79"):
        paired_recall(put(x, device), put(y[1:], device))
    with pytest.raises(InputError, match="k=81: accepted is 1 to 80"):
        paired_recall(put(x, device), put(y, device), k=81)


def test_the_benchmark_times_what_is_right(device: torch.device) -> None:
    for case in cases_on(Settings("cuda", toy=True), device):
        for contestant in case.contestants:
            if contestant.name == "flashlib":
                continue  # runs on GPUs only
            made = contestant.make()
            assert not isinstance(made, Ready)
            found = made()
            check = contestant.check or case.check
            assert check(found) == ""
            wrong = found.copy() if isinstance(found, np.ndarray) else found.clone()
            wrong[0] = 2 if isinstance(found, np.ndarray) else wrong[0].roll(1)
            assert "differ" in check(wrong)


@pytest.mark.gpu
@needs_gpu
def test_a_search_in_a_cuda_graph() -> None:
    """Captured once, replayed on other queries; nothing is allocated after the first search on a stream."""
    rows, queries = numbers((20_000, 64)), numbers((300, 64), seed=1)
    index = FlatIndex(rows.cuda(), device="cuda")
    asked = queries.cuda()
    index.search(asked, 10)
    before = torch.cuda.memory_allocated()
    first = index.search(asked, 10)
    assert torch.cuda.memory_allocated() - before <= first.distances.nbytes + first.indices.nbytes + 1024
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hits = index.search(asked, 10)
    for seed in (2, 3):
        others = numbers((300, 64), seed=seed)
        asked.copy_(others)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(hits, search(others.numpy(), rows.numpy(), 10))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("metric", ["sqeuclidean", "gaussian_kl"])
def test_streamed_from_pinned_memory_and_from_a_file(metric: str, tmp_path: Path) -> None:
    rows, queries = numbers((100_000, 64)), numbers((100, 64), seed=1)
    np.save(tmp_path / "rows.npy", rows.numpy())
    expected = search(queries.numpy(), rows.numpy(), 10, metric=metric)
    for database in (rows.pin_memory(), rows.numpy(), tmp_path / "rows.npy"):
        assert_same(search(queries.cuda(), database, 10, metric=metric, memory_limit=3 << 20), expected)


@pytest.mark.gpu
@needs_gpu
def test_on_a_stream_of_the_caller() -> None:
    """Queries that another stream is still writing, and results that it reads."""
    rows, queries = numbers((50_000, 64)), numbers((100, 64), seed=1)
    index = FlatIndex(rows.cuda(), device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        asked = queries.cuda()
        torch.cuda._sleep(10_000_000)
        asked.neg_().neg_()
        hits = index.search(asked, 10)
    stream.synchronize()
    assert_same(hits, search(queries.numpy(), rows.numpy(), 10))


def test_without_the_cuda_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_C, "cuda", raising=False)
    with pytest.raises(InputError, match=r"built without its CUDA engine.*IIAE_CUDA=1 pip install"):
        FlatIndex(np.eye(3), device="cuda")


def test_tensors_of_a_device_without_an_engine_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    rows = numbers((9, 4)).as_subclass(Elsewhere)
    monkeypatch.setattr(_C, "cuda", object(), raising=False)
    assert inputs.has_device_tensors(rows)
    monkeypatch.delattr(_C, "cuda")
    assert not inputs.has_device_tensors(rows)


@pytest.mark.slow
def test_under_sanitizers() -> None:
    """The emulated engine, built with AddressSanitizer, on some of the tests above."""
    if sys.platform != "linux" or os.environ.get("IIAE_EMULATION_SANITIZE") == "1":
        pytest.skip("runs itself, on Linux")
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    environment = os.environ | {
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",
        "IIAE_EMULATION_SANITIZE": "1",
        "IIAE_DEVICE_CASES": "5",
    }
    environment.pop("IIAE_TEST_GPU", None)
    chosen = "(oracle or do_not_fit or in_shared_memory or beside_the_search or by_a_scan) and not cuda"
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "--durations=20", "-k", chosen, __file__]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    print(done.stdout)
    assert "passed" in done.stdout
