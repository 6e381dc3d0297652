"""The published TensorFlow 1 code of the spatial family, ported to PyTorch as one would by hand: fp32, eager, nothing fused.

A rival, not a part of the package: it shares no code with ``iiae_fast.model`` and is kept as plain as a port is. Parameters
come in the same order as those of ``iiae_fast.IIAE``, so that a benchmark can give both the same weights.
"""

from __future__ import annotations

__all__ = ["PlainIIAE", "plain_losses"]

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def deconv(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    layer = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def dense(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def encoder(channels: int, widths: list[int]) -> list[nn.Module]:
    """conv, then (BN, LeakyReLU, conv) for every further width."""
    layers: list[nn.Module] = [conv(channels, widths[0])]
    for before, after in pairwise(widths):
        layers += [nn.BatchNorm2d(before), nn.LeakyReLU(0.2), conv(before, after)]
    return layers


class PlainDecoder(nn.Module):
    """p(x | z_x, z_s)."""

    def __init__(self, code: int, exclusive: int, widths: list[int], channels: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip([code + exclusive, *widths], widths)):
            layers += [deconv(before, after), nn.BatchNorm2d(after)]
            if i < 2:
                layers.append(nn.Dropout(dropout))
            layers.append(nn.ReLU())
        layers += [deconv(widths[-1], channels), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z_s: Tensor, z_x: Tensor) -> Tensor:
        tiled = z_x[:, :, None, None].repeat(1, 1, z_s.shape[2], z_s.shape[3])
        image: Tensor = self.layers(torch.cat([z_s, tiled], dim=1))
        return image


class PlainOutput(NamedTuple):
    """Means and log-variances of the five posteriors, and both reconstructions."""

    q_x: tuple[Tensor, Tensor]
    q_s: tuple[Tensor, Tensor]
    q_y: tuple[Tensor, Tensor]
    r_x: tuple[Tensor, Tensor]
    r_y: tuple[Tensor, Tensor]
    x_hat: Tensor
    y_hat: Tensor


class PlainIIAE(nn.Module):
    """The spatial family.

    Args:
        shared: Widths of the shared towers' convolutions (published: 32, 64, 128, 256, 256).
        exclusive: Of the exclusive towers' (32, 64, 128, 256).
        decoder: Of the decoders' hidden transposed convolutions (512, 256, 128, 64).
        image_size, channels, exclusive_dim, dropout: As published: 256, 3, 8, 0.5.
    """

    def __init__(
        self,
        shared: list[int],
        exclusive: list[int],
        decoder: list[int],
        image_size: int = 256,
        channels: int = 3,
        exclusive_dim: int = 8,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        side = image_size >> len(exclusive)

        def exclusive_tower() -> nn.Sequential:
            last = exclusive[-1]
            head = [nn.BatchNorm2d(last), nn.LeakyReLU(0.2), nn.Flatten(), dense(last * side * side, 2 * exclusive_dim)]
            return nn.Sequential(*encoder(channels, exclusive), *head)

        self.exclusive_x, self.exclusive_y = exclusive_tower(), exclusive_tower()
        self.shared_x = nn.Sequential(*encoder(channels, shared))
        self.shared_y = nn.Sequential(*encoder(channels, shared))
        self.joint = conv(2 * shared[-2], shared[-1])
        code = shared[-1] // 2
        self.decoder_x = PlainDecoder(code, exclusive_dim, decoder, channels, dropout)
        self.decoder_y = PlainDecoder(code, exclusive_dim, decoder, channels, dropout)

    def forward(self, x: Tensor, y: Tensor, sample: bool = True) -> PlainOutput:
        q_x, q_y = gaussian(self.exclusive_x(x)), gaussian(self.exclusive_y(y))
        feature_x, feature_y = self.shared_x[:-1](x), self.shared_y[:-1](y)
        r_x, r_y = gaussian(self.shared_x[-1](feature_x)), gaussian(self.shared_y[-1](feature_y))
        q_s = gaussian(self.joint(torch.cat([feature_x, feature_y], dim=1)))
        z_x, z_s, z_y = (draw(q) if sample else q[0] for q in (q_x, q_s, q_y))
        return PlainOutput(q_x, q_s, q_y, r_x, r_y, self.decoder_x(z_s, z_x), self.decoder_y(z_s, z_y))


def gaussian(head: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = head.chunk(2, dim=1)
    return mean, logvar.clamp(max=9.21035)


def draw(q: tuple[Tensor, Tensor]) -> Tensor:
    mean, logvar = q
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)


def kl(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """KL(q ‖ p), or to N(0, I); summed over dimensions, averaged over the batch."""
    mean, logvar = q
    if p is None:
        terms = torch.exp(logvar) + mean**2 - logvar - 1
    else:
        terms = p[1] - logvar + (torch.exp(logvar) + (mean - p[0]) ** 2) / torch.exp(p[1]) - 1
    return 0.5 * terms.flatten(1).sum(1).mean()


def plain_losses(out: PlainOutput, x: Tensor, y: Tensor, weights: Any, annealing: float | Tensor) -> dict[str, Tensor]:
    """Every term, and ``"total"``.

    Args:
        out: Of the model.
        x, y: The batch.
        weights: Has ``reconstruction_weight``, ``elbo_weight`` and ``interaction_weight`` (L1_WEIGHT, BETA and LAMBDA).
        annealing: a_t.
    """
    omega, lamda = weights.elbo_weight, weights.interaction_weight
    terms = {
        "rec_x": weights.reconstruction_weight * F.l1_loss(out.x_hat, x),
        "rec_y": weights.reconstruction_weight * F.l1_loss(out.y_hat, y),
        "kl_x": kl(out.q_x),
        "kl_y": kl(out.q_y),
        "kl_s": kl(out.q_s),
        "kl_s_rx": kl(out.q_s, out.r_x),
        "kl_s_ry": kl(out.q_s, out.r_y),
    }
    total = (
        (omega + lamda) * (terms["rec_x"] + terms["rec_y"])
        + annealing * (omega + lamda) * (terms["kl_x"] + terms["kl_y"])
        + annealing * omega * terms["kl_s"]
        + lamda * (terms["kl_s_rx"] + terms["kl_s_ry"])
    )
    return {**terms, "total": total}
