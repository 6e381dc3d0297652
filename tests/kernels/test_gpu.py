"""The kernels at the sizes they are used at, and in CUDA graphs; on the CPU small ones in the interpreter, and no graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from kernel_cases import DEVICE, NOISE, compare, gradients, make_heads
from torch import Tensor

from iiae_fast import kernels
from iiae_fast.kernels import ElboWeights, iiae_latents, philox_normal, reconstruction

pytestmark = pytest.mark.gpu
REAL = DEVICE == "cuda"
needs_gpu = pytest.mark.skipif(not REAL, reason="needs a CUDA device: run with IIAE_TEST_GPU=1 on one")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WEIGHTS = ElboWeights(1.2, 1.2, 0.2, 1.0)
# Published batch and code, a large batch, the largest codes.
CODES = [(8, 8, (128, 8, 8)), (256, 8, (128, 8, 8)), (4, 512, (16384,)), (100, 64, (64,))] if REAL else [(2, 8, (16, 4, 4))]
IMAGES = [(8, 3, 256, 256), (128, 3, 128, 128), (3, 1, 1023, 1021)] if REAL else [(2, 3, 16, 16)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "exclusive", "shared"), CODES)
def test_latents(batch: int, exclusive: int, shared: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    compare(partial(iiae_latents, seed=9), make_heads(batch, (exclusive,), shared, dtype, layout), least=NOISE)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", IMAGES)
def test_reconstruction(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> None:
    prediction = torch.randn(shape).to(DEVICE, dtype, memory_format=layout)
    target = torch.randint(256, shape, dtype=torch.uint8).to(DEVICE, memory_format=layout)

    def run(prediction: Tensor, *, backend: str) -> list[Tensor]:
        return [reconstruction(prediction, target, "laplace", "tanh", weight=1e-3, backend=backend)]

    compare(run, [prediction])


@pytest.mark.parametrize("size", [(1 << 22) + 3 if REAL else 1003])
def test_noise_is_the_cpu_s(size: int) -> None:
    ours = philox_normal((size,), 12345, 2, device=DEVICE, backend="triton")
    torch.testing.assert_close(ours.cpu(), philox_normal((size,), 12345, 2, backend="reference"), rtol=0, atol=1e-6)


def make_block(
    images: tuple[int, ...] = IMAGES[0], dtype: torch.dtype = torch.bfloat16
) -> tuple[Callable[[Tensor, Tensor], list[Tensor]], list[Tensor]]:
    """All between heads and total loss with every gradient, as a function of seed and step; and its leaves."""
    heads = make_heads(images[0], (8,), (128, 8, 8) if REAL else (16, 4, 4), dtype, "channels_last")
    logits = [torch.randn(images).to(DEVICE, dtype) for _ in range(2)]
    targets = [torch.randint(256, images, dtype=torch.uint8).to(DEVICE) for _ in range(2)]
    leaves = [leaf.requires_grad_() for leaf in (*heads, *logits)]

    def block(seed: Tensor, step: Tensor) -> list[Tensor]:
        latents = iiae_latents(*leaves[:5], seed=seed, backend="triton")
        losses = reconstruction((leaves[5], leaves[6]), (targets[0], targets[1]), "laplace", "tanh", 1e-3, backend="triton")
        bound = kernels.elbo(*losses, latents.kl, WEIGHTS, step=step, annealing_steps=100.0, backend="triton")
        outputs = [*latents[:3], bound.total]
        return [*(output.detach() for output in outputs), *gradients(outputs, leaves)]

    return block, leaves


def test_block_repeats_itself() -> None:
    block, _ = make_block()
    seed, step = torch.tensor([3], device=DEVICE), torch.tensor([10], device=DEVICE)
    assert all(torch.equal(a, b) for a, b in zip(block(seed, step), block(seed, step)))


@needs_gpu
def test_block_in_a_cuda_graph_advances_its_seed() -> None:
    block, _ = make_block()
    seed, step = torch.tensor([3], device=DEVICE), torch.tensor([10], device=DEVICE)
    expected = [block(seed + i, step + i) for i in range(3)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        block(seed, step)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = block(seed, step)
        seed.add_(1)
        step.add_(1)
    for wanted in expected:
        graph.replay()
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs, wanted))


@needs_gpu
def test_block_does_not_synchronize() -> None:
    block, _ = make_block()
    seed, step = torch.tensor([3], device=DEVICE), torch.tensor([10], device=DEVICE)
    block(seed, step)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        block(seed, step)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@needs_gpu
def test_compiled_block_gives_the_same_bits() -> None:
    _, leaves = make_block(dtype=torch.float32)
    seed, step = torch.tensor([3], device=DEVICE), torch.tensor([10], device=DEVICE)

    def total(seed: Tensor, step: Tensor, *leaves: Tensor) -> Tensor:
        latents = iiae_latents(*leaves[:5], seed=seed, backend="triton")
        bound = kernels.elbo(
            latents.kl[0], latents.kl[1], latents.kl, WEIGHTS, step=step, annealing_steps=100.0, backend="triton"
        )
        return bound.total

    compiled: Callable[..., Tensor] = torch.compile(total, fullgraph=True)
    for _ in range(2):
        ours, theirs = compiled(seed, step, *leaves), total(seed, step, *leaves)
        assert torch.equal(ours, theirs)
        assert all(torch.equal(*pair) for pair in zip(*(torch.autograd.grad(one, leaves[:5]) for one in (ours, theirs))))
        seed.add_(1)


@needs_gpu
def test_other_device_is_refused() -> None:
    heads = make_heads(2)
    with pytest.raises(ValueError, match=r"seed: device cpu differs from the inputs' cuda:0"):
        iiae_latents(*heads, seed=torch.tensor([1]), backend="triton")
    with pytest.raises(ValueError, match=r"q_x: device cpu differs from q_s's cuda:0"):
        iiae_latents(heads[0].cpu(), *heads[1:], seed=1, backend="triton")
