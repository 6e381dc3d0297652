"""Exact nearest neighbours and retrieval measures beside FAISS, torch and scikit-learn.

As a benchmark of ``iiae bench retrieval`` it runs under the common gate and clock; run by itself it prints one table with the
ratios, and how many of each rival's ids are unlike ours (of which a few queries are compared with a float64 brute force)::

    python -m iiae_fast.bench.retrieval [--quick] [--full] [--threads 2] [--seconds 10] [--only TEXT] [--codes FILE] [--json]

Codes of a trained model are measured too where a file of them is named, by ``--codes`` or ``IIAE_BENCH_CODES``;
``iiae embed RUN train --out codes.npy`` writes one.
"""

from __future__ import annotations

__all__ = ["CHECKED", "SearchSize", "cases", "evaluation_case", "main", "search_case"]

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iiae_fast.bench.environment import cores, device_name
from iiae_fast.bench.registry import Call, Case, Contestant, Ready, Settings, Unavailable, Work, importable
from iiae_fast.bench.timing import CpuClock, Plan, measure
from iiae_fast.errors import InputError
from iiae_fast.retrieval import FlatIndex, evaluate, search

CHECKED = 8  # queries that are compared with a float64 brute force
_WARM = 16  # searches of one query after which an index has settled
_CLASSES = 21  # of the zero-shot sketch retrieval split that the evaluation case imitates
_AGREEMENT = 0.99  # of a rival's ids that must be right: fp32 products may swap near ties

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class SearchSize:
    """One size: Q queries, N rows, D columns, k neighbours."""

    queries: int
    rows: int
    dim: int
    k: int
    data: str = "gaussian"
    one_shot: bool = False

    def __str__(self) -> str:
        how = "one-shot" if self.one_shot else "index"
        return f"{how}, Q {self.queries:,}, N {self.rows:,}, d {self.dim:,}, k {self.k:,}, {self.data}"


_SIZES = [
    *(SearchSize(2000, 100_000, 64, k) for k in (10, 100, 1000)),
    SearchSize(2000, 20_000, 512, 100),
    SearchSize(1000, 10_000, 8192, 10),
    SearchSize(1, 1_000_000, 64, 10),
    SearchSize(100, 1_000_000, 64, 100),
    *(SearchSize(2000, 100_000, 64, 100, data) for data in ("clustered", "anisotropic", "offset")),
    *(SearchSize(2000, 100_000, 64, k, one_shot=True) for k in (10, 100, 1000)),
    SearchSize(2000, 20_000, 512, 100, one_shot=True),
    SearchSize(1000, 10_000, 8192, 10, one_shot=True),
    SearchSize(1, 1_000_000, 64, 10, one_shot=True),
]
_QUICK = [SearchSize(500, 20_000, 64, k) for k in (10, 100)]
_TOY = [SearchSize(10, 600, 8, 3)]


def cases(settings: Settings) -> Iterator[Case]:
    """The sizes that users ask for, then the measures of a whole evaluation."""
    if settings.device != "cpu":
        import torch

        from iiae_fast.bench.retrieval_cuda import cases_on

        yield from cases_on(settings, torch.device(settings.device))
        return
    for size in _TOY if settings.toy else _QUICK if settings.quick else _SIZES:
        yield _search_case(size, _make_data(size, settings.seed), settings)
    if not settings.toy and not settings.quick:
        yield _codes_case(settings)
    if not settings.toy:
        yield evaluation_case(settings, *((64, 2000) if settings.quick else (512, 17_101)))


def _make_data(size: SearchSize, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows and queries, (N, D) and (Q, D)."""
    rng = np.random.default_rng(seed)
    both = rng.standard_normal((size.rows + size.queries, size.dim), dtype=np.float32)
    if size.data == "clustered":
        centres = rng.standard_normal((100, size.dim), dtype=np.float32)
        both = 0.1 * both + centres[rng.integers(0, len(centres), len(both))]
    elif size.data == "anisotropic":
        both *= np.geomspace(1.0, 0.01, size.dim, dtype=np.float32)
    elif size.data == "offset":
        both += np.float32(100.0)
    return both[: size.rows], both[size.rows :]


def _exact_ids(rows: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> Ids:
    """(Q, k) by brute force in float64, rounded to fp32, ties to the lowest index."""
    found = [((rows.astype(np.float64) - q) ** 2).sum(1).astype(np.float32) for q in queries.astype(np.float64)]
    return np.argsort(np.stack(found), axis=1, kind="stable")[:, :k]


def _codes_case(settings: Settings) -> Case:
    """The codes of a file: the last tenth of them, at most 2,000, look for neighbours among the others."""
    path = os.environ.get("IIAE_BENCH_CODES")
    if not path:

        def absent() -> Call:
            raise Unavailable("no codes given; write some by: iiae embed RUN train --out codes.npy, and name them by --codes")

        return Case("codes of a trained model", [Contestant("iiae_fast", absent)], lambda _: "", Work(), {}, False, False)
    codes = np.load(path, allow_pickle=False).astype(np.float32)
    count = min(len(codes) // 10, 2000)
    rows, queries = codes[:-count], codes[-count:]
    size = SearchSize(len(queries), len(rows), codes.shape[1], min(100, len(rows)), "trained codes")
    return _search_case(size, (rows, queries), settings)


def _search_case(size: SearchSize, data: tuple[NDArray[np.float32], NDArray[np.float32]], settings: Settings) -> Case:
    rows, queries = data
    makers: dict[str, Callable[[], Call]] = {
        "iiae_fast": lambda: _ours(size, rows, queries, settings),
        "faiss": lambda: _faiss(size, rows, queries, settings),
        "matmul + topk": lambda: _matmul(size, rows, queries, settings),
    }
    return search_case(size, makers, _exact_ids(rows, queries[:CHECKED], size.k))


def search_case(
    size: SearchSize, makers: dict[str, Callable[[], Call]], exact: Ids, row_bytes: int | None = None, matmul: str = ""
) -> Case:
    """A search that every contestant does on the same fp32 data.

    Args:
        size: Of the search.
        makers: The calls by name; each returns ids (Q, k), an array or a tensor.
        exact: (CHECKED, k), what the first queries are to find.
        row_bytes: Of a row of the database, once read; by default as given.
        matmul: As in ``Work``.
    """

    def check(least: float) -> Callable[[Any], str]:
        def judge(found: Any) -> str:
            first = found[:CHECKED]
            right = float((np.asarray(first.cpu() if hasattr(first, "cpu") else first) == exact).mean())
            return "" if right >= least else f"{1 - right:.2%} of ids differ from a float64 brute force"

        return judge

    contestants = [Contestant(name, make, check(1.0 if name == "iiae_fast" else _AGREEMENT)) for name, make in makers.items()]
    bytes_read = size.rows * (row_bytes or 4 * size.dim) + 4 * size.queries * size.dim
    flops = 2 * size.queries * size.rows * size.dim
    work = Work(bytes=bytes_read, flops=flops, items=size.queries, unit="queries", matmul=matmul)
    return Case(str(size), contestants, check(1.0), work, vars(size), cold=False, replay=False)


def _ours(size: SearchSize, rows: NDArray[np.float32], queries: NDArray[np.float32], settings: Settings) -> Call:
    if size.one_shot:
        return lambda: search(queries, rows, size.k, threads=settings.threads).indices
    index = FlatIndex(rows, threads=settings.threads)
    for _ in range(_WARM):
        index.search(queries[:1], 1)
    return lambda: index.search(queries, size.k).indices


def _faiss(size: SearchSize, rows: NDArray[np.float32], queries: NDArray[np.float32], settings: Settings) -> Call:
    faiss = importable("faiss", "faiss-cpu")
    faiss.omp_set_num_threads(settings.threads)

    def build() -> Any:
        index = faiss.IndexFlatL2(size.dim)
        index.add(rows)
        return index

    if size.one_shot:
        return lambda: build().search(queries, size.k)[1]
    index = build()
    return lambda: index.search(queries, size.k)[1]


def _matmul(size: SearchSize, rows: NDArray[np.float32], queries: NDArray[np.float32], settings: Settings) -> Call:
    if size.queries * size.rows > 3e8:
        raise Unavailable("its matrix of distances would take more than a gigabyte")
    import torch

    torch.set_num_threads(settings.threads)
    x, q = torch.from_numpy(rows), torch.from_numpy(queries)
    norms = (x * x).sum(1)

    def call() -> Ids:
        # |q|² does not change the order; one-shot or not, the norms are part of an index.
        distances = torch.addmm((x * x).sum(1) if size.one_shot else norms, q, x.T, alpha=-2.0)
        ids: Ids = distances.topk(size.k, largest=False).indices.numpy()
        return ids

    return call


def evaluation_case(
    settings: Settings, queries: int, count: int, put: Callable[[NDArray[np.float32]], Any] = lambda array: array
) -> Case:
    """mAP@all and P@100 under cosine, against scikit-learn one query after the other, as published evaluations do it.

    ``put`` takes our queries and rows to where they are ranked.
    """
    dim = 64
    rng = np.random.default_rng(settings.seed)
    centres = rng.standard_normal((_CLASSES, dim))
    row_labels, query_labels = rng.integers(0, _CLASSES, count), rng.integers(0, _CLASSES, queries)
    rows = (centres[row_labels] + 1.5 * rng.standard_normal((count, dim))).astype(np.float32)
    asked = (centres[query_labels] + 1.5 * rng.standard_normal((queries, dim))).astype(np.float32)

    own_queries, own_rows = put(asked), put(rows)

    def ours() -> NDArray[np.float64]:
        found = evaluate(own_queries, own_rows, query_labels, row_labels, metric="cosine", ks=(100,), threads=settings.threads)
        return np.array([found["map@all"], found["precision@100"]])

    def scikit_learn() -> NDArray[np.float64]:
        measures = importable("sklearn.metrics", "scikit-learn")
        sums = np.zeros(2)
        for start in range(0, queries, 512):  # a matrix of all distances would take gigabytes
            labels = query_labels[start : start + 512]
            distances = measures.pairwise_distances(
                asked[start : start + 512].astype(np.float64), rows.astype(np.float64), "cosine"
            )
            sums[0] += sum(measures.average_precision_score(row_labels == y, -d) for y, d in zip(labels, distances))
            nearest = np.argsort(distances, axis=1, kind="stable")[:, :100]
            sums[1] += (row_labels[nearest] == labels[:, None]).mean(axis=1).sum()
        result: NDArray[np.float64] = sums / queries
        return result

    expected: list[NDArray[np.float64]] = []

    def check(found: NDArray[np.float64]) -> str:
        if not expected:
            expected.append(scikit_learn())
        error = float(np.abs(found - expected[0]).max())
        return "" if error < 1e-6 else f"differs from scikit-learn by {error:.3g}"

    contestants = [Contestant("iiae_fast", lambda: ours), Contestant("scikit-learn", lambda: scikit_learn)]
    work = Work(items=queries, unit="queries")
    name = f"mAP@all and P@100, Q {queries:,}, N {count:,}, d {dim}, cosine"
    parameters = {"queries": queries, "rows": count, "dim": dim, "classes": _CLASSES}
    return Case(name, contestants, check, work, parameters, cold=False, replay=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every case's times side by side; exit code 3 if anything of ours was wrong."""
    parser = argparse.ArgumentParser(prog="python -m iiae_fast.bench.retrieval", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases")
    parser.add_argument("--full", action="store_true", help="also the evaluation of all 12,694 queries, which takes minutes")
    parser.add_argument("--threads", type=int, default=cores(), help="of every contestant")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, for one case")
    parser.add_argument("--seed", type=int, default=0, help="of the data")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--codes", help="a .npy file (N, D) of a trained model's codes; also IIAE_BENCH_CODES")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        raise InputError(f"--threads={options.threads}: accepted is a whole number of at least 1")
    settings = Settings(quick=options.quick, threads=options.threads, seed=options.seed)
    if options.codes:
        os.environ["IIAE_BENCH_CODES"] = options.codes
    lines: list[dict[str, Any]] = []
    full = (evaluation_case(settings, 12_694, 17_101) for _ in range(options.full))
    for case in itertools.chain(cases(settings), full):
        if options.only in case.name:
            lines.append(_run(case, Plan(seconds=options.seconds)))
            if not options.json:
                print(_line(lines[-1]), flush=True)
    if options.json:
        print(json.dumps({"device": device_name("cpu"), "threads": options.threads, "cases": lines}))
    return 3 if any("iiae_fast" in line["refused"] for line in lines) else 0


def _run(case: Case, plan: Plan) -> dict[str, Any]:
    """Check, then time; medians in seconds, and the share of ids in which rivals differ from ours."""
    calls: dict[str, Call] = {}
    results: dict[str, Any] = {}
    refused: dict[str, str] = {}
    absent: dict[str, str] = {}
    for contestant in case.contestants:
        try:
            made = contestant.make()
            call = made.call if isinstance(made, Ready) else made
            results[contestant.name] = call()
        except Unavailable as error:
            absent[contestant.name] = str(error)
            continue
        problem = (contestant.check or case.check)(results[contestant.name])
        if problem:
            refused[contestant.name] = problem
        else:
            calls[contestant.name] = call
    clock = CpuClock()
    timings = measure({name: clock.prepare(call) for name, call in calls.items()}, clock, plan)
    seconds = {name: float(np.median(timing.samples)) for name, timing in timings.items()}
    ours = results.get("iiae_fast")
    differ = {
        name: int((found != ours).sum())
        for name, found in results.items()
        if name != "iiae_fast" and getattr(found, "dtype", None) == np.int64
    }
    rate = case.work.flops / seconds["iiae_fast"] / 1e9 if case.work.flops and "iiae_fast" in seconds else None
    return {
        "case": case.name,
        "seconds": seconds,
        "gflops": rate,
        "ids_unlike_ours": differ,
        "refused": refused,
        "absent": absent,
    }


def _line(line: dict[str, Any]) -> str:
    seconds = line["seconds"]
    ours = seconds.get("iiae_fast")
    parts = [line["case"] + ":"]
    for name, value in seconds.items():
        wrong = line["ids_unlike_ours"].get(name)
        ratio = f" ({value / ours:.2f}x" if ours and name != "iiae_fast" else ""
        parts.append(
            f"{name} {1000 * value:.1f} ms" + ratio + (f", {wrong} ids unlike ours)" if wrong else ")" if ratio else "") + ";"
        )
    if line["gflops"]:
        parts.append(f"{line['gflops']:.0f} GFLOP/s")
    parts += [f"[{name}: {reason}]" for name, reason in (line["refused"] | line["absent"]).items()]
    return " ".join(parts)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"iiae_fast.bench.retrieval: {error}", file=sys.stderr)
        sys.exit(2)
