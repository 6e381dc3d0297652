"""One rank of the sharded test, in a module that a spawned process can import."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from iiae_fast.retrieval import METRICS, ShardedIndex


def make() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return np.rint(rng.normal(size=(41, 4)) * 2).astype(np.float32), np.rint(rng.normal(size=(6, 4)) * 2).astype(np.float32)


def worker(rank: int, world: int, split: list[int], rendezvous: str, device: str, results: multiprocessing.Queue) -> None:
    """One rank; its device "cuda" is the emulated one."""
    with contextlib.ExitStack() as stack:
        if device == "cuda":
            sys.path.insert(0, str(Path(__file__).parent.parent))
            from emulation.runtime import emulate

            stack.enter_context(emulate())
        work(rank, world, split, rendezvous, device, results)


def work(rank: int, world: int, split: list[int], rendezvous: str, device: str, results: multiprocessing.Queue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    rows, queries = make()
    mine = rows[split[rank] : split[rank + 1]]
    found = {}
    for metric in METRICS:
        index = ShardedIndex(mine, metric=metric, device=device, threads=1)
        assert len(index) == 41
        mask = np.random.default_rng(1).random((6, 41)) < 0.4
        ids = np.arange(6) * 7
        found[metric] = [
            tuple(index.search(queries, 41)),
            tuple(index.search(queries, 30, allowed=mask)),
            tuple(index.search(queries, 5, exclude=ids)),
            tuple(values.numpy() for values in index.search(torch.from_numpy(queries), 3)),
        ]
    errors = []
    for bad in (
        lambda: ShardedIndex(np.full((3, 4), np.nan if rank else 1.0)),
        lambda: ShardedIndex(mine, metric="l3" if rank else "cosine"),  # where all ranks wait for each other
        lambda: index.search(queries, 42),
    ):
        try:
            bad()
        except ValueError as error:
            errors.append(str(error))
    results.put((rank, found, errors))
    dist.destroy_process_group()
