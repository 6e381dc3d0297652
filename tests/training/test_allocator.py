"""Memory that steps free stays with the process, until the run is over."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from iiae_fast.training.allocator import keep_freed_memory

def pages(count):
    for _ in range(3):
        torch.empty(2**24).fill_(1)  # 64 MiB: more than glibc ever keeps by itself
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.empty(2**24).fill_(1)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / count

torch.set_num_threads(1)
before = pages(4)
with keep_freed_memory(torch.device("cpu")):
    kept = pages(4)
after = pages(4)
print(before, kept, after)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is told")
def test_freed_memory_is_kept_during_a_run_alone() -> None:
    out = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True).stdout
    before, kept, after = map(float, out.split())
    assert kept < before / 2, "freed memory is not got anew"
    assert after > 0.9 * before, "afterwards it is given back"
