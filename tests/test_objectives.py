"""Every objective against its formula, written out from the distributions."""

from __future__ import annotations

import math

import pytest
import torch

from iiae_fast import objectives
from iiae_fast.config import ModelConfig, ObjectiveConfig
from iiae_fast.model import IIAE

CONFIG = ObjectiveConfig(reconstruction_weight=30.0, elbo_weight=0.3, interaction_weight=0.7, kl_annealing_steps=50.0)
STEP = 20
ANNEALING = 1 - math.exp(-20 / 50)


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = IIAE(ModelConfig("spatial", image_size=16, n_shared=2, n_exclusive=2, n_decoder=2, exclusive_dim=3))
    x, y = (torch.rand(5, 3, 16, 16) * 2 - 1 for _ in range(2))
    return model(x, y, seed=3), x, y


def expected_terms(out, x, y) -> dict[str, torch.Tensor]:
    return {
        "rec_x": 30 * (x - out.x_hat).abs().mean(),
        "rec_y": 30 * (y - out.y_hat).abs().mean(),
        "kl_x": out.q_x.kl().mean(),
        "kl_y": out.q_y.kl().mean(),
        "kl_s": out.q_s.kl().mean(),
        "kl_s_rx": out.q_s.kl(out.r_x).mean(),
        "kl_s_ry": out.q_s.kl(out.r_y).mean(),
    }


def check(terms: objectives.LossTerms, case, reconstruction: float, exclusive: float, shared: float, cross: float) -> None:
    expected = expected_terms(*case)
    for name, value in expected.items():
        torch.testing.assert_close(getattr(terms, name), value, rtol=1e-5, atol=1e-6)
    total = (
        reconstruction * (expected["rec_x"] + expected["rec_y"])
        + ANNEALING * (exclusive * (expected["kl_x"] + expected["kl_y"]) + shared * expected["kl_s"])
        + cross * (expected["kl_s_rx"] + expected["kl_s_ry"])
    )
    torch.testing.assert_close(terms.total, total, rtol=1e-5, atol=1e-6)
    leaves = [case[0].q_s.head, case[0].x_logits, case[0].r_y.head]
    ours = torch.autograd.grad(terms.total, leaves, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
    for a, b in zip(ours, theirs):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_iiae(case) -> None:
    terms = objectives.iiae(*case, CONFIG, step=STEP)
    check(terms, case, 1.0, 1.0, 0.3, 0.7)
    assert terms.kl_annealing == pytest.approx(ANNEALING)
    assert set(terms.named()) == {"total", *expected_terms(*case)}


def test_dvcca_is_iiae_without_interaction(case) -> None:
    terms = objectives.dvcca(*case, CONFIG, step=STEP)
    check(terms, case, 0.3, 0.3, 0.3, 0.0)
    without = ObjectiveConfig(reconstruction_weight=30.0, elbo_weight=0.3, interaction_weight=0.0, kl_annealing_steps=50.0)
    assert torch.equal(terms.total, objectives.iiae(*case, without, step=STEP).total)


def test_vae_and_beta_vae(case) -> None:
    check(objectives.vae(*case, CONFIG, step=STEP), case, 1.0, 1.0, 1.0, 0.0)
    check(objectives.beta_vae(*case, CONFIG, step=STEP), case, 1.0, 4.0, 4.0, 0.0)


def test_penalties_enter_with_their_weights(case) -> None:
    base = objectives.vae(*case, CONFIG, step=STEP)
    tc = objectives.total_correlation(*case, CONFIG, step=STEP, dataset_size=100)
    hsic = objectives.hsic(*case, CONFIG, step=STEP)
    assert tc.penalty is not None
    assert hsic.penalty is not None
    torch.testing.assert_close(tc.total, base.total + ANNEALING * 3 * tc.penalty)
    torch.testing.assert_close(hsic.total, base.total + 4 * hsic.penalty)
    assert hsic.penalty.item() > 0


def test_data_set_size_shifts_the_total_correlation_and_no_gradient(case) -> None:
    out = case[0]
    sized, unsized = (objectives.total_correlation(*case, CONFIG, step=STEP, **size) for size in ({"dataset_size": 100}, {}))
    shift = sum(z[0].numel() - 1 for z in (out.z_x, out.z_s, out.z_y)) * math.log(100 / 5)
    assert (sized.penalty - unsized.penalty).item() == pytest.approx(shift, rel=1e-5)
    ours, theirs = (torch.autograd.grad(terms.penalty, out.q_s.head, retain_graph=True) for terms in (sized, unsized))
    assert torch.equal(*ours, *theirs)


def test_squared_error_and_uint8_targets(case) -> None:
    out, x, _ = case
    gaussian = ObjectiveConfig(likelihood="gaussian", reconstruction_weight=30.0)
    torch.testing.assert_close(objectives.iiae(*case, gaussian).rec_x, 30 * (x - out.x_hat).square().mean())
    pixels = torch.randint(0, 256, x.shape, dtype=torch.uint8)
    expected = 30 * (pixels / 127.5 - 1 - out.x_hat).abs().mean()
    torch.testing.assert_close(objectives.iiae(out, pixels, pixels, CONFIG).rec_x, expected)


def test_zero_weights_still_report_their_terms(case) -> None:
    nothing = ObjectiveConfig(reconstruction_weight=30.0, elbo_weight=0.0, interaction_weight=0.0)
    terms = objectives.iiae(*case, nothing)
    assert terms.total.item() == 0
    torch.testing.assert_close(terms.rec_x, expected_terms(*case)["rec_x"])


def test_annealing() -> None:
    assert objectives.kl_annealing(0, 25000) == 0
    assert objectives.kl_annealing(10000, 25000) == pytest.approx(0.3296799539643607)
    assert objectives.kl_annealing(7, 0) == 1
    as_tensor = objectives.kl_annealing(torch.tensor(10000), 25000)
    assert isinstance(as_tensor, torch.Tensor)
    assert as_tensor.item() == pytest.approx(0.3296799539643607)


def test_classifier() -> None:
    torch.manual_seed(0)
    model = IIAE(
        ModelConfig("feature", feature_dim=8, n_shared=2, n_exclusive=2, n_decoder=4, shared_dim=3, exclusive_dim=2, classes=4)
    )
    x, y, labels = torch.randn(6, 8), torch.randn(6, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    out = model(x, y, seed=0)
    weighted = ObjectiveConfig("gaussian", 10.0, class_weight=2.0)
    terms = objectives.iiae(out, x, y, weighted, labels=labels)
    without = objectives.iiae(out, x, y, weighted)
    assert terms.classification is not None
    assert without.classification is None
    torch.testing.assert_close(terms.total, without.total + 2 * torch.nn.functional.cross_entropy(out.class_logits, labels))
