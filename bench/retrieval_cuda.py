"""The CUDA cases of the retrieval benchmark: exact search of an index beside torch's matrix product and flashlib.

flashlib takes part where it can be imported, and is said to be absent elsewhere. It is a pure Python wheel that needs torch,
Triton 3.6 and tqdm, so it can be carried to a machine without a network: ``pip download --no-deps flashlib==0.4.0`` where there
is one, and there ``pip install --no-deps flashlib-0.4.0-py3-none-any.whl`` (or ``--target FOLDER``, and that on PYTHONPATH).
"""

from __future__ import annotations

__all__ = ["cases_on"]

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from iiae_fast.bench.registry import Call, Case, Contestant, Settings, Unavailable, importable
from iiae_fast.bench.retrieval import CHECKED, SearchSize, evaluation_case, search_case
from iiae_fast.retrieval import FlatIndex, search
from iiae_fast.retrieval.runtime import engine

_CHUNK_BYTES = 1 << 32  # of a rival's matrix of distances
_MOST_PAIRS = 2e10  # for rivals that write one


_SIZES = [
    SearchSize(16_384, 100_000, 128, 10),
    SearchSize(1, 10_000_000, 64, 10),
    SearchSize(10_000, 10_000_000, 64, 10),
    SearchSize(16_384, 100_000, 128, 100),
    SearchSize(16_384, 100_000, 128, 1000),
    SearchSize(16, 1_000_000, 64, 20_000),
    SearchSize(1000, 4_000_000, 64, 10, one_shot=True),
]
_QUICK = 3  # of them: compute-bound, memory-bound, and both large
_TOY = [SearchSize(10, 1100, 8, 3), SearchSize(3, 1100, 8, 3, one_shot=True)]


def cases_on(settings: Settings, device: torch.device) -> Iterator[Case]:
    """The sizes that users ask for, then an evaluation; fewer if quick. One-shot searches stream from pinned host memory."""
    try:
        engine()
    except ValueError as error:
        reason = str(error)

        def absent() -> Call:
            raise Unavailable(reason)

        yield Case("index on a CUDA device", [Contestant("iiae_fast", absent)], lambda _: "", cold=False, replay=False)
        return
    for size in _TOY if settings.toy else _SIZES[:_QUICK] if settings.quick else _SIZES:
        yield _case(size, settings.seed, device)
    queries, rows = (9, 300) if settings.toy else (512, 17_101) if settings.quick else (12_694, 17_101)
    yield evaluation_case(settings, queries, rows, lambda array: torch.from_numpy(array).to(device))


def _case(size: SearchSize, seed: int, device: torch.device) -> Case:
    generator = torch.Generator(device).manual_seed(seed)
    rows = torch.randn(size.rows, size.dim, generator=generator, device=device)
    queries = torch.randn(size.queries, size.dim, generator=generator, device=device)

    def ours() -> Call:
        if size.one_shot:
            host = rows.cpu().pin_memory() if device.type == "cuda" else rows.numpy()
            return lambda: search(queries, host, size.k).indices
        index = FlatIndex(rows, device="cuda")
        return lambda: index.search(queries, size.k).indices

    makers: dict[str, Callable[[], Call]] = {
        "iiae_fast": ours,
        "matmul + topk": lambda: _matmul(size, rows, queries),
        "flashlib": lambda: _flashlib(size, rows, queries),
    }
    exact = _exact_ids(rows, queries[:CHECKED], size.k).numpy()
    # What an index has to read of a row is its int8 form, in steps of 64 values, and two fp32 numbers.
    row_bytes = None if size.one_shot else -(-size.dim // 64) * 64 + 8
    return search_case(size, makers, exact, row_bytes, "int8")


def _exact_ids(rows: Tensor, queries: Tensor, k: int) -> Tensor:
    """(Q, k) by brute force in float64, rounded to fp32, ties to the lowest index."""
    found = []
    for query in queries.double():
        parts = [((part.double() - query) ** 2).sum(1).float() for part in torch.split(rows, 1 << 20)]
        found.append(torch.sort(torch.cat(parts), stable=True).indices[:k])
    return torch.stack(found).cpu()


def _matmul(size: SearchSize, rows: Tensor, queries: Tensor) -> Call:
    if size.queries * size.rows > _MOST_PAIRS:
        raise Unavailable("its matrices of distances would take minutes to write and read")
    norms = (rows * rows).sum(1)
    chunk = max(1, _CHUNK_BYTES // (4 * size.rows))

    def call() -> Tensor:
        # |q|² does not change the order; the norms are part of an index.
        parts = [
            torch.addmm(norms, part, rows.T, alpha=-2.0).topk(size.k, largest=False).indices
            for part in torch.split(queries, chunk)
        ]
        return torch.cat(parts)

    return call


def _flashlib(size: SearchSize, rows: Tensor, queries: Tensor) -> Call:
    flash_knn = importable("flashlib", "flashlib").flash_knn

    def call() -> Tensor:
        ids: Tensor = flash_knn(queries, rows, size.k)[1]
        return ids

    return call
