"""The noise: published vectors of Philox4x32-10, Triton's ``tl.randn``, and what a seed and a stream promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from iiae_fast.kernels import _philox_cpu, philox_normal, reference

# kat_vectors of Random123 1.14 (Salmon et al.), philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
SEEDS = [0, 1, 0x0123456789ABCDEF, -1, -(2**63), 2**63 - 1]


@triton.jit
def _randn_kernel(out_ptr, seed_ptr, N, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, tl.randn(tl.load(seed_ptr), offsets), mask=offsets < N)


def words(text: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([int(word, 16)]) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_published_vectors(counter: str, key: str, result: str) -> None:
    low, high = words(key)
    c0, c1, c2, c3 = words(counter)
    assert reference.philox4x32((c0, c1, c2, c3), (low, high)) == words(result)


@pytest.mark.parametrize("seed", SEEDS)
def test_stream_zero_is_triton_randn(seed: int) -> None:
    n = 1000
    theirs = torch.full((n,), torch.nan)
    _randn_kernel[(triton.cdiv(n, 256),)](theirs, torch.tensor([seed]), n, BLOCK=256)
    torch.testing.assert_close(philox_normal((n,), seed), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_op_for_cpus_has_the_bits_of_plain_pytorch(seed: int, threads: int) -> None:
    given, streams, sizes = torch.tensor(seed), [3, 0, 2**32 - 1, 7], [5, 0, 1, 10_001]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = _philox_cpu.uniforms(given, streams, sizes, reference._UNIFORM_MIN)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, reference.uniforms(given, streams, sizes)):
        assert torch.equal(one, other)


def test_the_op_for_cpus_bounds_the_first_number() -> None:
    found = _philox_cpu.uniforms(torch.tensor(5), [0], [1000], 0.5)
    assert found[0].min() == 0.5
    assert found[1].min() < 0.1


def test_the_op_for_cpus_keeps_its_promises_to_the_compiler() -> None:
    torch.library.opcheck(torch.ops.iiae_fast.philox_uniforms, (torch.tensor(5), [0, 3], [7, 2], 1e-7))


def test_noise_is_fp32_whatever_the_default() -> None:
    expected = philox_normal((10,), 5, 2)
    torch.set_default_dtype(torch.float64)
    try:
        found = philox_normal((10,), 5, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_a_compiled_draw_is_compiled_once_for_many_sizes() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    seed = torch.tensor(5)
    compiled = torch.compile(lambda x: x + reference.philox_normal(tuple(x.shape), seed, 1), backend=backend, fullgraph=True)
    for batch in (4, 5, 6, 7):
        assert torch.equal(compiled(torch.zeros(batch, 3)), reference.philox_normal((batch, 3), seed, 1))
    assert len(graphs) == 2, "one for the first size, one for all others"


def test_element_is_counted_in_row_major_order() -> None:
    flat = philox_normal((2 * 3 * 5 * 7,), 5, 2)
    assert torch.equal(philox_normal((2, 3, 5, 7), 5, 2), flat.reshape(2, 3, 5, 7))
    assert torch.equal(philox_normal((4,), 5, 2), flat[:4])


def test_streams_and_seeds_differ_and_repeat() -> None:
    draws = [philox_normal((50,), seed, stream) for seed in (0, 1, 2**32) for stream in (0, 1, 2)]
    assert all(torch.equal(a, b) == (i == j) for i, a in enumerate(draws) for j, b in enumerate(draws))
    assert torch.equal(philox_normal((50,), torch.tensor(2**32), 2), draws[-1])
    assert torch.equal(philox_normal((50,), torch.tensor([2**32]), 2), draws[-1])


def test_is_standard_normal() -> None:
    noise = philox_normal((400_000,), 11, 1).double()
    assert abs(noise.mean().item()) < 5 / 400_000**0.5
    assert abs(noise.square().mean().item() - 1) < 5 * (2 / 400_000) ** 0.5
    assert abs((noise.abs() < 1).double().mean().item() - 0.6826895) < 5 * (0.2165 / 400_000) ** 0.5
    assert torch.isfinite(noise).all()


def test_is_fp32_without_gradient_and_may_be_empty() -> None:
    noise = philox_normal((0, 3), 1)
    assert noise.shape == (0, 3)
    assert noise.dtype == torch.float32
    assert not philox_normal((2,), 1).requires_grad


def test_compiled_equals_eager() -> None:
    compiled = torch.compile(lambda seed: philox_normal((100,), seed, 3), fullgraph=True)
    seed = torch.tensor([77])
    torch.testing.assert_close(compiled(seed), philox_normal((100,), seed, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": (2,), "seed": 1.5}, TypeError, "seed: expected a whole number"),
        ({"shape": (2,), "seed": True}, TypeError, "seed: expected a whole number"),
        ({"shape": (2,), "seed": 2**63}, ValueError, "seed=9223372036854775808; accepted"),
        ({"shape": (2,), "seed": torch.tensor([1, 2])}, ValueError, r"seed: torch.int64, shape \(2,\); accepted"),
        ({"shape": (2,), "seed": torch.tensor([1.0])}, ValueError, "seed: torch.float32"),
        (
            {"shape": (2,), "seed": torch.tensor([1]), "device": "meta"},
            ValueError,
            "seed: device cpu differs from the inputs' meta",
        ),
        ({"shape": (-2,), "seed": 1}, ValueError, "shape=-2; accepted"),
        ({"shape": (2,), "seed": 1, "stream": -1}, ValueError, "stream=-1; accepted"),
        (
            {"shape": (2,), "seed": 1, "backend": "cuda"},
            ValueError,
            "backend='cuda'; accepted are 'auto', 'reference', 'triton'",
        ),
    ],
)
def test_bad_input_is_one_clear_error(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        philox_normal(**arguments)  # type: ignore[arg-type]


def test_numpy_s_numbers_are_numbers() -> None:
    ours = philox_normal((np.int64(3),), np.int64(5), np.uint32(1))  # type: ignore[arg-type]
    assert torch.equal(ours, philox_normal((3,), 5, 1))
