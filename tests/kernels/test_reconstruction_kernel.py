"""The Triton kernels of ``reconstruction`` against the reference: losses, the gradient written in forward, its early exit."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, LAYOUTS, compare, gradients, lay, poison
from torch import Tensor

from iiae_fast.kernels import reconstruction
from iiae_fast.kernels.reconstruction import forward, scale_gradients

pytestmark = pytest.mark.gpu

VARIANTS = [*itertools.product(("laplace", "gaussian"), (None, "tanh", "sigmoid")), ("bernoulli", None)]
SHAPE = (3, 2, 5, 4)


def make(
    shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32, target_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    prediction = torch.randn(shape).to(DEVICE, dtype)
    target = torch.randint(0, 256, shape, dtype=torch.uint8) if target_dtype == torch.uint8 else torch.rand(shape)
    return prediction, target.to(DEVICE, target_dtype)


def check(
    prediction: Tensor, target: Tensor, likelihood: str = "laplace", activation: str | None = "tanh", weight: float = 0.3
) -> None:
    def run(prediction: Tensor, *, backend: str) -> list[Tensor]:
        options = {"likelihood": likelihood, "activation": activation, "weight": weight}
        return [reconstruction(prediction, target, **options, backend=backend)]

    compare(run, [prediction])


@pytest.mark.parametrize("target_dtype", [*DTYPES, torch.uint8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_reference(dtype: torch.dtype, target_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target = make(SHAPE, dtype, target_dtype)
    poison(monkeypatch)
    check(prediction, target)


@pytest.mark.parametrize("target_dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("likelihood", "activation"), VARIANTS)
def test_variants(likelihood: str, activation: str | None, dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    prediction, target = make((2, 9), dtype, target_dtype)
    check(4 * prediction, target, likelihood, activation)


@pytest.mark.parametrize("target_layout", [*LAYOUTS, "same"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, target_layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target = make()
    prediction, target = lay(prediction, layout), lay(target, layout if target_layout == "same" else target_layout)
    poison(monkeypatch)
    check(prediction, target)


# 2,500 is more than one block; 17 blocks are more than the summing kernel's least.
@pytest.mark.parametrize("shape", [(2, 1), (2, 63), (2, 100), (2, 257), (2, 2500), (1, 17 * 2048), (2, 3, 4), (2, 3, 2, 2, 2)])
def test_sizes(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target = make(shape)
    poison(monkeypatch)
    check(prediction, target)


@pytest.mark.parametrize(
    ("first", "second"), [((2, 9), (2, 9)), ((2, 9), (2, 2500)), ((2, 3000), (2, 3, 2, 2)), ((2, 9), (3, 9))]
)
def test_pair_is_two_calls(first: tuple[int, ...], second: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    (x, x_target), (y, y_target) = make(first, torch.bfloat16, torch.uint8), make(second, torch.bfloat16, torch.uint8)
    x.requires_grad_()
    y.requires_grad_()
    poison(monkeypatch)
    together = reconstruction((x, y), (x_target, y_target), likelihood="gaussian", weight=0.7, backend="triton")
    assert isinstance(together, tuple)
    alone = [
        reconstruction(*domain, likelihood="gaussian", weight=0.7, backend="triton")
        for domain in ((x, x_target), (y, y_target))
    ]
    assert all(torch.equal(a, b) for a, b in zip(together, alone))
    assert all(torch.equal(a, b) for a, b in zip(gradients(together, (x, y)), gradients(alone, (x, y))))


@pytest.mark.parametrize("needed", [0, 1])
def test_pair_with_partial_requires_grad(needed: int) -> None:
    predictions, targets = zip(make((2, 9)), make((2, 7)))
    predictions[needed].requires_grad_()
    losses = [
        reconstruction(predictions, targets, likelihood="laplace", activation="tanh", backend=backend)
        for backend in ("triton", "reference")
    ]
    ours, theirs = (torch.autograd.grad(both[needed].sum(), predictions[needed]) for both in losses)
    torch.testing.assert_close(ours, theirs)


def test_pair_of_which_one_loss_is_used() -> None:
    predictions, targets = zip(make((2, 9)), make((2, 7)))
    leaves = [prediction.requires_grad_() for prediction in predictions]
    _, loss = reconstruction((leaves[0], leaves[1]), targets, likelihood="laplace", backend="triton")
    unused, gradient = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    assert unused is None
    torch.testing.assert_close(gradient, (leaves[1] - targets[1]).sign().detach())


def test_retained_graph_gives_the_same_gradient_again() -> None:
    prediction, target = make()
    prediction.requires_grad_()
    loss = 3 * reconstruction(prediction, target, likelihood="gaussian", activation="tanh", backend="triton")
    first = torch.autograd.grad(loss.sum(), prediction, retain_graph=True)[0].clone()
    again = torch.autograd.grad(loss.sum(), prediction, retain_graph=True)[0]
    assert torch.equal(first, again)
    torch.testing.assert_close(torch.autograd.grad(2 * loss.sum(), prediction)[0], 2 * first)


def test_backward_leaves_alone_what_is_multiplied_by_one() -> None:
    # Signalling patterns: a multiplication, even by 1, would make these NaNs quiet.
    signalling = torch.full((3, 5000), 0x7F810000, dtype=torch.int32, device=DEVICE).view(torch.float32)
    gradient = signalling.clone()
    gradient[1] = 2.0
    scale_gradients(gradient, torch.tensor([1.0, 3.0, 1.0], device=DEVICE), None, None)
    assert torch.equal(gradient.view(torch.int32)[::2], signalling.view(torch.int32)[::2])
    assert torch.equal(gradient[1], torch.full((5000,), 6.0, device=DEVICE))


def test_gradient_is_the_one_that_forward_wrote() -> None:
    prediction, target = make((2, 2500), torch.bfloat16, torch.uint8)
    prediction.requires_grad_()
    loss, written, _, _ = forward(prediction, target, None, None, "laplace", "tanh", 0.1, [True, False])
    (gradient,) = torch.autograd.grad(loss.sum(), prediction)
    assert gradient.data_ptr() == written.data_ptr()


def test_nothing_is_written_when_nobody_differentiates() -> None:
    prediction, target = make()
    assert not reconstruction(prediction, target, likelihood="laplace", backend="triton").requires_grad
    with torch.no_grad():
        loss = reconstruction(prediction.requires_grad_(), target, likelihood="laplace", backend="triton")
    assert not loss.requires_grad
    _, written, _, _ = forward(prediction.detach(), target, None, None, "laplace", None, 1.0, [False, False])
    assert written.numel() == 0


@pytest.mark.parametrize("incoming", [0.0, float("nan"), float("inf"), -2.0])
def test_unusual_incoming_gradients(incoming: float) -> None:
    prediction, target = make((2, 5))
    prediction.requires_grad_()
    loss = reconstruction(prediction, target, likelihood="gaussian", backend="triton")
    scale = torch.tensor([1.0, incoming], device=DEVICE)
    (gradient,) = torch.autograd.grad(loss, prediction, scale)
    torch.testing.assert_close(gradient, (2 * (prediction - target) * scale[:, None]).detach(), equal_nan=True)


def test_exactly_right_predictions_get_no_gradient() -> None:
    target = torch.arange(256, dtype=torch.uint8, device=DEVICE)[None]
    prediction = torch.tensor([[-1.0, 1.0]], device=DEVICE, requires_grad=True)
    loss = reconstruction(prediction, target[:, [0, 255]], likelihood="laplace", backend="triton")
    assert loss.item() == 0
    assert torch.autograd.grad(loss.sum(), prediction)[0].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("likelihood", "activation"), VARIANTS)
def test_large_values_stay_finite(likelihood: str, activation: str | None) -> None:
    prediction = torch.tensor([[200.0, -200.0, 0.0]], device=DEVICE)
    check(prediction, torch.tensor([[1.0, 1.0, 0.5]], device=DEVICE), likelihood, activation)


def test_nan_is_not_hidden() -> None:
    for likelihood, activation in VARIANTS:
        prediction = torch.tensor([[0.0, torch.nan], [0.0, 1.0]], device=DEVICE)
        loss = reconstruction(
            prediction, torch.zeros_like(prediction), likelihood=likelihood, activation=activation, backend="triton"
        )
        assert loss.isnan().tolist() == [True, False]


def test_empty_batch() -> None:
    prediction = torch.zeros(0, 3, 2, 2, device=DEVICE, requires_grad=True)
    loss = reconstruction(prediction, prediction.detach(), likelihood="laplace", backend="triton")
    assert loss.shape == (0,)
    assert torch.autograd.grad(loss.sum(), prediction)[0].shape == (0, 3, 2, 2)


def test_weight_keeps_its_fp64_digits() -> None:
    prediction, target = make((2, 3), torch.float64, torch.float64)
    check(prediction, target, weight=1 / 3)


def test_same_input_same_bits() -> None:
    prediction, target = make((2, 5000), torch.bfloat16, torch.uint8)
    first, again = (reconstruction(prediction, target, likelihood="gaussian", backend="triton") for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(("likelihood", "activation"), [("laplace", "tanh"), ("gaussian", "sigmoid"), ("bernoulli", None)])
def test_gradcheck(likelihood: str, activation: str | None) -> None:
    prediction, target = make((2, 3), torch.float64, torch.uint8)

    def loss(prediction: Tensor) -> Tensor:
        return reconstruction(prediction, target, likelihood=likelihood, activation=activation, weight=0.7, backend="triton")

    assert torch.autograd.gradcheck(loss, (prediction.requires_grad_(),))


def test_opcheck() -> None:
    (x, x_target), (y, y_target) = make((2, 3)), make((2, 2, 2, 2))
    x.requires_grad_()
    y.requires_grad_()
    torch.library.opcheck(forward, (x, x_target, y, y_target, "gaussian", "tanh", 0.5, [True, True]))
    torch.library.opcheck(forward, (x, x_target, None, None, "laplace", None, 0.5, [True, False]))
    scale = torch.tensor([1.0, 2.0], device=DEVICE)
    torch.library.opcheck(scale_gradients, (x.detach(), scale, y.detach(), scale))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_gives_the_same_bits(compiler: str) -> None:
    prediction, target = make((2, 2, 3, 3), torch.bfloat16, torch.uint8)
    prediction.requires_grad_()

    def step(prediction: Tensor, target: Tensor) -> Tensor:
        return reconstruction(
            (prediction, prediction), (target, target), likelihood="laplace", activation="tanh", backend="triton"
        )[1]

    compiled: Callable[..., Tensor] = torch.compile(step, fullgraph=True, backend=compiler)
    ours, theirs = compiled(prediction, target), step(prediction, target)
    assert torch.equal(ours, theirs)
    # By 3: the compiler's product, and the kernel that eager runs.
    assert torch.equal(*(torch.autograd.grad(3 * loss.sum(), prediction)[0] for loss in (ours, theirs)))
