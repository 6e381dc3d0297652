"""Convolutions and BatchNorm of a bf16 training step on a CPU, beside PyTorch's: forward and backward of single layers."""

from __future__ import annotations

__all__ = ["cases"]

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iiae_fast import convolution, layers
from iiae_fast.bench.ops import wrong
from iiae_fast.bench.registry import Call, Case, Contestant, Settings, Unavailable, Work

_Step = Callable[[nn.Module, Tensor], Tensor]
_NAMES = ("output", "gradient of the input", "gradient of the weight", "gradient of the bias")


def cases(settings: Settings) -> Iterator[Case]:
    """Layers of the 32×32 networks in batches of 128 and, but for quick runs, of the 256×256 ones in batches of 8."""
    if settings.device != "cpu":
        return
    sizes = [(1, 4, 4, 8)] if settings.toy else [(128, 16, 32, 64)]  # batch, width of the input, channels in and out
    if not settings.quick:
        sizes += [(128, 8, 64, 64), (8, 128, 64, 128)]
    for size in sizes:
        yield _convolution(settings, *size, transposed=False)
        yield _convolution(settings, size[0], size[1] // 2, size[3], size[2], transposed=True)
        yield _batch_norm(settings, *size[:3])


def _convolution(settings: Settings, batch: int, width: int, inputs: int, outputs: int, transposed: bool) -> Case:
    kind = "transposed convolution" if transposed else "convolution"
    other = 2 * width if transposed else width // 2

    def layer(ours: bool) -> nn.Module:
        parts: list[type[nn.Module]] = [layers.Conv2d, nn.Conv2d]
        if transposed:
            parts = [layers.ConvTranspose2d, nn.ConvTranspose2d]
        return parts[0 if ours else 1](inputs, outputs, 4, stride=2, padding=1)

    pixels = batch * min(width, other) ** 2
    work = Work(flops=3 * 2 * 16 * pixels * inputs * outputs, items=batch, unit="images", matmul="bfloat16")
    name = f"{kind}, forward + backward, bf16, {batch}×{inputs}×{width}×{width} to {outputs} channels"
    parameters = {"batch": batch, "width": width, "inputs": inputs, "outputs": outputs}
    shape, gradient_shape = (batch, inputs, width, width), (batch, outputs, other, other)
    return _case(
        settings, name, layer, lambda module, x: module(x), lambda module, x: module(x), shape, gradient_shape, work, parameters
    )


def _batch_norm(settings: Settings, batch: int, width: int, channels: int) -> Case:
    shape = (batch, channels, width, width)
    elements = batch * channels * width * width
    # Bytes: x and the gradient read, y and the gradient of x written. Numbers: four operations forward, eight backward.
    work = Work(bytes=2 * 5 * elements, flops=12 * elements, items=batch, unit="images")
    name = f"BatchNorm + leaky ReLU, forward + backward, bf16, {batch}×{channels}×{width}×{width}"

    def layer(ours: bool) -> nn.Module:
        return layers.BatchNorm2d(channels) if ours else nn.BatchNorm2d(channels)

    def ours(module: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(module, layers.BatchNorm2d)
        return module.activated(x, 0.2)

    def eager(module: nn.Module, x: Tensor) -> Tensor:
        return F.leaky_relu(module(x), 0.2, inplace=True)

    parameters = {"batch": batch, "width": width, "channels": channels}
    return _case(settings, name, layer, ours, eager, shape, shape, work, parameters)


def _case(
    settings: Settings,
    name: str,
    layer: Callable[[bool], nn.Module],
    ours: _Step,
    eager: _Step,
    shape: tuple[int, ...],
    gradient_shape: tuple[int, ...],
    work: Work,
    parameters: dict[str, int],
) -> Case:
    torch.manual_seed(settings.seed)
    x, gradient = (
        torch.randn(size).bfloat16().contiguous(memory_format=torch.channels_last) for size in (shape, gradient_shape)
    )
    initial = layer(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def call_of(step: _Step, module: nn.Module, x: Tensor, gradient: Tensor, low: bool = True) -> Call:
        leaf = x.detach().requires_grad_()
        tensors = [leaf, *module.parameters()]

        def call() -> tuple[Tensor, ...]:
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                out = step(module, leaf)
            return out.detach(), *torch.autograd.grad(out, tensors, gradient)

        return call

    expected = call_of(eager, _copy(layer(False), initial).double(), x.double(), gradient.double(), low=False)()

    def check(found: tuple[Tensor, ...]) -> str:
        return wrong(found, expected, _NAMES, torch.bfloat16)

    def make_ours() -> Call:
        if not convolution.available():
            raise Unavailable("these kernels are for processors with AVX-512 BF16 and without AMX")
        return call_of(ours, _copy(layer(True), initial), x, gradient)

    contestants = [
        Contestant("iiae_fast", make_ours),
        Contestant("eager", lambda: call_of(eager, _copy(layer(False), initial), x, gradient)),
    ]
    return Case(name, contestants, check, work, parameters, replay=False)


def _copy(module: nn.Module, source: nn.Module) -> nn.Module:
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module.load_state_dict(source.state_dict())
    return module
