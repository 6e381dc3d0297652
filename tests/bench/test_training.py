"""The plain port that training is compared with computes the same losses as the package, and as the published graph."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from paths import GOLDEN, needs_golden

from iiae_fast import convolution, objectives, official
from iiae_fast.bench.baselines.port import PlainIIAE, plain_losses
from iiae_fast.bench.registry import Ready, Settings
from iiae_fast.bench.training import cases, give_weights, plain_model
from iiae_fast.config import ModelConfig, ObjectiveConfig
from iiae_fast.model import IIAE

TERMS = ("rec_x", "rec_y", "kl_x", "kl_y", "kl_s", "kl_s_rx", "kl_s_ry", "total")
OBJECTIVE = ObjectiveConfig(reconstruction_weight=700.0, elbo_weight=0.3, interaction_weight=0.8, kl_annealing_steps=50.0)
SMALL = {"n_shared": 4, "n_exclusive": 2, "n_decoder": 3, "dropout": 0.0}


def twins(config: ModelConfig) -> tuple[IIAE, PlainIIAE]:
    """Both models in training mode, with the same weights, none of them zero."""
    torch.manual_seed(0)
    model = IIAE(config).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    port = plain_model(config).double().train()
    give_weights(model, port)
    return model, port


@pytest.mark.parametrize("image_size", [32, 128, 256])
def test_losses_and_gradients_are_the_packages(image_size: int) -> None:
    model, port = twins(ModelConfig("spatial", image_size=image_size, **SMALL))
    x, y = torch.rand(2, 3, *model.config.input_shape, dtype=torch.float64) * 2 - 1
    ours = objectives.iiae(model(x, y, sample=False), x, y, OBJECTIVE, step=20)
    theirs = plain_losses(port(x, y, sample=False), x, y, OBJECTIVE, ours.kl_annealing)
    for name in TERMS:
        assert theirs[name].item() == pytest.approx(getattr(ours, name).item(), rel=1e-6), name  # our losses are fp32 sums
    gradients = zip(
        torch.autograd.grad(ours.total, list(model.parameters())),
        torch.autograd.grad(theirs["total"], list(port.parameters())),
        strict=True,
    )
    for one, other in gradients:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


@needs_golden
def test_losses_are_the_published_graphs() -> None:
    folder = GOLDEN / "image"
    meta = json.loads((folder / "meta.json").read_text())
    variables = dict(np.load(folder / "variables.npz"))
    expected = np.load(folder / "train_losses_grads.npz")
    x, y = (torch.from_numpy(np.load(folder / "inputs.npz")[name]).permute(0, 3, 1, 2).float() / 255 * 2 - 1 for name in "xy")
    source = official.load_variables(IIAE(official.config_of(variables)), variables)
    port = plain_model(source.config).train()
    give_weights(source, port)
    for module in port.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    weights = ObjectiveConfig(
        reconstruction_weight=meta["l1_weight"], elbo_weight=meta["BETA"], interaction_weight=meta["LAMBDA"]
    )
    terms = plain_losses(port(x, y, sample=False), x, y, weights, meta["kl_annealing"])
    published = {"rec_x": "recon_x", "rec_y": "recon_y", "total": "joint"}
    for name in TERMS:
        value = float(expected[f"loss/{published.get(name, name)}"])
        assert terms[name].item() == pytest.approx(value, rel=1e-5), name


def test_published_widths_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        port = plain_model(ModelConfig("spatial"))
    assert sum(parameter.numel() for parameter in port.parameters()) == 16_801_830


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_check_refuses_a_step_whose_loss_or_gradient_is_off(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "available", lambda: precision == "bf16")
    case = next(iter(cases(Settings(quick=True, toy=True))))
    made, check = case.contestants[0].make(), case.contestants[0].check or case.check
    assert isinstance(made, Ready)
    found = made.probe()
    assert check(found) == ""
    assert set(TERMS) < set(found)
    for name in found:
        problem = check({**found, name: found[name] * (1.001 if precision == "fp32" else 1.1)})
        assert problem.startswith(f"{name} is "), problem


def test_both_steps_learn() -> None:
    case = next(iter(cases(Settings(quick=True, toy=True))))
    for contestant in case.contestants:
        made = contestant.make()
        assert isinstance(made, Ready)
        before = made.probe()["total"]
        for _ in range(20):
            made.call()
        assert made.probe()["total"] < 0.9 * before, contestant.name
