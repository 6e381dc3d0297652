"""The machine code of the CUDA engine, on a machine without a GPU."""

from __future__ import annotations

import pytest

from iiae_fast import _C
from iiae_fast.bench import cuda_binary
from iiae_fast.bench.registry import Unavailable


def test_kernels_fit_their_registers_and_use_the_tensor_cores() -> None:
    try:
        usages = cuda_binary.resource_usage()
    except Unavailable as error:
        pytest.skip(str(error))
    assert cuda_binary.problems(usages) == []
    targets = {one.target for one in usages}
    kernels = {one.kernel for one in usages}
    assert len(usages) == len(targets) * len(kernels)
    products = {"scan_kernel<8 queries, ": 2, "scan_kernel<128 queries, ": 32, "count_kernel<": 8}
    assert {name + how for name in products for how in ("resident>", "staged>")} <= kernels
    for one in usages:
        for name, number in products.items():
            if one.kernel.startswith(name):
                # Two blocks of 256 threads share a multiprocessor; four, where the scan waits for memory.
                assert one.registers <= (64 if "<8 queries" in one.kernel else 128)
                assert one.products == number


def test_problems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    good = cuda_binary.Usage("scan_kernel<8 queries, staged>", "sm_80", 64, 0, 7168, 2, 24)
    other = good._replace(kernel="count_kernel<staged>")
    monkeypatch.setattr(cuda_binary, "ptx_targets", lambda: ["sm_120"])
    assert cuda_binary.problems([good, other]) == []
    for bad, message in (
        (good._replace(stack=8), "8 bytes of registers on the stack"),
        (good._replace(products=0), "0 IMMA"),
        (good._replace(copies=0), "0 LDGSTS"),
        (good._replace(kernel="other_kernel"), "no scan_kernel"),
    ):
        (line,) = cuda_binary.problems([bad, other])
        assert message in line
    monkeypatch.setattr(cuda_binary, "ptx_targets", list)
    assert cuda_binary.problems([good, other]) == ["there is no PTX"]
    assert cuda_binary.problems([good]) == ["there is no count_kernel", "there is no PTX"]


def test_without_the_cuda_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_C, "cuda", raising=False)
    with pytest.raises(Unavailable, match="built without its CUDA engine"):
        cuda_binary.resource_usage()
