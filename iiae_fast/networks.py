"""The published encoders and decoders: three families built from two kinds of step.

An encoder step is (BatchNorm, LeakyReLU 0.2, layer), the first one its layer alone; a decoder step is (layer, BatchNorm,
dropout, ReLU), the last one its layer alone. Convolutions are 4×4 with stride 2 and one pixel of padding each side.

At image sizes other than the published 256 the layers nearest the image change, and the code-side layers keep their published
widths: of the shared tower's w, 2w, 4w, 8w, 8w channels the first are dropped (128 pixels: w; 64: w; 32: w and 2w; 16: w, 2w
and 4w), of the decoder's 8d, 4d, 2d, d the last, and above 256 pixels layers of width w and d are added there. The code is
8×8, or 4×4 for images below 128 pixels.
"""

from __future__ import annotations

__all__ = ["Decoder", "Joint", "Tower", "decoder", "exclusive_tower", "joint", "shared_tower"]

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iiae_fast.config import ModelConfig
from iiae_fast.errors import InputError
from iiae_fast.layers import BatchNorm2d, Conv2d, ConvTranspose2d, Dropout, flatten

Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d, nn.Linear)

BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1  # TensorFlow's 0.9: the share of the new value here, of the old one there


class DenseBatchNorm(nn.BatchNorm1d):
    """BatchNorm of vectors whose running variance is the biased one, as in TensorFlow's non-fused BatchNorm.

    Outputs and gradients are those of ``nn.BatchNorm1d``; only the running variance differs, by the factor (B − 1)/B.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            if len(input) < 2:
                raise InputError(f"batch of {len(input)}: BatchNorm of vectors needs at least 2 samples in training mode")
            with torch.no_grad():
                variance, mean = torch.var_mean(input.to(self.running_var.dtype), dim=0, correction=0)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance, self.momentum)
            return F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(input)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    layer = Conv2d(inputs, outputs, kernel_size=4, stride=2, padding=1)
    nn.init.normal_(layer.weight, 0.0, 0.02)
    return _zero_bias(layer)


def _transposed_conv(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    layer = ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1)
    nn.init.normal_(layer.weight, 0.0, 0.02)
    return _zero_bias(layer)


def _dense(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    return _zero_bias(layer)


def _zero_bias(layer: Layer) -> Layer:
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _image_norm(channels: int) -> BatchNorm2d:
    return BatchNorm2d(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)


def _vector_norm(features: int) -> DenseBatchNorm:
    return DenseBatchNorm(features, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)


class EncoderStep(nn.Module):
    """(BatchNorm, LeakyReLU, [flatten]) then a layer."""

    def __init__(self, layer: nn.Module, norm: nn.Module | None = None, flatten: bool = False) -> None:
        super().__init__()
        self.norm = norm
        self.layer = layer
        self.flatten = flatten

    def activate(self, x: Tensor) -> Tensor:
        """What enters the layer."""
        if isinstance(self.norm, BatchNorm2d):
            x = self.norm.activated(x, 0.2)
        elif self.norm is not None:
            x = F.leaky_relu(self.norm(x), 0.2, inplace=True)
        return flatten(x) if self.flatten else x


class Tower(nn.Module):
    """A chain of encoder steps that ends in a packed Gaussian head [mean | logvar].

    Args:
        steps: The encoder steps.
        feature_step: Index of the step whose activated input is also returned, for the joint encoder.
    """

    def __init__(self, steps: Sequence[EncoderStep], feature_step: int = -1) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.feature_step = feature_step % len(steps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(head, feature)``."""
        feature = x
        for index, step in enumerate(self.steps):
            assert isinstance(step, EncoderStep)
            x = step.activate(x)
            if index == self.feature_step:
                feature = x
            x = step.layer(x)
        return x, feature


class Joint(nn.Module):
    """The joint encoder of q(z_s|x, y), from both shared towers' features."""

    def __init__(self, steps: Sequence[EncoderStep]) -> None:
        super().__init__()
        self.tower = Tower(steps)

    def forward(self, feature_x: Tensor, feature_y: Tensor) -> Tensor:
        """The packed head of q(z_s|x, y)."""
        head: Tensor = self.tower(torch.cat((feature_x, feature_y), dim=1))[0]
        return head


class DecoderStep(nn.Module):
    """A layer, BatchNorm, dropout, ReLU."""

    def __init__(self, layer: nn.Module, norm: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = layer
        self.norm = norm
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if isinstance(self.norm, BatchNorm2d):
            return self.norm.activated(x, 0.0, self.dropout)
        return F.relu(self.dropout(self.norm(x)), inplace=True)


class Decoder(nn.Module):
    """Mean of p(x | z_x, z_s) before the output activation.

    Args:
        expand: Dense step from the concatenated codes (flat and feature families), or None (spatial family: the exclusive code
            is tiled over the shared code's map).
        steps: Decoder steps after it.
        output: The last layer.
        code_shape: ``(C, H, W)`` into which the expanded vector is folded, or None.
    """

    def __init__(
        self,
        expand: DecoderStep | None,
        steps: Sequence[DecoderStep],
        output: nn.Module,
        code_shape: tuple[int, int, int] | None,
    ) -> None:
        super().__init__()
        self.expand = expand
        self.steps = nn.Sequential(*steps)
        self.output = output
        self.code_shape = code_shape

    def forward(self, z_s: Tensor, z_exclusive: Tensor) -> Tensor:
        """Codes ``(B, C, H, W)`` or ``(B, D)`` and ``(B, E)`` to ``(B, 3, S, S)`` or ``(B, F)``."""
        if self.expand is None:
            tiled = z_exclusive[:, :, None, None].expand(-1, -1, *z_s.shape[2:])
            x = torch.cat((z_s, tiled), dim=1)
        else:
            x = self.expand(torch.cat((z_s, z_exclusive), dim=1))
            if self.code_shape is not None:
                x = x.view(-1, *self.code_shape)
        logits: Tensor = self.output(self.steps(x))
        return logits


def _encoder_widths(width: int, count: int) -> list[int]:
    published = [width, 2 * width, 4 * width, 8 * width, 8 * width]
    return ([width] * (count - 5) + published)[-count:]


def _decoder_widths(width: int, count: int) -> list[int]:
    return ([8 * width, 4 * width, 2 * width, width] + [width] * count)[:count]


def _conv_steps(channels: int, widths: Sequence[int]) -> list[EncoderStep]:
    steps = [EncoderStep(_conv(channels, widths[0]))]
    steps += [EncoderStep(_conv(a, b), _image_norm(a)) for a, b in pairwise(widths)]
    return steps


def _dense_steps(widths: Sequence[int]) -> list[EncoderStep]:
    """Dense layers from ``widths[0]`` inputs on; the first has no BatchNorm before it."""
    steps = [EncoderStep(_dense(widths[0], widths[1]))]
    steps += [EncoderStep(_dense(a, b), _vector_norm(a)) for a, b in pairwise(widths[1:])]
    return steps


def _shared_widths(config: ModelConfig) -> list[int]:
    return _encoder_widths(config.n_shared, config.downsamplings)


def shared_tower(config: ModelConfig) -> Tower:
    """r(z_s|x) of one domain, with the feature that the joint encoder takes."""
    w, head = config.n_shared, 2 * config.shared_dim
    if config.family == "feature":
        return Tower(_dense_steps([config.feature_dim, 4 * w, 2 * w, head]), feature_step=1)
    steps = _conv_steps(config.channels, _shared_widths(config))
    if config.family == "flat":
        flat = 8 * w * config.code_size**2
        steps += [
            EncoderStep(_dense(flat, head), _image_norm(8 * w), flatten=True),
            EncoderStep(_dense(head, head), _vector_norm(head)),
        ]
        return Tower(steps, feature_step=-2)
    return Tower(steps)


def joint(config: ModelConfig) -> Joint:
    """q(z_s|x, y)."""
    w, head = config.n_shared, 2 * config.shared_dim
    if config.family == "feature":
        return Joint(_dense_steps([8 * w, 4 * w, head]))
    if config.family == "flat":
        return Joint(_dense_steps([2 * 8 * w * config.code_size**2, head, head]))
    feature = _shared_widths(config)[-2]  # channels entering the tower's last convolution
    return Joint([EncoderStep(_conv(2 * feature, 8 * w))])


def exclusive_tower(config: ModelConfig) -> Tower:
    """q(z_x|x) of one domain."""
    head = 2 * config.exclusive_dim
    if config.family == "feature":
        w = config.n_exclusive
        return Tower(_dense_steps([config.feature_dim, 4 * w, 2 * w, head]))
    w = config.n_shared if config.family == "flat" else config.n_exclusive  # as published
    widths = _encoder_widths(w, config.downsamplings)[:-1]
    # The published widths end in 8w, 8w; without the last convolution the code-side width is 8w all the same.
    flat = widths[-1] * (2 * config.code_size) ** 2
    last = EncoderStep(_dense(flat, head), _image_norm(widths[-1]), flatten=True)
    return Tower([*_conv_steps(config.channels, widths), last])


def decoder(config: ModelConfig) -> Decoder:
    """p(x | z_x, z_s) of one domain."""
    d = config.n_decoder
    codes = config.shared_dim + config.exclusive_dim
    if config.family == "feature":
        expand = DecoderStep(_dense(codes, d), _vector_norm(d))
        return Decoder(expand, [], _dense(d, config.feature_dim), None)
    widths = _decoder_widths(d, config.downsamplings - 1)
    code_shape: tuple[int, int, int] | None = None
    flat_expand: DecoderStep | None = None
    inputs = 4 * config.n_shared + config.exclusive_dim
    if config.family == "flat":
        code_shape = (8 * d, config.code_size, config.code_size)
        inputs = 8 * d
        flat_expand = DecoderStep(
            _dense(codes, 8 * d * config.code_size**2), _vector_norm(8 * d * config.code_size**2), config.dropout
        )
    steps = [
        DecoderStep(_transposed_conv(a, b), _image_norm(b), config.dropout if index < 2 else 0.0)
        for index, (a, b) in enumerate(zip([inputs, *widths], widths))
    ]
    return Decoder(flat_expand, steps, _transposed_conv(widths[-1], config.channels), code_shape)
