"""Streams, memory and CUDA graphs: databases in host memory, limits, and what is allocated when."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from device_cases import assert_same, needs_gpu, numbers, put
from emulation.runtime import Emulated, Stream

from iiae_fast.errors import DeviceMemoryError, InputError
from iiae_fast.retrieval import METRICS, FlatIndex, evaluate, search
from iiae_fast.retrieval.device_paths import select_method


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
    few = rows[:20]
    found = FlatIndex(few, device="cuda").search(few, 1, exclude="self")
    assert_same(found, search(few.numpy(), few.numpy(), 1, exclude="self"))
    for name, call in {
        "queries": lambda: index.search(queries.numpy(), 5),
        "allowed": lambda: index.search(queries, 5, allowed=mask.numpy()),
        "exclude": lambda: index.search(queries, 5, exclude=np.arange(30)),
    }.items():
        with pytest.raises(InputError, match=f"{name} is in host memory; accepted is a tensor on .* while a CUDA graph"):
            call()


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
