"""Search by the CUDA engine against the oracle, bit for bit: emulated on the CPU, or on a device with IIAE_TEST_GPU=1."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from cases import make_case, random_case
from device_cases import CASES, assert_same, check, numbers, put
from emulation.runtime import Emulated

from iiae_fast import _C
from iiae_fast.bench.registry import Ready, Settings
from iiae_fast.bench.retrieval_cuda import cases_on
from iiae_fast.errors import InputError
from iiae_fast.retrieval import METRICS, FlatIndex, device_database, device_paths, inputs, search
from iiae_fast.retrieval.device_database import DeviceDatabase
from iiae_fast.retrieval.device_paths import select_method
from iiae_fast.retrieval.runtime import runtime_of


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


def test_the_table_of_the_device_decides(emulated: Emulated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """How few rows are measured tells which path a search took."""
    rows, queries = numbers((1500, 8)), numbers((4, 8), seed=1)
    for fast, slow in (("int8", "brute_force"), ("brute_force", "int8")):
        sizes = {"queries": 4, "rows": 1500, "dim": 8, "k": 3}
        entries = [{**sizes, "seconds": {fast: 1e-3, slow: 2e-3}}, {**sizes, "k": 900, "seconds": {fast: 2e-3, slow: 1e-3}}]
        file = tmp_path / fast
        file.write_text(json.dumps({"format": 1, "tables": {emulated.capability: {"device": "", "entries": entries}}}))
        monkeypatch.setattr(device_paths, "_installed", lambda file=file: device_paths.load_tables(file))
        for k, path in ((4, fast), (800, slow)):
            index = FlatIndex(rows, device="cuda")
            index._database.statistics = torch.zeros(2, dtype=torch.int64)
            assert_same(index.search(queries, k), search(queries.numpy(), rows.numpy(), k))
            assert (index._database.statistics[0] > 0) == (path == "int8")


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


def test_the_benchmark_times_what_is_right(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iiae_fast.bench.retrieval_cuda.engine", lambda: None)  # the emulated one is there without a built one
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
