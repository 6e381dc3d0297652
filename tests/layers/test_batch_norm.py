"""BatchNorm with its activation in bf16, of every instruction set, against float64 on the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iiae_fast import batch_norm, convolution
from iiae_fast.errors import InputError
from iiae_fast.layers import BatchNorm2d, Dropout

SHAPES = [(2, 1, 1, 1), (3, 5, 2, 3), (2, 16, 4, 4), (5, 33, 6, 7), (2, 40, 8, 8), (1, 300, 3, 5), (4, 3, 50, 50)]
EPSILON, MOMENTUM = 1e-5, 0.1


def draw(shape: tuple[int, ...], mean: float = 0.3, deviation: float = 1.0) -> tuple[Tensor, ...]:
    """x, the gradient of y, weight, bias, running mean and variance."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    weight, bias, running_mean, running_variance = torch.randn(4, shape[1], generator=generator).unbind()
    return (x * deviation + mean).bfloat16(), gradient.bfloat16(), weight, bias, running_mean.clone(), running_variance.abs()


def exact(x: Tensor, gradient: Tensor, weight: Tensor, bias: Tensor, slope: float) -> list[Tensor]:
    """y and the gradients of x, weight and bias."""
    leaves = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    y = F.leaky_relu(F.batch_norm(leaves[0], None, None, leaves[1], leaves[2], True, MOMENTUM, EPSILON), slope)
    y.backward(gradient.double())
    return [y, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.usefixtures("instruction_set", "threads")
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_float64(shape: tuple[int, ...], slope: float) -> None:
    x, gradient, weight, bias, running_mean, running_variance = draw(shape)
    right = exact(x, gradient, weight, bias, slope)
    moved_mean, moved_variance = running_mean.double(), running_variance.double()
    F.batch_norm(x.double(), moved_mean, moved_variance, None, None, True, MOMENTUM, EPSILON)
    y, mean, inverse = batch_norm.forward(x, weight, bias, running_mean, running_variance, MOMENTUM, EPSILON, slope)
    found = [y, *batch_norm.backward(gradient, x, weight, bias, mean, inverse, slope)]
    for name, one, other in zip(("y", "x", "weight", "bias"), found, right):
        rounding = 2.0**-8 if one.dtype == torch.bfloat16 else 0.0
        # What is added up, x of it: differences of such sums are as exact as the sums are.
        size = other.abs().max() + (gradient.double().abs().sum() if name in ("weight", "bias") else 1.0) * weight.abs().max()
        assert ((one.double() - other).abs() <= rounding * other.abs() + 2e-5 * size * inverse.abs().max().clamp(1)).all(), name
    torch.testing.assert_close(running_mean.double(), moved_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(running_variance.double(), moved_variance, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("mean", [1e3, -3e4])
def test_values_far_from_zero_keep_their_variance(mean: float) -> None:
    x, _, weight, bias, running_mean, running_variance = draw((4, 8, 20, 20), mean, deviation=abs(mean) / 30)
    _, found, inverse = batch_norm.forward(x, weight, bias, running_mean, running_variance, MOMENTUM, EPSILON, 1.0)
    variance, right = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=0)
    torch.testing.assert_close(inverse.double(), (variance + EPSILON).rsqrt(), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("instruction_set")
def test_an_outlier_in_the_first_pixel_costs_no_precision() -> None:
    x = (torch.randn(1, 1, 1024, 512, generator=torch.Generator().manual_seed(0)) * 0.01).bfloat16()
    x[0, 0, 0, 0] = 10.0
    weight, bias, running_mean, running_variance = torch.ones(4, 1).unbind()
    _, _, inverse = batch_norm.forward(x, weight, bias, running_mean, running_variance, MOMENTUM, EPSILON, 1.0)
    variance = torch.var(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(inverse.double(), (variance + EPSILON).rsqrt(), rtol=1e-4, atol=0)


@pytest.mark.usefixtures("instruction_set")
def test_a_relu_lets_nothing_through_not_even_infinity() -> None:
    x, gradient, weight, bias, running_mean, running_variance = draw((2, 4, 5, 5))
    y, mean, inverse = batch_norm.forward(x, weight, bias, running_mean, running_variance, MOMENTUM, EPSILON, 0.0)
    gradient[y == 0] = float("inf")
    assert all(tensor.isfinite().all() for tensor in batch_norm.backward(gradient, x, weight, bias, mean, inverse, 0.0))


@pytest.mark.usefixtures("instruction_set")
def test_constant_channels_have_no_variance() -> None:
    weight, bias, running_mean, running_variance = torch.ones(4, 2).unbind()
    x = torch.full((2, 2, 4, 4), 7.0, dtype=torch.bfloat16)
    y, mean, inverse = batch_norm.forward(
        x, weight, bias.clone(), running_mean.clone(), running_variance.clone(), 1.0, 1e-5, 1.0
    )
    assert torch.equal(mean, torch.full((2,), 7.0))
    torch.testing.assert_close(inverse, torch.full((2,), 1e-5).rsqrt())
    assert torch.equal(y, torch.ones_like(y))


@pytest.mark.usefixtures("instruction_set", "threads")
def test_same_bits_again() -> None:
    x, gradient, weight, bias, *running = draw((5, 33, 6, 7))
    first, second = (
        batch_norm.forward(x, weight, bias, *(kept.clone() for kept in running), MOMENTUM, EPSILON, 0.2) for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second))
    first, second = (batch_norm.backward(gradient, x, weight, bias, *first[1:], 0.2) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


def test_ops_keep_their_promises_to_the_compiler() -> None:
    x, gradient, weight, bias, *running = draw((3, 5, 2, 3))
    torch.library.opcheck(torch.ops.iiae_fast.batch_norm, (x, weight, bias, *running, MOMENTUM, EPSILON, 0.2))
    _, mean, inverse = batch_norm.forward(x, weight, bias, *running, MOMENTUM, EPSILON, 0.2)
    torch.library.opcheck(torch.ops.iiae_fast.batch_norm_backward, (gradient, x, weight, bias, mean, inverse, 0.2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: {"x": o["x"].float()}, r"x: torch.float32 of shape \(3, 5, 2, 3\)"),
        (lambda o: {"x": o["x"][:1, :, :1, :1]}, "two pixels or more"),
        (lambda o: {"weight": o["weight"].double()}, r"weight: torch.float64 \(5,\); accepted is torch.float32 \(5,\)"),
        (lambda o: {"bias": o["bias"][:4]}, r"bias: torch.float32 \(4,\)"),
        (lambda o: {"running_mean": torch.zeros(10)[::2]}, "running_mean.*contiguous"),
    ],
)
def test_bad_operands_are_named(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str) -> None:
    x, _, weight, bias, running_mean, running_variance = draw((3, 5, 2, 3))
    operands = {"x": x, "weight": weight, "bias": bias, "running_mean": running_mean, "running_variance": running_variance}
    with pytest.raises(InputError, match=message):
        batch_norm.forward(**{**operands, **change(operands)}, momentum=MOMENTUM, epsilon=EPSILON, slope=0.2)


def test_gradient_of_another_shape_is_refused() -> None:
    x, gradient, weight, bias, *_ = draw((3, 5, 2, 3))
    with pytest.raises(InputError, match=r"gradient: shape \(3, 5, 2, 2\); accepted is that of x, \(3, 5, 2, 3\)"):
        batch_norm.backward(gradient[..., :2], x, weight, bias, bias, bias, 0.2)


def parents(layer: BatchNorm2d, x: Tensor, slope: float, dropout: nn.Module | None) -> Tensor:
    x = nn.BatchNorm2d.forward(layer, x)
    return F.leaky_relu(x if dropout is None else dropout(x), slope)


def trained(
    step: Callable[[BatchNorm2d, Tensor, float, nn.Module | None], Tensor], x: Tensor, low: bool, p: float | None = None
) -> list[Tensor]:
    """Of a layer that a step was taken with: its output, all gradients, all statistics."""
    torch.manual_seed(1)
    layer = BatchNorm2d(x.shape[1], momentum=0.2)
    nn.init.normal_(layer.weight)
    leaf = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = step(layer, leaf, 0.0, None if p is None else Dropout(p))
    out.backward(torch.ones_like(out))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    assert layer.num_batches_tracked.item() == 1
    found = [out, leaf.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var]
    return [tensor.detach() for tensor in found if tensor is not None]


@pytest.mark.parametrize("p", [None, 0.5])
def test_a_layer_is_its_parent_with_an_activation(p: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "available", lambda: True)
    x = draw((4, 8, 6, 6))[0]
    ours, theirs = trained(BatchNorm2d.activated, x, True, p), trained(parents, x, True, p)
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours, theirs):
        assert one.dtype == other.dtype
        assert (one.double() - other.double()).norm() <= 8e-3 * other.double().norm()


@pytest.mark.parametrize(("low", "available"), [(False, True), (True, False)])
@pytest.mark.parametrize("p", [None, 0.5])
def test_elsewhere_it_is_its_parent_bit_for_bit(
    low: bool, available: bool, p: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "available", lambda: available)
    x = draw((4, 8, 6, 6))[0].to(torch.bfloat16 if low else torch.float32)
    for one, other in zip(trained(BatchNorm2d.activated, x, low, p), trained(parents, x, low, p)):
        assert torch.equal(one, other)


def test_in_evaluation_mode_it_is_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "available", lambda: True)
    layer, x = BatchNorm2d(8).eval(), draw((4, 8, 6, 6))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.activated(x, 0.2), F.leaky_relu(layer(x), 0.2))
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("kind", ["hook", "strided"])
def test_what_our_kernel_does_not_know_is_the_parents(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "available", lambda: True)
    layer, x, called = BatchNorm2d(8), draw((4, 8, 6, 6))[0], []
    if kind == "hook":
        layer.register_forward_hook(lambda *_: called.append(1))
    else:
        layer.weight = nn.Parameter(torch.ones(16)[::2])
    with torch.autocast("cpu", torch.bfloat16):
        out = layer.activated(x, 0.2)
    assert len(called) == (kind == "hook")
    assert torch.equal(out, parents(BatchNorm2d(8), x, 0.2, None))
