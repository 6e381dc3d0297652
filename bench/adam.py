"""Adam on a CPU over a whole network, beside PyTorch's: fused and by its default, one call of many per operation."""

from __future__ import annotations

__all__ = ["cases"]

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from iiae_fast import presets
from iiae_fast.adam import Adam
from iiae_fast.bench.ops import wrong
from iiae_fast.bench.registry import Call, Case, Contestant, Ready, Settings, Work
from iiae_fast.config import ModelConfig
from iiae_fast.model import IIAE

_LR, _BETAS, _EPS = 2e-4, (0.5, 0.999), 1e-8  # as published
_Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def cases(settings: Settings) -> Iterator[Case]:
    """The parameters of the 32×32 network and, but for quick runs, of the published one at 256×256."""
    if settings.device != "cpu":
        return
    if settings.toy:
        yield _case(settings, ModelConfig(image_size=16, n_shared=4, n_exclusive=4, n_decoder=4), "16×16, narrow")
        return
    yield _case(settings, presets.get("mnist-cdcb", image_size=32).model, "MNIST, 32×32")
    if not settings.quick:
        yield _case(settings, presets.get("maps").model, "Maps, 256×256")


def _case(settings: Settings, config: ModelConfig, network: str) -> Case:
    torch.manual_seed(settings.seed)
    model = IIAE(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    initial = [parameter.detach() for parameter in model.parameters()]
    gradients = [torch.randn_like(parameter) for parameter in initial]
    count = sum(parameter.numel() for parameter in initial)

    def ready(make: _Make, dtype: torch.dtype = torch.float32) -> Call:
        owned = [nn.Parameter(values.to(dtype, copy=True)) for values in initial]
        for parameter, gradient in zip(owned, gradients, strict=True):
            parameter.grad = gradient.to(dtype)
        optimizer = make(owned)

        def call() -> tuple[Tensor, ...]:
            optimizer.step()
            return tuple(parameter.detach() for parameter in owned)

        return call

    def exact(owned: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(owned, _LR, _BETAS, _EPS, foreach=False)

    def contestant(name: str, make: _Make) -> Contestant:
        # Every call moves the parameters on, so what is checked is the first step of another copy.
        return Contestant(name, lambda: Ready(ready(make), ready(make)))

    makers: dict[str, _Make] = {
        "iiae_fast": lambda owned: Adam(owned, _LR, _BETAS, _EPS),
        "eager fused": lambda owned: torch.optim.Adam(owned, _LR, _BETAS, _EPS, fused=True),
        "eager": lambda owned: torch.optim.Adam(owned, _LR, _BETAS, _EPS),
    }
    expected = ready(exact, torch.float64)()
    names = [name for name, _ in model.named_parameters()]
    return Case(
        f"Adam, fp32, {network}, {count:,} parameters in {len(initial)} tensors",
        [contestant(name, make) for name, make in makers.items()],
        lambda found: wrong(found, expected, names, torch.float32),
        # Values, gradient and two moments read, all but the gradient written; 13 operations for each number.
        Work(bytes=7 * 4 * count, flops=13 * count, items=count, unit="parameters"),
        {"parameters": count, "tensors": len(initial)},
        replay=False,
    )
