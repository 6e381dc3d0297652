"""Configuration: frozen dataclasses that say everything a run depends on. No torch here."""

from __future__ import annotations

__all__ = ["DataConfig", "ModelConfig", "ObjectiveConfig", "OptimConfig", "Preset", "TrainingOptions"]

import dataclasses
import math
import numbers
import os
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from iiae_fast.errors import ConfigError

Family = Literal["spatial", "flat", "feature"]
Likelihood = Literal["laplace", "gaussian"]
ObjectiveName = Literal["iiae", "dvcca", "vae", "beta_vae", "total_correlation", "hsic"]
DataKind = Literal["digits-cdcb", "mnist-cdcb", "side-by-side", "two-folders", "views", "features"]

T = TypeVar("T")


def _check(condition: bool, name: str, given: object, accepted: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={given!r}: accepted is {accepted}")


def whole(name: str, value: Any, minimum: int, maximum: int | None = None, accepted: str = "") -> int:
    """``value`` as an int, whichever type of whole number it is (numpy's too), within bounds.

    Raises:
        ConfigError: It is not; the message ends with ``accepted``.
    """
    accepted = accepted or f"a whole number {f'of at least {minimum}' if maximum is None else f'from {minimum} to {maximum:,}'}"
    _check(isinstance(value, numbers.Integral) and not isinstance(value, bool), name, value, accepted)
    number = int(value)
    _check(number >= minimum and (maximum is None or number <= maximum), name, value, accepted)
    return number


def _positive_int(config: object, *names: str, minimum: int = 1) -> None:
    for name in names:
        object.__setattr__(config, name, whole(name, getattr(config, name), minimum))


def _seed(config: object) -> None:
    seed = whole("seed", vars(config)["seed"], 0, 2**63 - 1, "a whole number from 0 to 2**63 − 1")
    object.__setattr__(config, "seed", seed)


def _finite(config: object, *names: str, minimum: float = 0.0, exclusive: bool = False) -> None:
    for name in names:
        value = getattr(config, name)
        real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        bound = f"a finite number {'above' if exclusive else 'of at least'} {minimum:g}"
        _check(real and (value > minimum if exclusive else value >= minimum), name, value, bound)


def _choices(config: object) -> None:
    """Check every field that is annotated with a ``Literal``."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            value = getattr(config, name)
            _check(value in get_args(hint), name, value, "one of " + ", ".join(get_args(hint)))


@dataclass(frozen=True)
class ModelConfig:
    """The networks of one IIAE (paper, appendix; defaults are the published widths).

    Attributes:
        family: ``"spatial"`` (shared code is a feature map), ``"flat"`` (a vector), ``"feature"`` (inputs are vectors).
        image_size: Side of the square images, a power of two from 16 to 1024 (image families).
        channels: Image channels (image families).
        feature_dim: Input size (feature family).
        n_shared: Width of the shared towers (``nsef`` in the published code).
        n_exclusive: Width of the exclusive towers (``neef``; the flat family uses ``n_shared`` there, as published).
        n_decoder: Width of the decoders (``ndf``).
        shared_dim: Size of the shared code (flat and feature families; the spatial family's follows from its width).
        exclusive_dim: Size of each exclusive code.
        dropout: Dropout probability in the first two decoder blocks (spatial) or after the first layer (flat).
        classes: Classes of the linear classifier on z_s (feature family); 0 leaves it out.
    """

    family: Family = "spatial"
    image_size: int = 256
    channels: int = 3
    feature_dim: int = 512
    n_shared: int = 32
    n_exclusive: int = 32
    n_decoder: int = 64
    shared_dim: int = 128
    exclusive_dim: int = 8
    dropout: float = 0.5
    classes: int = 0

    def __post_init__(self) -> None:
        _choices(self)
        _positive_int(self, "image_size", "channels", "feature_dim", "n_shared", "n_exclusive", "n_decoder")
        _positive_int(self, "shared_dim", "exclusive_dim")
        size = self.image_size
        _check(16 <= size <= 1024 and size & (size - 1) == 0, "image_size", size, "a power of two from 16 to 1024")
        _finite(self, "dropout")
        _check(self.dropout < 1, "dropout", self.dropout, "a probability below 1")
        _positive_int(self, "classes", minimum=0)

    @property
    def code_size(self) -> int:
        """Side of the encoders' last feature map: 8 for images of 128 pixels and more (as published), 4 below."""
        return 8 if self.image_size >= 128 else 4

    @property
    def downsamplings(self) -> int:
        """Stride-2 convolutions between image and code: 5 at the published 256 pixels, fewer below."""
        return (self.image_size // self.code_size).bit_length() - 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample of either domain, without the batch."""
        return (self.feature_dim,) if self.family == "feature" else (self.channels, self.image_size, self.image_size)


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the loss (paper, equation 9, in the published code's form).

    Attributes:
        likelihood: ``"laplace"`` is the L1 reconstruction loss (images), ``"gaussian"`` the squared one (features).
        reconstruction_weight: Factor on the mean over batch and elements of the reconstruction loss.
        elbo_weight: ω, the published BETA.
        interaction_weight: λ, the published LAMBDA. 0 gives DVCCA exactly.
        kl_annealing_steps: τ of a_t = 1 − exp(−t/τ), in optimizer steps (the published ``ar``). 0 switches annealing off.
        class_weight: Factor on the classifier's cross-entropy (feature family with ``classes``).
        beta: Factor of ``beta_vae`` (KL terms), ``total_correlation`` and ``hsic`` (their penalties).
        name: Which objective is minimized; see ``iiae_fast.objectives``.
    """

    likelihood: Likelihood = "laplace"
    reconstruction_weight: float = 1000.0
    elbo_weight: float = 0.2
    interaction_weight: float = 1.0
    kl_annealing_steps: float = 25000.0
    class_weight: float = 0.0
    beta: float = 4.0
    name: ObjectiveName = "iiae"

    def __post_init__(self) -> None:
        _choices(self)
        _finite(self, "reconstruction_weight", exclusive=True)
        _finite(self, "elbo_weight", "interaction_weight", "kl_annealing_steps", "class_weight", "beta")


@dataclass(frozen=True)
class OptimConfig:
    """Adam and the schedule.

    Attributes:
        lr, beta1, beta2, eps: Adam's parameters (published: 2e-4, 0.5, 0.999, 1e-8).
        batch_size: Pairs per step.
        epochs: Passes over the training pairs.
        lr_decay: ``"none"`` as published, or ``"cosine"`` down to zero over the run.
        seed: Of initialization, sample order, noise and colours.
    """

    lr: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    eps: float = 1e-8
    batch_size: int = 8
    epochs: int = 6
    lr_decay: Literal["none", "cosine"] = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        _choices(self)
        _finite(self, "lr", "eps", exclusive=True)
        _finite(self, "beta1", "beta2")
        for name in ("beta1", "beta2"):
            _check(getattr(self, name) < 1, name, getattr(self, name), "a number from 0 to below 1")
        _positive_int(self, "batch_size", "epochs")
        _seed(self)


@dataclass(frozen=True)
class DataConfig:
    """Where pairs come from. Every split and colour is a function of ``seed``.

    Attributes:
        kind: ``"digits-cdcb"`` (embedded), ``"mnist-cdcb"`` (idx files), ``"side-by-side"`` (pix2pix images),
            ``"two-folders"`` (equal file names), ``"views"`` (one object per name, several views), ``"features"`` (npz).
        root: Folder or file; None means ``IIAE_DATA`` (or the embedded data). See the README's table of layouts. A ``Path`` is
            kept as text.
        image_size: Side to which images are brought, at most 1024.
        swap: Exchange the two domains.
        valid_fraction: Share of the training pairs held out for choosing the best checkpoint, where no split is published.
        test_fraction: Share held out for testing, where no split is published.
        recolour: Draw the CD/CB colours of the training pairs anew in every epoch (the test colours never change).
        augment: Random shifts (CD/CB) or flips and crops (images) of the training pairs, the same for both domains.
        seed: Of splits and colours.
    """

    kind: DataKind = "digits-cdcb"
    root: str | None = None
    image_size: int = 32
    swap: bool = False
    valid_fraction: float = 0.1
    test_fraction: float = 0.2
    recolour: bool = True
    augment: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _choices(self)
        if self.root is not None:
            _check(isinstance(self.root, (str, os.PathLike)), "root", self.root, "a path, or None")
            object.__setattr__(self, "root", os.fspath(self.root))
        _positive_int(self, "image_size")
        _check(self.image_size <= 1024, "image_size", self.image_size, "a whole number from 1 to 1024")
        for name in ("valid_fraction", "test_fraction"):
            _finite(self, name)
            _check(getattr(self, name) < 1, name, getattr(self, name), "a share from 0 to below 1")
        _seed(self)


@dataclass(frozen=True)
class TrainingOptions:
    """How a run is computed, as opposed to what is computed. Defaults were chosen by measurement; see ``iiae bench training``.

    Attributes:
        precision: ``"fp32"``; ``"bf16"``, which keeps weights, moments, losses and statistics in fp32; or ``"auto"``: bf16
            where the device has units for it and a step is large enough to gain.
        deterministic: The plain reference path: no TF32, no autotuned or atomic kernels on a GPU, nothing compiled or captured.
        channels_last: Whether images and feature maps lie in channels_last order.
        compile: Put the forward and backward pass through torch.compile: half a minute before the first step.
        cuda_graph: Capture the whole step (forward, backward, optimizer, annealing, noise) in a CUDA graph; CUDA devices.
        overlap: Run the towers and the decoder of y on a CUDA stream of their own, beside those of x: the same values and
            gradients, more memory. CUDA devices; not measured on one yet.
        accumulate: Batches whose gradients are averaged into one optimizer step; BatchNorm sees one batch at a time.
        recompute: Keep no activations within towers and decoders but compute them again in the backward pass: less memory.
        resident: Keep the training pairs on the device and gather batches there: ``"auto"`` (where they fit), ``"on"`` or
            ``"off"``. Batches are the same either way.
        ema_decay: Validate and save an exponential moving average of the weights with this decay; 0 switches it off.
        warmup_steps: Steps over which the learning rate rises to its value.
        lr_scaling: Multiply the learning rate by the pairs of a step over ``lr_batch``, to the power 0, ½ or 1.
        lr_batch: Pairs of a step that ``optim.lr`` was chosen for (published: 8).
    """

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    deterministic: bool = False
    channels_last: bool = True
    compile: bool = False
    cuda_graph: bool = False
    overlap: bool = False
    accumulate: int = 1
    recompute: bool = False
    resident: Literal["auto", "on", "off"] = "auto"
    ema_decay: float = 0.0
    warmup_steps: int = 0
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    lr_batch: int = 8

    def __post_init__(self) -> None:
        _choices(self)
        _positive_int(self, "accumulate", "lr_batch")
        _positive_int(self, "warmup_steps", minimum=0)
        _finite(self, "ema_decay")
        _check(self.ema_decay < 1, "ema_decay", self.ema_decay, "a number from 0 to below 1")
        for name in ("compile", "cuda_graph", "overlap"):
            if self.deterministic and getattr(self, name):
                raise ConfigError(f"deterministic=True and {name}=True contradict each other: it is the plain path")
        for one, other, why in (
            ("recompute", "cuda_graph", "capture cannot put a random state back"),
            ("recompute", "compile", "the compiler cannot put a random state back"),
            ("recompute", "overlap", "it saves memory, and each stream keeps memory of its own"),
            ("compile", "overlap", "the compiler launches on one stream"),
        ):
            if getattr(self, one) and getattr(self, other):
                raise ConfigError(f"{one}=True and {other}=True exclude each other: {why}")


@dataclass(frozen=True)
class Preset:
    """Everything one run depends on."""

    name: str = "custom"
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preset:
        """The inverse of ``to_dict``; unknown keys are refused by name."""
        return from_dict(cls, values)


def from_dict(cls: type[T], values: dict[str, Any], where: str = "") -> T:
    """Build a (nested) config dataclass from plain dictionaries.

    Raises:
        ConfigError: A key is unknown, or a value is out of range.
    """
    where = where or cls.__name__
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a table of values, got {type(values).__name__}")
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{where}: unknown setting {unknown[0]!r}; accepted are {', '.join(hints)}")
    built = {
        name: from_dict(hints[name], value, f"{where}.{name}") if dataclasses.is_dataclass(hints[name]) else value
        for name, value in values.items()
    }
    return cls(**built)
