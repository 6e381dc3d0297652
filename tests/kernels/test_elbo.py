"""The end of the loss: its formula, and the Triton kernels against the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from kernel_cases import DEVICE, compare, gradients, poison
from torch import Tensor

from iiae_fast.kernels import ElboWeights, elbo
from iiae_fast.kernels.elbo import backward, forward

pytestmark = pytest.mark.gpu

WEIGHTS = ElboWeights(1.2, 1.2, 0.2, 0.7)
BACKENDS = ["reference", "triton"]


def make(batch: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    loss_x, loss_y, kl = torch.rand(batch), torch.rand(batch), 30 * torch.rand(5, batch)
    return [value.to(DEVICE, dtype) for value in (loss_x, loss_y, kl)]


def run(*terms: Tensor, backend: str, weights: ElboWeights = WEIGHTS, step: int | Tensor = 20) -> Sequence[Tensor]:
    return elbo(*terms, weights, step=step, annealing_steps=50.0, backend=backend)[:8]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "weights", [WEIGHTS, ElboWeights(0.3, 0.3, 0.3), ElboWeights(0.0, 0.0, 0.0), ElboWeights(0.0, 2.0, 1.0, 1.0)]
)
def test_formula(weights: ElboWeights, backend: str) -> None:
    loss_x, loss_y, kl = make(7)
    bound = elbo(loss_x, loss_y, kl, weights, step=20, annealing_steps=50.0, backend=backend)
    means = kl.double().mean(1).tolist()
    a = 1 - math.exp(-20 / 50)
    outer = weights.reconstruction or 1.0
    rec = [loss.double().sum().item() for loss in (loss_x, loss_y)]
    total = a * (weights.kl_exclusive * (means[0] + means[1]) + weights.kl_shared * means[2])
    total += weights.kl_cross * (means[3] + means[4]) + (sum(rec) if weights.reconstruction else 0.0)
    assert [float(value) for value in bound] == pytest.approx([total, *(one / outer for one in rec), *means, a], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 8, 63, 257, 1025])
def test_equals_reference(batch: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = make(batch, dtype)
    poison(monkeypatch)
    compare(run, terms)


@pytest.mark.parametrize("weights", [ElboWeights(0.0, 0.0, 0.0), ElboWeights(0.3, 1.0, 0.5)])
def test_weights_of_zero(weights: ElboWeights) -> None:
    compare(lambda *terms, backend: run(*terms, backend=backend, weights=weights), make(5))


def test_strided_terms() -> None:
    loss_x, loss_y, kl = make(9)
    wide = torch.zeros(9, 2, device=DEVICE)
    wide[:, 0] = loss_x
    compare(run, [wide[:, 0], loss_y[:1].expand(9), kl.t().contiguous().t()])


def test_gradient_of_reconstruction_is_exactly_one() -> None:
    """So that the backward of ``reconstruction`` returns at once."""
    terms = [term.requires_grad_() for term in make(600)]
    dloss_x, dloss_y, _ = torch.autograd.grad(run(*terms, backend="triton")[0], terms)
    assert torch.equal(dloss_x, torch.ones_like(dloss_x))
    assert torch.equal(dloss_y, torch.ones_like(dloss_y))


@pytest.mark.parametrize("used", range(8))
def test_every_term_is_differentiable(used: int) -> None:
    terms = [term.requires_grad_() for term in make(4)]
    ours, theirs = (
        torch.autograd.grad(run(*terms, backend=backend)[used], terms, allow_unused=True) for backend in ("triton", "reference")
    )
    for gradient, expected in zip(ours, theirs):
        assert gradient is not None
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if expected is None else expected)


def test_partial_requires_grad() -> None:
    loss_x, loss_y, kl = make(4)
    kl.requires_grad_()
    ours, theirs = (torch.autograd.grad(run(loss_x, loss_y, kl, backend=backend)[0], kl)[0] for backend in BACKENDS)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_step_may_be_a_tensor(backend: str) -> None:
    terms = make(3)
    for step in (torch.tensor(20, device=DEVICE), torch.tensor([20], device=DEVICE)):
        for ours, theirs in zip(run(*terms, backend=backend, step=step), run(*terms, backend=backend)):
            assert ours.shape == ()
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_steps_keep_their_digits(backend: str) -> None:
    annealing = elbo(
        *make(1), WEIGHTS, step=torch.tensor(1, device=DEVICE), annealing_steps=25000.0, backend=backend
    ).kl_annealing
    assert float(annealing) == pytest.approx(-math.expm1(-1 / 25000), rel=2e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_is_no_number(backend: str) -> None:
    total = run(*make(0), backend=backend)[0]
    assert total.isnan()


def test_gradcheck() -> None:
    terms = [term.requires_grad_() for term in make(2, torch.float64)]
    assert torch.autograd.gradcheck(lambda *given: tuple(run(*given, backend="triton")), terms)


def test_opcheck() -> None:
    terms = [term.requires_grad_() for term in make(3)]
    step = torch.tensor(3, device=DEVICE)
    torch.library.opcheck(forward, (*terms, step, list(WEIGHTS), 10.0))
    total, dterms = torch.ones((), device=DEVICE), torch.rand(8, device=DEVICE)
    torch.library.opcheck(backward, (total, dterms, step, 3, list(WEIGHTS), 10.0))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_gives_the_same_bits(compiler: str) -> None:
    terms = [term.requires_grad_() for term in make(6)]
    step = torch.tensor(3, device=DEVICE)

    def total(step: Tensor, *terms: Tensor) -> Tensor:
        return run(*terms, backend="triton", step=step)[0]

    compiled: Callable[..., Tensor] = torch.compile(total, fullgraph=True, backend=compiler)
    for _ in range(2):
        ours, theirs = compiled(step, *terms), total(step, *terms)
        assert torch.equal(ours, theirs)
        assert all(torch.equal(a, b) for a, b in zip(gradients([ours], terms), gradients([theirs], terms)))
        step.add_(1)  # the step is an input of the graph, not a constant in it


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss_x": torch.zeros(2, 1)}, ValueError, r"loss_x: shape \(2, 1\); accepted is \(B,\)"),
        ({"loss_y": torch.zeros(3)}, ValueError, r"loss_y: shape \(3,\); accepted is \(2,\)"),
        ({"kl": torch.zeros(4, 2)}, ValueError, r"kl: shape \(4, 2\); accepted is \(5, 2\)"),
        ({"kl": torch.zeros(5, 2, dtype=torch.float64)}, ValueError, "kl: dtype torch.float64 differs from loss_x's"),
        ({"loss_x": torch.zeros(2, dtype=torch.bfloat16)}, ValueError, "loss_x: dtype bfloat16; accepted are float32, float64"),
        ({"loss_y": [0.0, 1.0]}, TypeError, "loss_y: expected a tensor, got list"),
        ({"step": -1}, ValueError, "step=-1; accepted is a whole number of at least 0"),
        ({"step": torch.zeros(2, dtype=torch.int64)}, ValueError, r"step: torch.int64, shape \(2,\)"),
        ({"annealing_steps": -1.0}, ValueError, "annealing_steps=-1.0; accepted is a number of at least 0"),
        ({"weights": ElboWeights(1.0, math.nan, 0.0)}, ValueError, "kl_exclusive=nan; accepted is a finite number"),
        ({"backend": "cuda"}, ValueError, "backend='cuda'; accepted are"),
    ],
)
def test_bad_input_is_one_clear_error(change: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"loss_x": torch.zeros(2), "loss_y": torch.zeros(2), "kl": torch.zeros(5, 2), "weights": WEIGHTS, **change}
    with pytest.raises(error, match=message):
        elbo(**given)  # type: ignore[arg-type]
