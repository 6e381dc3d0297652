"""Reconstruction losses against their formulas."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli

from iiae_fast.kernels import reconstruction

VARIANTS = [*itertools.product(("laplace", "gaussian"), (None, "tanh", "sigmoid")), ("bernoulli", None)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def make_target(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype)
    return torch.rand(shape, dtype=torch.float64).to(dtype)


def expected(prediction: Tensor, target: Tensor, likelihood: str, activation: str | None) -> Tensor:
    value = prediction.double()
    wanted = target.double()
    if target.dtype == torch.uint8:
        wanted = wanted / 255 if likelihood == "bernoulli" else wanted / 127.5 - 1
    value = {None: value, "tanh": value.tanh(), "sigmoid": value.sigmoid()}[activation]
    if likelihood == "bernoulli":
        terms = -Bernoulli(logits=value, validate_args=False).log_prob(wanted)
    else:
        terms = (value - wanted).abs() if likelihood == "laplace" else (value - wanted) ** 2
    return terms.flatten(1).sum(1)


@pytest.mark.parametrize("target_dtype", [*FLOATS, torch.uint8])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("likelihood", "activation"), VARIANTS)
def test_is_the_formula(likelihood: str, activation: str | None, dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    prediction = torch.randn(3, 4, 5, 2).to(dtype)
    target = make_target((3, 4, 5, 2), target_dtype)
    loss = reconstruction(prediction, target, likelihood=likelihood, activation=activation, weight=2.5)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), 2.5 * expected(prediction, target, likelihood, activation), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("likelihood", "activation"), VARIANTS)
def test_gradcheck(likelihood: str, activation: str | None) -> None:
    prediction = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    target = make_target((2, 3), torch.uint8)
    assert torch.autograd.gradcheck(
        lambda x: reconstruction(x, target, likelihood=likelihood, activation=activation, weight=0.7), (prediction,)
    )


def test_pair_is_two_calls() -> None:
    predictions, targets = (torch.randn(3, 8), torch.randn(3, 5, 2)), (torch.randn(3, 8), torch.randn(3, 5, 2))
    both = reconstruction(predictions, targets, likelihood="gaussian", weight=3.0)
    assert isinstance(both, tuple)
    for ours, prediction, target in zip(both, predictions, targets):
        assert torch.equal(ours, reconstruction(prediction, target, likelihood="gaussian", weight=3.0))


def test_large_logits_stay_finite() -> None:
    prediction = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = reconstruction(prediction, torch.tensor([[1.0, 1.0]]), likelihood="bernoulli")
    loss.sum().backward()
    assert loss.tolist() == [200.0]
    assert prediction.grad is not None
    assert prediction.grad.tolist() == [[0.0, -1.0]]


def test_empty_batch() -> None:
    assert reconstruction(torch.zeros(0, 3, 2), torch.zeros(0, 3, 2), likelihood="laplace").shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": torch.zeros(2, 4)}, ValueError, r"target: shape \(2, 4\) differs from prediction's \(2, 3\)"),
        ({"prediction": torch.zeros(2, 3).int()}, ValueError, "prediction: dtype int32; accepted are float32"),
        ({"target": torch.zeros(2, 3).int()}, ValueError, "target: dtype int32; accepted are float32, .*, uint8"),
        ({"target": torch.zeros(2, 3, device="meta")}, ValueError, "target: device meta differs from prediction's cpu"),
        ({"target": torch.zeros(2, 3, requires_grad=True)}, ValueError, r"target: requires grad, .* target.detach\(\)"),
        ({"prediction": torch.zeros(3), "target": torch.zeros(3)}, ValueError, r"prediction: shape \(3,\); accepted"),
        ({"likelihood": "l1"}, ValueError, "likelihood='l1'; accepted are 'laplace', 'gaussian', 'bernoulli'"),
        ({"activation": "relu"}, ValueError, "activation='relu'; accepted are None, 'tanh', 'sigmoid'"),
        ({"likelihood": "bernoulli", "activation": "sigmoid"}, ValueError, "activation='sigmoid'; 'bernoulli' takes logits"),
        ({"weight": float("inf")}, ValueError, "weight=inf; accepted"),
        ({"weight": "1"}, TypeError, "weight: expected a number, got str"),
        ({"backend": "cpu"}, ValueError, "backend='cpu'; accepted"),
        ({"prediction": [torch.zeros(2, 3)] * 2}, ValueError, "target: 1 tensors for 2 predictions"),
        ({"prediction": [torch.zeros(2, 3)] * 3}, TypeError, "prediction: expected a tensor or a pair of tensors, got list"),
    ],
)
def test_bad_input_is_one_clear_error(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"prediction": torch.zeros(2, 3), "target": torch.zeros(2, 3), "likelihood": "laplace", **change}
    with pytest.raises(error, match=message):
        reconstruction(**arguments)  # type: ignore[call-overload]
