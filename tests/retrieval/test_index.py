"""Growing, saving, streaming, and refusing."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iiae_fast.errors import CheckpointError, InputError
from iiae_fast.retrieval import METRICS, FlatIndex, search
from iiae_fast.retrieval.database import Block, Database


def make(count: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def assert_same(a: tuple, b: tuple) -> None:
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("metric", METRICS)
def test_add_in_pieces(metric: str) -> None:
    rows, queries = make(200), make(5, seed=1)
    index = FlatIndex(rows[:50], metric)
    for start, stop in ((50, 51), (51, 120), (120, 200)):
        index.add(rows[start:stop])
    index.add(rows[:0])
    assert len(index) == 200
    assert_same(index.search(queries, 30), search(queries, rows, 30, metric=metric))


def test_a_search_covers_the_rows_that_were_there_when_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that another thread adds once k and the mask have been looked at are for the next search."""
    rows, queries = make(200), make(5, seed=1)
    index = FlatIndex(rows[:150])
    blocks = Database.blocks

    def add_first(database: Database, threads: int) -> Iterator[Block]:
        if len(index) == 150:
            index.add(rows[150:])
        return blocks(database, threads)

    monkeypatch.setattr(Database, "blocks", add_first)
    mask = np.arange(150) % 3 != 0
    assert_same(index.search(queries, 9, allowed=mask), search(queries, rows[:150], 9, allowed=mask))
    assert_same(index.search(queries, 9), search(queries, rows, 9))


def test_add_after_a_large_piece() -> None:
    rows = make(70000, 2)
    index = FlatIndex(rows[:66000])
    index.add(rows[66000:])
    mask = np.arange(70000) % 2 == 1
    assert_same(index.search(rows[-3:], 7, allowed=mask), search(rows[-3:], rows, 7, allowed=mask))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_save_and_load(tmp_path: Path, metric: str, dtype: str) -> None:
    rows = (torch.from_numpy(make(90)).abs() * 9).to(getattr(torch, dtype))
    index = FlatIndex(rows[:40], metric)
    index.add(rows[40:])
    index.save(tmp_path / "index")
    assert os.listdir(tmp_path) == ["index"]
    loaded = FlatIndex.load(tmp_path / "index")
    assert (len(loaded), loaded.dim, loaded.metric, loaded.dtype) == (90, 6, metric, dtype)
    assert_same(loaded.search(rows[:7], 90), index.search(rows[:7], 90))
    loaded.add(rows[:3])
    assert len(loaded) == 93


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "index"
    FlatIndex(make(20, 4)).save(path)
    return path.read_bytes()


def test_every_truncation_is_refused(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    for length in range(len(saved)):
        path.write_bytes(saved[:length])
        with pytest.raises(CheckpointError, match="cut"):
            FlatIndex.load(path)


def test_every_flipped_byte_is_refused(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "altered"
    for position in range(len(saved)):
        data = bytearray(saved)
        data[position] ^= 0x10
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="altered"):
            FlatIndex.load(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_damage_is_refused(saved: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Never anything but a CheckpointError: no crash, no huge allocation."""
    start = data.draw(st.integers(0, len(saved)))
    stop = data.draw(st.integers(start, len(saved)))
    damaged = saved[:start] + data.draw(st.binary(max_size=40)) + saved[stop:]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    if damaged == saved:
        assert len(FlatIndex.load(path)) == 20
    else:
        with pytest.raises(CheckpointError, match="damaged"):
            FlatIndex.load(path)


def forge(path: Path, payload: np.ndarray, **header: object) -> Path:
    """An index file with a right checksum, whatever is in it."""
    fields = {"metric": "sqeuclidean", "dtype": "float64", "stored": "float64"} | header
    text = json.dumps({"dim": payload.shape[1], "rows": len(payload), "columns": payload.shape[1]} | fields).encode()
    data = struct.pack("<8sII", b"IIAEFLAT", 1, len(text)) + text + payload.tobytes()
    path.write_bytes(data + hashlib.sha256(data).digest())
    return path


LIFTED = np.array([[0.5, 0.0, 1.0]])  # mean, log-variance, variance
FORGED = [
    (np.zeros((2, 4)), {"dtype": []}, "metric, dtype or size"),
    (np.zeros((2, 4)), {"metric": {}}, "metric, dtype or size"),
    (np.zeros((2, 4)), {"rows": 10**4000, "columns": 10**300}, "metric, dtype or size"),
    (np.full((600, 4), 1e300), {}, "row 0 has a squared norm"),
    (np.full((600, 4), 1e200), {"metric": "inner_product"}, "row 0 has a squared norm"),
    (np.full((3, 4), np.nan), {"metric": "cosine"}, "row 0 holds NaN"),
    (LIFTED * [[1], [1e17]], {"metric": "gaussian_kl", "dim": 2}, "row 1 is not a lifted Gaussian"),
    (np.concatenate([LIFTED, [[0.5, 0.0, 0.0]]]), {"metric": "gaussian_kl", "dim": 2}, "row 1 is not a lifted Gaussian"),
    (np.concatenate([LIFTED, [[0.5, 0.1, 1.0]]]), {"metric": "gaussian_kl", "dim": 2}, "row 1 is not a lifted Gaussian"),
    (np.array([[0.5, 11.0, np.exp(11.0)]]), {"metric": "gaussian_kl", "dim": 2}, "row 0 is not a lifted Gaussian"),
    (np.array([[0.5, 1.0], [0.5, -1.0]]), {"metric": "gaussian_w2"}, "row 1 is not a lifted Gaussian"),
    (np.array([[1e200, 1.0]]), {"metric": "gaussian_w2"}, "row 0 has a squared norm"),
]


@pytest.mark.parametrize(("payload", "header", "message"), FORGED)
def test_forged_files_are_refused(tmp_path: Path, payload: np.ndarray, header: dict[str, object], message: str) -> None:
    """A checksum vouches for no one."""
    path = forge(tmp_path / "index", payload, **header)
    with pytest.raises(CheckpointError, match=message):
        FlatIndex.load(path)
    assert len(FlatIndex.load(forge(path, LIFTED, metric="gaussian_kl", dim=2))) == 1


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.+No such file"):
        FlatIndex.load(tmp_path / "nowhere")


def test_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "index"
    FlatIndex(make(10)).save(path)
    before = path.read_bytes()
    bad = make(3000)
    bad[2999, 0] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    with pytest.raises(ValueError, match="row 2999"):
        FlatIndex(tmp_path / "bad.npy", memory_limit=4096).save(path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["bad.npy", "index"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["path", "r", "c", "fortran"])
def test_streamed_database(tmp_path: Path, metric: str, mode: str) -> None:
    rows, queries = make(1000), make(9, seed=1)
    path = tmp_path / "rows.npy"
    np.save(path, np.asfortranarray(rows) if mode == "fortran" else rows)
    database = path if mode in {"path", "fortran"} else np.load(path, mmap_mode=mode)
    if mode == "c":
        database[3] = 0.5  # a private change, which streaming must neither lose nor write
        rows = rows.copy()
        rows[3] = 0.5
    index = FlatIndex(database, metric, memory_limit=2000)
    mask = np.random.default_rng(3).random((9, 1000)) < 0.7
    for _ in range(2):
        assert_same(index.search(queries, 40, allowed=mask), search(queries, rows, 40, metric=metric, allowed=mask))
    index.save(tmp_path / "index")
    assert_same(FlatIndex.load(tmp_path / "index").search(queries, 7), search(queries, rows, 7, metric=metric))


def test_streamed_slice_of_a_memmap(tmp_path: Path) -> None:
    rows = make(300)
    np.save(tmp_path / "rows.npy", rows)
    part = np.load(tmp_path / "rows.npy", mmap_mode="r")[50::2]
    assert_same(FlatIndex(part, memory_limit=1000).search(rows[:3], 9), search(rows[:3], rows[50::2], 9))


def test_streamed_bad_row_is_named(tmp_path: Path) -> None:
    rows = make(1000)
    rows[777, 2] = np.inf
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(ValueError, match="database row 777 holds NaN or infinity"):
        search(make(2), tmp_path / "rows.npy", 3, memory_limit=1000)


def test_streaming_needs_little_memory(tmp_path: Path) -> None:
    """256 MiB of rows, searched with less than a third of that."""
    path = tmp_path / "rows.npy"
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1 << 20, 64))
    generator = np.random.default_rng(0)
    for start in range(0, len(rows), 1 << 16):
        rows[start : start + (1 << 16)] = generator.random((1 << 16, 64), dtype=np.float32)
    rows.flush()
    del rows
    code = f"""
import resource, numpy as np
from iiae_fast.retrieval import search
queries = np.random.default_rng(1).random((2, 64), dtype=np.float32)
search(queries, queries, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
search(queries, {str(path)!r}, 5, memory_limit=16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 80 << 10


def nan_at(row: int) -> np.ndarray:
    rows = make(3000)
    rows[row:, 3] = np.nan
    return rows


ROWS = make(10)
REFUSALS = [
    (lambda: search(ROWS, nan_at(1500), 1), "database row 1500 holds NaN"),
    (lambda: search(nan_at(2), ROWS, 1), "queries row 2 holds NaN"),
    (lambda: search(ROWS, np.full((4, 3), np.inf, np.float16), 1), "database row 0 holds NaN or infinity"),
    (lambda: search(ROWS, np.full((4, 6), 1e19), 1), "database row 0 has a squared norm of 6e.38.*8e.37"),
    (lambda: search(np.full((4, 6), 1e19), ROWS, 1), "queries row 0 has a squared norm"),
    (lambda: search(ROWS, ROWS[:, :4], 1), "queries have 6 columns; the database has 4"),
    (lambda: search(ROWS, ROWS, 0), "k=0"),
    (lambda: search(ROWS, ROWS, 11), "k=11: accepted is 1 to 10"),
    (lambda: search(ROWS, ROWS, 1.5), "k=1.5"),
    (lambda: search(ROWS, ROWS, True), "k=True"),
    (lambda: search(ROWS, ROWS[:0], 1), "at least one row"),
    (lambda: search(ROWS, ROWS[:, :0], 1), "at least one column"),
    (lambda: search(ROWS[0], ROWS, 1), r"queries has shape \(6,\)"),
    (lambda: search(ROWS, ROWS.astype(np.int32), 1), "database has dtype int32; accepted are float32"),
    (lambda: search(torch.zeros(3, 6, dtype=torch.complex64), ROWS, 1), "queries has dtype complex64"),
    (lambda: search(ROWS.tolist(), ROWS, 1), "queries is of type list"),
    (lambda: search(ROWS, ROWS, 1, metric="manhattan"), "metric='manhattan': accepted is one of sqeuclidean"),
    (lambda: search(ROWS[:, :5], ROWS[:, :5], 1, metric="gaussian_kl"), "5 columns; gaussian_kl takes packed"),
    (lambda: search(ROWS, ROWS, 1, allowed=np.ones(9, bool)), r"allowed has shape \(9,\)"),
    (lambda: search(ROWS, ROWS, 1, allowed=np.ones(10, np.uint8)), "allowed has shape .* dtype uint8"),
    (lambda: search(ROWS, ROWS, 1, exclude=np.full(10, 10)), r"exclude\[0\] is 10; accepted are rows 0 to 9"),
    (lambda: search(ROWS, ROWS, 1, exclude=np.zeros(3, int)), r"exclude has shape \(3,\)"),
    (lambda: search(ROWS, ROWS, 1, exclude="others"), "exclude='others'"),
    (lambda: search(ROWS[:3], ROWS, 1, exclude="self"), "3 queries and 10 rows"),
    (lambda: search(ROWS, ROWS, 1, threads=0), "threads=0"),
    (lambda: search(ROWS, "missing.npy", 1), "missing.npy.*cannot be read"),
    (lambda: FlatIndex(ROWS, device="tpu"), "device='tpu'"),
    (lambda: FlatIndex(ROWS, memory_limit=0), "memory_limit=0"),
    (lambda: FlatIndex(ROWS).add(ROWS[:, :2]), "rows to add have 2 columns"),
    (lambda: FlatIndex(ROWS).add(ROWS.astype(np.float64)), "rows to add have dtype float64"),
    (lambda: FlatIndex(ROWS).add(nan_at(4)), "database row 14 holds NaN"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals(call: object, message: str) -> None:
    """All are InputErrors, what the engine finds in the values too: the command line tells those from bugs by their type."""
    with pytest.raises(InputError, match=message):
        call()


def test_large_norms_are_fine_for_cosine_and_at_the_limit() -> None:
    rows = np.diag(np.full(3, 1e200))
    np.testing.assert_array_equal(search(rows, rows, 1, metric="cosine").indices[:, 0], [0, 1, 2])
    rows = np.array([[8.94e18], [-8.94e18]])
    hits = search(rows, rows, 2)
    assert np.isfinite(hits.distances).all()


def test_refused_add_leaves_the_index_alone() -> None:
    index = FlatIndex(ROWS)
    with pytest.raises(ValueError, match="NaN"):
        index.add(nan_at(0))
    assert len(index) == 10
    assert_same(index.search(ROWS, 3), search(ROWS, ROWS, 3))


def test_number_of_threads_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IIAE_NUM_THREADS", "3")
    assert search(ROWS, ROWS, 1).indices[4, 0] == 4
    for text in ("many", "0", "1000000000000"):
        monkeypatch.setenv("IIAE_NUM_THREADS", text)
        with pytest.raises(ValueError, match=f"IIAE_NUM_THREADS='{text}'"):
            search(ROWS, ROWS, 1)
    with pytest.raises(ValueError, match="threads=4097: accepted is a whole number from 1 to 4,096"):
        search(ROWS, ROWS, 1, threads=4097)


def test_works_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
import numpy as np
from iiae_fast.retrieval import FlatIndex, evaluate, paired_recall
rows = np.eye(4, dtype=np.float32)
assert FlatIndex(rows).search(rows, 1).indices[2, 0] == 2
assert evaluate(rows, rows, [0, 1, 2, 3], [0, 1, 2, 3], ks=(1,))["map@all"] == 1
assert paired_recall(rows, rows) == {"x_to_y": 1.0, "y_to_x": 1.0}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
