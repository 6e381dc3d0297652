"""The Interaction Information Auto-Encoder as one ``nn.Module``.

Hwang, Kim, Hong, Kim: Variational Interaction Information Maximization for Cross-domain Disentanglement, NeurIPS 2020.
"""

from __future__ import annotations

__all__ = ["IIAE", "IIAEOutput", "load"]

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iiae_fast import kernels, networks
from iiae_fast.config import ModelConfig, from_dict
from iiae_fast.errors import CheckpointError
from iiae_fast.gaussian import DiagonalGaussian
from iiae_fast.storage import load_json, load_tensors, save_json, save_tensors
from iiae_fast.streams import Side
from iiae_fast.version import __version__

Domain = Literal["x", "y"]
Activation = Literal["tanh"] | None

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_IN_TURN = Side()


@dataclass(frozen=True)
class IIAEOutput:
    """What one forward pass knows. B is the batch, D the shared and E the exclusive code size.

    Attributes:
        q_x, q_y: q(z_x|x) and q(z_y|y), ``(B, E)``.
        q_s: q(z_s|x, y), ``(B, D)`` or ``(B, C, H, W)``.
        r_x, r_y: r(z_s|x) and r(z_s|y), like ``q_s``.
        z_x, z_s, z_y: Samples, or means, of ``q_x``, ``q_s``, ``q_y``.
        kl: ``(5, B)`` fp32 nats: q_x‖p, q_y‖p, q_s‖p, q_s‖r_x, q_s‖r_y.
        x_logits, y_logits: Decoder outputs before the output activation, shaped like x and y.
        activation: ``"tanh"`` (images) or None (features).
        class_logits: ``(B, classes)`` of the classifier on z_s, or None.
        backend: Which kernels computed the latents, and shall compute the reconstruction terms.
    """

    q_x: DiagonalGaussian
    q_y: DiagonalGaussian
    q_s: DiagonalGaussian
    r_x: DiagonalGaussian
    r_y: DiagonalGaussian
    z_x: Tensor
    z_s: Tensor
    z_y: Tensor
    kl: Tensor
    x_logits: Tensor
    y_logits: Tensor
    activation: Activation
    class_logits: Tensor | None
    backend: str

    @property
    def x_hat(self) -> Tensor:
        """Mean of p(x | z_x, z_s), shaped like x."""
        return _activate(self.x_logits, self.activation)

    @property
    def y_hat(self) -> Tensor:
        """Mean of p(y | z_y, z_s), shaped like y."""
        return _activate(self.y_logits, self.activation)


def _activate(logits: Tensor, activation: Activation) -> Tensor:
    return logits.tanh() if activation == "tanh" else logits


class IIAE(nn.Module):
    """Encoders q(z_x|x), q(z_s|x,y), q(z_y|y), r(z_s|x), r(z_s|y) and decoders p(x|z_x,z_s), p(y|z_y,z_s).

    Images are ``(B, C, H, W)``, floating point in [−1, 1] or uint8 (then v/127.5 − 1 is taken); features are ``(B, F)``.

    Args:
        config: The networks.
        backend: Kernels for the latents and the losses: ``"auto"``, ``"reference"`` or ``"triton"``.
    """

    def __init__(self, config: ModelConfig | None = None, backend: str = "auto") -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        self.backend = backend
        self.exclusive_x = networks.exclusive_tower(config)
        self.exclusive_y = networks.exclusive_tower(config)
        self.shared_x = networks.shared_tower(config)
        self.shared_y = networks.shared_tower(config)
        self.joint = networks.joint(config)
        self.decoder_x = networks.decoder(config)
        self.decoder_y = networks.decoder(config)
        self.classifier = (
            nn.Linear(config.shared_dim, config.classes) if config.classes and config.family == "feature" else None
        )

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        sample: bool | None = None,
        seed: int | Tensor | None = None,
        side: Side = _IN_TURN,
    ) -> IIAEOutput:
        """Encode a batch of pairs, draw the three codes, decode both domains.

        Args:
            x: Batch of the first domain.
            y: Their partners, of the second domain.
            sample: Draw the codes (True) or take their means (False). None: draw in training mode only.
            seed: Of the noise: an int, or an int64 tensor of one element on the inputs' device. None: from torch's generator.
            side: Where the towers and the decoder of y run beside those of x. By default they run in turn.

        Raises:
            TypeError: An input is no tensor.
            ValueError: The shapes do not fit the configuration or each other.
        """
        x, y = self.as_input("x", x), self.as_input("y", y)
        if len(x) != len(y):
            raise ValueError(f"x has {len(x)} samples and y has {len(y)}: row i of x belongs to row i of y")
        if sample is None:
            sample = self.training
        if seed is None:
            seed = torch.randint(2**63 - 1, (1,), device=x.device) if sample else 0
        side.fork(y)
        q_x, _ = self.exclusive_x(x)
        with side.running():
            q_y, _ = self.exclusive_y(y)
        r_x, feature_x = self.shared_x(x)
        with side.running():
            r_y, feature_y = self.shared_y(y)
        side.join(q_y, r_y, feature_y)
        q_s = self.joint(feature_x, feature_y)
        latents = kernels.iiae_latents(q_x, q_s, q_y, r_x, r_y, seed=seed, sample=sample, backend=self.backend)
        z_x, z_s, z_y = latents.z_x, latents.z_s, latents.z_y
        side.fork(z_s, z_y)
        x_logits = self.decoder_x(z_s, z_x)
        with side.running():
            y_logits = self.decoder_y(z_s, z_y)
        side.join(y_logits)
        return IIAEOutput(
            q_x=DiagonalGaussian(q_x),
            q_y=DiagonalGaussian(q_y),
            q_s=DiagonalGaussian(q_s),
            r_x=DiagonalGaussian(r_x),
            r_y=DiagonalGaussian(r_y),
            z_x=z_x,
            z_s=z_s,
            z_y=z_y,
            kl=latents.kl,
            x_logits=x_logits,
            y_logits=y_logits,
            activation=self.activation,
            class_logits=None if self.classifier is None else self.classifier(z_s),
            backend=self.backend,
        )

    @property
    def shared_shape(self) -> tuple[int, ...]:
        """Shape of one shared code: ``(C, H, W)`` or ``(D,)``."""
        if self.config.family == "spatial":
            return (4 * self.config.n_shared, self.config.code_size, self.config.code_size)
        return (self.config.shared_dim,)

    def posterior_shared(self, x: Tensor | None = None, y: Tensor | None = None) -> DiagonalGaussian:
        """r(z_s|x), r(z_s|y), or q(z_s|x, y) when both are given."""
        if x is None and y is None:
            raise ValueError("give x, y, or both")
        if x is None:
            assert y is not None
            return DiagonalGaussian(self.shared_y(self.as_input("y", y))[0])
        head, feature_x = self.shared_x(self.as_input("x", x))
        if y is None:
            return DiagonalGaussian(head)
        return DiagonalGaussian(self.joint(feature_x, self.shared_y(self.as_input("y", y))[1]))

    def posterior_exclusive(self, x: Tensor | None = None, y: Tensor | None = None) -> DiagonalGaussian:
        """q(z_x|x) or q(z_y|y)."""
        if (x is None) == (y is None):
            raise ValueError("give either x or y: each domain has an exclusive code of its own")
        if x is not None:
            return DiagonalGaussian(self.exclusive_x(self.as_input("x", x))[0])
        assert y is not None
        return DiagonalGaussian(self.exclusive_y(self.as_input("y", y))[0])

    def encode_shared(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Mean of r(z_s|x), of r(z_s|y), or of q(z_s|x, y) when both are given: ``(B, D)``, maps channel by channel.

        In training mode BatchNorm uses the batch's own statistics: call ``eval()`` first.
        """
        return self.posterior_shared(x, y).flat_mean()

    def encode_exclusive(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Mean of q(z_x|x) or of q(z_y|y): ``(B, E)``."""
        return self.posterior_exclusive(x, y).flat_mean()

    def decode_x(self, z_s: Tensor, z_x: Tensor) -> Tensor:
        """Mean of p(x | z_x, z_s) from codes ``(B, D)`` (or ``(B, C, H, W)``) and ``(B, E)``."""
        return self._decode(self.decoder_x, z_s, z_x)

    def decode_y(self, z_s: Tensor, z_y: Tensor) -> Tensor:
        """Mean of p(y | z_y, z_s) from codes ``(B, D)`` (or ``(B, C, H, W)``) and ``(B, E)``."""
        return self._decode(self.decoder_y, z_s, z_y)

    def translate(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        style: Tensor | None = None,
        to: Domain = "y",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Carry the shared content of a batch into the other domain.

        Args:
            x: Batch to translate, for ``to="y"``.
            y: Batch to translate, for ``to="x"``.
            style: Batch of the target domain whose exclusive codes (means) are used; one sample serves the whole batch.
                None: the exclusive codes are drawn from the standard normal prior.
            to: Target domain.
            generator: Of the prior samples, on the inputs' device.

        Returns:
            Mean of p(y | z_s, z_y) (or of p(x | z_s, z_x)), a batch of the target domain.
        """
        if to not in ("x", "y"):
            raise ValueError(f"to={to!r}: accepted are 'x' and 'y'")
        source, other = (x, y) if to == "y" else (y, x)
        if source is None or other is not None:
            raise ValueError(f"translation to {to} takes {'x' if to == 'y' else 'y'} and nothing else")
        posterior = self.posterior_shared(x=x, y=y)
        z_s = posterior.mean
        if style is None:
            shape = (len(source), self.config.exclusive_dim)
            z_exclusive = torch.randn(shape, generator=generator, device=z_s.device, dtype=z_s.dtype)
        else:
            z_exclusive = self.encode_exclusive(y=style) if to == "y" else self.encode_exclusive(x=style)
            if len(z_exclusive) not in (1, len(source)):
                raise ValueError(f"style has {len(z_exclusive)} samples: accepted are 1 or the batch's {len(source)}")
            z_exclusive = z_exclusive.expand(len(source), -1)
        return self.decode_y(z_s, z_exclusive) if to == "y" else self.decode_x(z_s, z_exclusive)

    def save(self, directory: str | Path, **extra: Any) -> None:
        """Write ``model.safetensors`` and ``config.json``, each whole or not at all.

        Args:
            directory: Made when absent.
            extra: JSON-able facts to keep in ``config.json`` beside the model's configuration (preset, training run, …).
        """
        directory = Path(directory)
        config = dataclasses.asdict(self.config)
        save_tensors(directory / WEIGHTS_FILE, self.state_dict(), {"model": config})
        save_json(directory / CONFIG_FILE, {"iiae_fast": __version__, "model": config, **extra})

    def _decode(self, decoder: nn.Module, z_s: Tensor, z_exclusive: Tensor) -> Tensor:
        shape, size = self.shared_shape, self.config.exclusive_dim
        if tuple(z_s.shape[1:]) != shape:
            if z_s.dim() != 2 or z_s.shape[1] != torch.Size(shape).numel():
                raise ValueError(f"z_s of shape {tuple(z_s.shape)}: accepted is (B, {torch.Size(shape).numel()})")
            z_s = z_s.reshape(-1, *shape)
        if z_exclusive.dim() != 2 or z_exclusive.shape[1] != size:
            raise ValueError(f"exclusive code of shape {tuple(z_exclusive.shape)}: accepted is (B, {size})")
        logits: Tensor = decoder(z_s, z_exclusive)
        return _activate(logits, self.activation)

    def as_input(self, name: str, values: Tensor) -> Tensor:
        """A batch as the networks take it: uint8 images as v/127.5 − 1, floating point values as they are.

        Args:
            name: Of the batch, for messages.
            values: ``(B, C, H, W)`` or ``(B, F)``.

        Raises:
            TypeError: It is no tensor.
            ValueError: Its shape or dtype does not fit the configuration.
        """
        expected = self.config.input_shape
        if not isinstance(values, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(values).__name__}")
        if tuple(values.shape[1:]) != expected or values.dim() != len(expected) + 1:
            raise ValueError(f"{name} of shape {tuple(values.shape)}: accepted is (B, {', '.join(map(str, expected))})")
        if values.dtype == torch.uint8 and self.config.family != "feature":
            return values.to(self.dtype) / 127.5 - 1
        if not values.is_floating_point():
            raise ValueError(f"{name} of dtype {values.dtype}: accepted are floating point values, and uint8 images")
        return values

    @property
    def activation(self) -> Activation:
        """Of the decoders' outputs: ``"tanh"`` (images) or None (features)."""
        return None if self.config.family == "feature" else "tanh"

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype


def load(directory: str | Path, device: str | torch.device = "cpu", backend: str = "auto") -> IIAE:
    """A model that ``IIAE.save`` (or training) wrote, in evaluation mode.

    Args:
        directory: Holds ``config.json`` and ``model.safetensors``.
        device: Where to put it.
        backend: See ``IIAE``.

    Raises:
        CheckpointError: The directory or a file is missing, truncated, altered, or of another architecture.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such run directory")
    values = load_json(directory / CONFIG_FILE)
    if "model" not in values:
        raise CheckpointError(f"{directory / CONFIG_FILE}: holds no model configuration")
    model = IIAE(from_dict(ModelConfig, values["model"]), backend=backend)
    tensors, _ = load_tensors(directory / WEIGHTS_FILE)
    load_state(model, tensors, directory / WEIGHTS_FILE)
    return model.to(device).eval()


def load_state(model: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Put ``tensors`` into ``model``, naming the first one that is missing, surplus or of another shape.

    Raises:
        CheckpointError: See above; the model is left as it was.
    """
    state = model.state_dict()
    for name in [*state, *tensors]:
        if name not in tensors or name not in state:
            raise CheckpointError(
                f"{source}: tensor {name} is {'missing' if name not in tensors else 'not part of this model'}"
            )
        if state[name].shape != tensors[name].shape:
            given, accepted = tuple(tensors[name].shape), tuple(state[name].shape)
            raise CheckpointError(f"{source}: tensor {name} has shape {given}, the model's is {accepted}")
    model.load_state_dict(tensors)
