"""The networks' layers under bf16 autocast on a CPU, and everywhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from iiae_fast import convolution
from iiae_fast.layers import BatchNorm2d, Conv2d, ConvTranspose2d, Dropout

CASES = [(Conv2d, nn.Conv2d, 3, 8), (Conv2d, nn.Conv2d, 8, 5), (ConvTranspose2d, nn.ConvTranspose2d, 8, 5)]
CASES += [(ConvTranspose2d, nn.ConvTranspose2d, 5, channels) for channels in (1, 3, 4)]
CASES += [(Conv2d, nn.Conv2d, 16, 5), (ConvTranspose2d, nn.ConvTranspose2d, 5, 17)]


def twins(ours: type[nn.Module], parent: type[nn.Module], inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    layers = [kind(inputs, outputs, 4, stride=2, padding=1) for kind in (ours, parent)]
    layers[1].load_state_dict(layers[0].state_dict())
    return layers[0], layers[1]


def results(layer: nn.Module, x: Tensor, gradient: Tensor, low: bool) -> list[Tensor]:
    """Output and the gradients of input, weight and bias, in float64."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = layer(x)
    out.backward(gradient.to(out.dtype))
    assert x.grad is not None
    return [out.double(), *(tensor.double() for tensor in (x.grad, layer.weight.grad, layer.bias.grad))]


@pytest.fixture
def own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our kernels on every processor, by the portable ones if need be."""
    monkeypatch.setattr(convolution, "available", lambda: True)


@pytest.mark.usefixtures("own_kernels")
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("ours", "parent", "inputs", "outputs"), CASES)
def test_bf16_is_as_exact_as_the_parents(
    ours: type[nn.Module], parent: type[nn.Module], inputs: int, outputs: int, order: torch.memory_format
) -> None:
    layer, plain = twins(ours, parent, inputs, outputs)
    x = torch.randn(3, inputs, 12, 8).contiguous(memory_format=order)
    size = (6, 4) if isinstance(layer, nn.Conv2d) else (24, 16)
    gradient = torch.randn(3, outputs, *size)
    exact = results(twins(ours, parent, inputs, outputs)[1].double(), x.double(), gradient.double(), low=False)
    found, theirs = results(layer, x, gradient, low=True), results(plain, x, gradient, low=True)
    for name, one, other, right in zip(("output", "input", "weight", "bias"), found, theirs, exact):
        ours_off, theirs_off = (one - right).norm() / right.norm(), (other - right).norm() / right.norm()
        assert ours_off <= 2 * theirs_off + 1e-3, (name, ours_off, theirs_off)
        assert ours_off < 8e-3, name
    assert layer.weight.grad.dtype == torch.float32
    rounded = results(
        twins(ours, parent, inputs, outputs)[1].double(), x.bfloat16().double(), gradient.bfloat16().double(), False
    )
    for name, one, right in list(zip(("output", "input", "weight", "bias"), found, rounded))[2:]:
        assert (one - right).norm() < 1e-5 * right.norm(), f"{name}: a sum of bf16's products, itself not rounded to bf16"


@pytest.mark.parametrize(("ours", "parent", "inputs", "outputs"), CASES)
def test_elsewhere_they_are_their_parents_bit_for_bit(
    ours: type[nn.Module], parent: type[nn.Module], inputs: int, outputs: int
) -> None:
    layer, plain = twins(ours, parent, inputs, outputs)
    x = torch.randn(2, inputs, 8, 8)
    gradient = torch.randn(2, outputs, *((4, 4) if isinstance(layer, nn.Conv2d) else (16, 16)))
    for one, other in zip(results(layer, x, gradient, low=False), results(plain, x, gradient, low=False)):
        assert torch.equal(one, other)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize(("ours", "parent", "inputs", "outputs"), CASES)
def test_where_our_kernels_are_not_available_they_are_their_parents(
    ours: type[nn.Module], parent: type[nn.Module], inputs: int, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "available", lambda: False)
    layer, plain = twins(ours, parent, inputs, outputs)
    x = torch.randn(2, inputs, 8, 8)
    gradient = torch.randn(2, outputs, *((4, 4) if isinstance(layer, nn.Conv2d) else (16, 16)))
    for one, other in zip(results(layer, x, gradient, low=True), results(plain, x, gradient, low=True)):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("own_kernels")
@pytest.mark.parametrize("size", [(6, 6), (8, 4), (2, 10)])
def test_maps_that_our_kernels_do_not_take_are_the_parents(size: tuple[int, int]) -> None:
    layer, plain = twins(Conv2d, nn.Conv2d, 3, 4)
    x, gradient = torch.randn(2, 3, *size), torch.randn(2, 4, size[0] // 2, size[1] // 2)
    for one, other in zip(results(layer, x, gradient, low=True), results(plain, x, gradient, low=True)):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("own_kernels")
def test_input_that_needs_no_gradient_gets_none() -> None:
    layer = Conv2d(3, 4, 4, stride=2, padding=1)
    x = torch.randn(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    assert x.grad is None
    assert layer.weight.grad is not None


@pytest.mark.usefixtures("own_kernels")
def test_output_padding_and_wide_numbers_are_the_parents() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        padded = ConvTranspose2d(5, 3, 4, stride=2, padding=1, output_padding=1)
        assert padded(torch.randn(1, 5, 4, 4)).shape == (1, 3, 9, 9)
        with pytest.raises(RuntimeError, match=r"[Dd]ouble|dtype|type"):
            Conv2d(3, 4, 4, stride=2, padding=1)(torch.randn(1, 3, 8, 8).double())


@pytest.mark.usefixtures("own_kernels")
@pytest.mark.parametrize("power", [1, 2])  # with 1, the gradient that comes back depends on nothing
@pytest.mark.parametrize("layer", [Conv2d(3, 4, 4, stride=2, padding=1), BatchNorm2d(3)])
def test_a_second_derivative_is_refused_not_zero(layer: nn.Module, power: int) -> None:
    x = torch.randn(2, 3, 8, 8).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer.activated(x, 0.2) if isinstance(layer, BatchNorm2d) else layer(x)
    (gradient,) = torch.autograd.grad(out.float().pow(power).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.float().square().sum().backward()


def dropped(layer: Dropout, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


@pytest.mark.parametrize("p", [0.5, 0.25, 0.3, 0.01])
@pytest.mark.parametrize("shape", [(7, 5, 9, 11), (13, 1001)])
def test_dropout_keeps_the_right_share_and_scales_it(p: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    x = torch.ones(shape, dtype=torch.bfloat16).requires_grad_()
    out = dropped(Dropout(p), x)
    kept = out != 0
    count = x.numel()
    assert abs(kept.sum().item() - count * (1 - p)) < 5 * (count * p * (1 - p)) ** 0.5
    assert torch.equal(out[kept], torch.full_like(out[kept], 1 / (1 - p)))
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach()), "the gradient goes where the value went"


def test_dropout_depends_on_torchs_seed_alone() -> None:
    x = torch.randn(4, 8, 6, 6).requires_grad_()

    def draw(seed: int, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Tensor:
        torch.manual_seed(seed)
        return dropped(Dropout(0.5), change(x)) != 0

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    both = draw(1) & draw(2)
    assert 0.15 < both.float().mean() < 0.35
    channels_last = draw(1, lambda tensor: tensor.contiguous(memory_format=torch.channels_last))
    assert torch.equal(draw(1), channels_last), "the order in memory changes nothing"


def test_dropout_of_nearly_all_keeps_its_scale_finite() -> None:
    out = dropped(Dropout(1 - 1e-7), torch.ones(1000).requires_grad_())
    assert torch.isfinite(out).all()


def test_dropout_in_evaluation_mode_does_nothing() -> None:
    x = torch.randn(3, 4).requires_grad_()
    assert torch.equal(dropped(Dropout(0.5).eval(), x), x)
