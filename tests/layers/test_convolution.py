"""The bf16 convolutions of every instruction set, against sums in float64 of the same rounded numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from iiae_fast import _C, convolution
from iiae_fast.errors import InputError

# Batch, height and width of the small map, its channels, and the large map's.
SHAPES = [
    (1, 1, 4, 1, 1),
    (3, 6, 4, 5, 3),  # five channels: one vector, not full; four images of three channels in one
    (2, 3, 8, 16, 4),
    (2, 4, 4, 40, 16),  # two blocks, the last of half a vector
    (1, 7, 12, 17, 33),  # odd numbers of channels and of groups of pixels
    (5, 4, 4, 64, 64),
    (1, 40, 64, 33, 48),  # maps in several pieces, the last one smaller
    (2, 3, 4, 300, 70),  # sums in several blocks of channels
]


class Operands(NamedTuple):
    small: Tensor
    large: Tensor
    weight: Tensor
    small_bias: Tensor
    large_bias: Tensor


def draw(shape: tuple[int, int, int, int, int], order: torch.memory_format = torch.channels_last) -> Operands:
    batch, height, width, small, large = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    return Operands(
        normal(batch, small, height, width).bfloat16().contiguous(memory_format=order),
        normal(batch, large, 2 * height, 2 * width).bfloat16().contiguous(memory_format=order),
        normal(small, large, 4, 4).contiguous(memory_format=order),
        normal(small),
        normal(large),
    )


def exact(operands: Operands) -> dict[str, Tensor]:
    """What the ops should give, in float64, and under "… size" the sum of all products' magnitudes, which bounds errors."""
    small, large, small_bias, large_bias = (operands[i].double() for i in (0, 1, 3, 4))
    weight = operands.weight.bfloat16().double()

    def gradient(small: Tensor, large: Tensor) -> Tensor:
        leaf = torch.zeros_like(weight).requires_grad_()
        F.conv2d(large, leaf, stride=2, padding=1).backward(small)
        assert leaf.grad is not None
        return leaf.grad

    return {
        "down": F.conv2d(large, weight, small_bias, 2, 1),
        "down size": F.conv2d(large.abs(), weight.abs(), small_bias.abs(), 2, 1),
        "up": F.conv_transpose2d(small, weight, large_bias, 2, 1),
        "up size": F.conv_transpose2d(small.abs(), weight.abs(), large_bias.abs(), 2, 1),
        "weight": gradient(small, large),
        "weight size": gradient(small.abs(), large.abs()),
        "bias": small.sum((0, 2, 3)),
        "bias size": small.abs().sum((0, 2, 3)),
    }


def check(found: Tensor, right: dict[str, Tensor], name: str) -> None:
    """Within the rounding of fp32 sums, and for a map half a unit of bf16 in the end."""
    half = 2.0**-8 if found.dtype == torch.bfloat16 else 0.0
    assert found.shape == right[name].shape
    off = (found.double() - right[name]).abs() - half * right[name].abs()
    assert (off <= 1e-6 * right[name + " size"]).all(), (name, off.max())


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_sums_in_float64(shape: tuple[int, int, int, int, int], order: torch.memory_format, threads: int) -> None:
    operands = draw(shape, order)
    small, large, weight, small_bias, large_bias = operands
    right = exact(operands)
    check(convolution.down(large, weight, small_bias), right, "down")
    check(convolution.up(small, weight, large_bias), right, "up")
    gradient = convolution.weight_gradient(small, large, weight)
    check(gradient, right, "weight")
    assert gradient.stride() == weight.stride(), "an optimizer wants the weight's own order"
    check(convolution.bias_gradient(small), right, "bias")


@pytest.mark.usefixtures("instruction_set")
def test_no_bias_is_a_bias_of_zeros() -> None:
    small, large, weight, small_bias, large_bias = draw((2, 4, 4, 5, 3))
    assert torch.equal(convolution.down(large, weight, None), convolution.down(large, weight, torch.zeros_like(small_bias)))
    assert torch.equal(convolution.up(small, weight, None), convolution.up(small, weight, torch.zeros_like(large_bias)))


@pytest.mark.usefixtures("instruction_set", "threads")
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_again(shape: tuple[int, int, int, int, int]) -> None:
    small, large, weight, small_bias, large_bias = draw(shape)
    for function, arguments in [
        (convolution.down, (large, weight, small_bias)),
        (convolution.up, (small, weight, large_bias)),
        (convolution.weight_gradient, (small, large, weight)),
        (convolution.bias_gradient, (large,)),
    ]:
        assert torch.equal(function(*arguments), function(*arguments))


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_place(value: float) -> None:
    small, large, weight, *_ = draw((1, 4, 8, 3, 2))
    large[0, 1, 2, 5] = value
    out = convolution.down(large, weight, None)
    theirs = F.conv2d(large.double(), weight.bfloat16().double(), None, 2, 1)
    assert torch.equal(out.isfinite(), theirs.isfinite())
    weight[1, 0, 0, 0] = value
    assert torch.equal(convolution.up(small, weight, None).isfinite()[0, 1], torch.ones(8, 16, dtype=torch.bool))
    assert not convolution.up(small, weight, None).isfinite()[0, 0].all()


def test_ops_keep_their_promises_to_the_compiler() -> None:
    small, large, weight, small_bias, large_bias = draw((2, 4, 4, 5, 3))
    for name, arguments in [
        ("down", (large, weight, small_bias)),
        ("up", (small, weight, large_bias)),
        ("weight_gradient", (small, large, weight)),
        ("bias_gradient", (large,)),
    ]:
        torch.library.opcheck(getattr(torch.ops.iiae_fast, f"convolution_{name}"), arguments)


FAR = torch.empty_strided((1, 3, 4, 4), (2**27, 16, 4, 1))  # a second channel would lie out of reach


def test_layers_leave_weights_out_of_reach_to_their_parents() -> None:
    maps = torch.zeros(2, 3, 8, 8)
    assert convolution.fits(maps, torch.zeros(1, 3, 4, 4), None, transposed=False)
    assert not convolution.fits(maps, FAR, None, transposed=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: convolution.down(o.large[:0], o.weight, None), "none of them 0"),
        (lambda o: convolution.up(o.small[:, :, :0], o.weight, None), "none of them 0"),
        (lambda o: convolution.down(o.large.float(), o.weight, None), "large: torch.float32"),
        (lambda o: convolution.up(o.small[0], o.weight, None), "small: torch.bfloat16 of shape \\(5, 4, 4\\)"),
        (lambda o: convolution.down(o.large[..., :6], o.weight, None), "W a multiple of 4"),
        (lambda o: convolution.down(o.large[:, :2], o.weight, None), "with a weight \\(5, 3, 4, 4\\)"),
        (lambda o: convolution.weight_gradient(o.small, o.large[:1], o.weight), "maps \\(2, 5, 4, 4\\) and \\(1, 3, 8, 8\\)"),
        (lambda o: convolution.down(o.large, o.weight.double(), None), "weight: torch.float64"),
        (lambda o: convolution.up(o.small[:, :1], FAR, None), "strides \\(134217728, 16, 4, 1\\); accepted is .* below 2"),
        (lambda o: convolution.down(o.large, o.weight, o.large_bias), "bias: torch.float32 \\(3,\\)"),
    ],
)
def test_bad_operands_are_named(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(InputError, match=message):
        call(draw((2, 4, 4, 5, 3)))


def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'sse9' is not available here; available are .*scalar"):
        _C.convolution.select_instruction_set("sse9")


@pytest.mark.usefixtures("instruction_set")
def test_sums_of_many_pixels_stay_exact() -> None:
    """A prime number of pixels, which no neighbours divide, of a number that fp32 would lose added up one by one."""
    gradient = torch.full((1, 1, 262139, 4), 1.0078125, dtype=torch.bfloat16)
    found = convolution.bias_gradient(gradient)
    torch.testing.assert_close(found.double(), gradient.double().sum((0, 2, 3)), rtol=1e-6, atol=0)


def test_a_call_after_one_without_memory(tmp_path: Path) -> None:
    """A small call makes room, a large one finds none, and a small one must find its room again."""
    script = """
import resource, torch
from iiae_fast import convolution
torch.set_num_threads(1)
def up(channels, width):
    small = torch.zeros(1, channels, 1, width, dtype=torch.bfloat16)
    weight = torch.zeros(1).expand(channels, 16, 4, 4)
    return convolution.up(small, weight, None)
up(16, 4)
limit = resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), limit[1]))
try:
    up(1 << 18, 4)
    raise SystemExit("there was memory")
except (MemoryError, RuntimeError):
    pass
resource.setrlimit(resource.RLIMIT_AS, limit)
up(16, 4)
print("alive")
"""
    if not Path("/proc/self/statm").exists() or "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("needs Linux's /proc, and AddressSanitizer has limits of its own")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "alive\n", done.stderr[-2000:]
