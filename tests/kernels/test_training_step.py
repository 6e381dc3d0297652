"""The training step on the Triton kernels: which operators lie between the heads and the loss, and that it learns the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import DEVICE
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from iiae_fast import IIAE, ObjectiveConfig, data, objectives, presets

pytestmark = pytest.mark.gpu

ALLOCATIONS = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")


@torch.library.custom_op("iiae_test::decode", mutates_args=())
def decode(z_s: Tensor, z_exclusive: Tensor) -> Tensor:
    return z_s.new_ones(len(z_s), 3, 16, 16)


@torch.library.custom_op("iiae_test::decode_backward", mutates_args=())
def decode_backward(gradient: Tensor, z_s: Tensor, z_exclusive: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(z_s), torch.ones_like(z_exclusive)


decode.register_autograd(
    lambda ctx, gradient: decode_backward(gradient, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class Decoder(nn.Module):
    """One operator each way."""

    def forward(self, z_s: Tensor, z_exclusive: Tensor) -> Tensor:
        return decode(z_s, z_exclusive)


class Recorder(TorchDispatchMode):
    """Names of dispatched operators that do something: no views, no allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if not func.is_view and name not in ALLOCATIONS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_nothing_is_left_between_heads_and_loss(layout: torch.memory_format) -> None:
    model = IIAE(presets.get("digits-cdcb", image_size=16).model, backend="triton").to(DEVICE, memory_format=layout)
    model.decoder_x, model.decoder_y = Decoder(), Decoder()
    x, y = (torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, device=DEVICE) for _ in range(2))
    seed, step = torch.tensor([5], device=DEVICE), torch.tensor([7], device=DEVICE)
    with Recorder() as recorder:
        terms = objectives.iiae(model(x, y, seed=seed), x, y, ObjectiveConfig(), step=step)
        terms.total.backward()
    names = recorder.names[recorder.names.index("iiae_latents") : recorder.names.index("iiae_latents_backward") + 1]
    assert names == [
        "iiae_latents",
        "decode",
        "decode",
        "reconstruction",
        "elbo",
        "ones_like",  # the gradient that backward() starts from
        "elbo_backward",
        "reconstruction_scale_",
        "decode_backward",
        "decode_backward",
        "add",  # z_s is decoded twice: autograd adds the two gradients
        "iiae_latents_backward",
    ]


def test_learns_the_same_as_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first steps of the demo's preset, weights and optimizer."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # both runs shall have the same convolutions
    preset = presets.get("digits-cdcb")
    pairs = [torch.as_tensor(images).to(DEVICE) for images in data.load(preset.data).train.batch(np.arange(16), epoch=0)[:2]]
    objective = dataclasses.replace(preset.objective, kl_annealing_steps=5.0)
    history: dict[str, list[dict[str, float]]] = {}
    for backend in ("reference", "triton"):
        torch.manual_seed(0)
        model = IIAE(preset.model, backend=backend).to(DEVICE)
        optimizer = torch.optim.Adam(model.parameters(), lr=preset.optim.lr)
        history[backend] = []
        for step in range(3):
            terms = objectives.iiae(model(*pairs, seed=step), *pairs, objective, step=step)
            optimizer.zero_grad()
            terms.total.backward()
            optimizer.step()
            history[backend].append({name: value.item() for name, value in terms.named().items()})
    for ours, theirs in zip(history["triton"], history["reference"]):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_exports_on_the_plain_backend() -> None:
    """The whole loss as one exported program, seed and step among its inputs."""
    model = IIAE(presets.get("digits-cdcb", image_size=16).model, backend="reference").to(DEVICE)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, y: Tensor, seed: Tensor, step: Tensor) -> Tensor:
            out = self.model(x, y, sample=True, seed=seed)
            return objectives.iiae(out, x, y, ObjectiveConfig(), step=step).total

    loss = Loss().eval()
    x, y = (torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, device=DEVICE) for _ in range(2))
    seed, step = torch.tensor([5], device=DEVICE), torch.tensor([7], device=DEVICE)
    program = torch.export.export(loss, (x, y, seed, step)).module()
    for _ in range(2):
        torch.testing.assert_close(program(x, y, seed, step), loss(x, y, seed, step))
        seed.add_(1)
        step.add_(100)
