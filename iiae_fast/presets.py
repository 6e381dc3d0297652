"""Named settings: the published experiments, and the embedded demo."""

from __future__ import annotations

__all__ = ["get", "names"]

from dataclasses import replace

from iiae_fast.config import DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, Preset
from iiae_fast.errors import ConfigError

# The published table (paper, appendix and code): likelihood and its weight, ω, λ, τ, batch size, epochs. Facades, maps and cars
# were trained on all their training pairs for a number of epochs, so nothing is held out of them and the last model is kept; a
# folder of validation pairs is used where there is one.
_PUBLISHED = {
    "mnist-cdcb": Preset(
        "mnist-cdcb",
        ModelConfig("spatial"),
        ObjectiveConfig(reconstruction_weight=1000.0, elbo_weight=0.2, kl_annealing_steps=25000.0),
        OptimConfig(batch_size=8, epochs=6),
        DataConfig("mnist-cdcb", image_size=256, recolour=False, valid_fraction=1 / 30),
    ),
    "facades": Preset(
        "facades",
        ModelConfig("spatial"),
        ObjectiveConfig(reconstruction_weight=1000.0, elbo_weight=0.001, kl_annealing_steps=25000.0),
        OptimConfig(batch_size=8, epochs=299),
        DataConfig("side-by-side", root="facades", image_size=256, valid_fraction=0.0),
    ),
    "maps": Preset(
        "maps",
        ModelConfig("spatial"),
        ObjectiveConfig(reconstruction_weight=20000.0, elbo_weight=0.02, kl_annealing_steps=25000.0),
        OptimConfig(batch_size=8, epochs=399),
        DataConfig("side-by-side", root="maps", image_size=256, valid_fraction=0.0),
    ),
    "cars": Preset(
        "cars",
        ModelConfig("flat", shared_dim=128),
        ObjectiveConfig(reconstruction_weight=1000.0, elbo_weight=0.02, kl_annealing_steps=100.0),
        OptimConfig(batch_size=8, epochs=100),
        DataConfig("views", root="multiview/coil100", image_size=256, valid_fraction=0.0),
    ),
    "sketchy": Preset(
        "sketchy",
        ModelConfig("feature", n_shared=128, n_exclusive=128, n_decoder=128, shared_dim=64, exclusive_dim=64),
        ObjectiveConfig(likelihood="gaussian", reconstruction_weight=10.0, elbo_weight=0.5, kl_annealing_steps=2000.0),
        OptimConfig(batch_size=100, epochs=10),
        DataConfig("features", root="sketchy.npz"),
    ),
}

# Handwritten digits that come with scikit-learn, at a size that two CPU cores train in minutes.
_DIGITS = Preset(
    "digits-cdcb",
    ModelConfig("spatial", image_size=32, n_shared=8, n_exclusive=4, n_decoder=8, dropout=0.0),
    ObjectiveConfig(reconstruction_weight=1000.0, elbo_weight=0.02, kl_annealing_steps=500.0),
    OptimConfig(lr=2e-3, batch_size=32, epochs=110, lr_decay="cosine"),
    DataConfig("digits-cdcb", image_size=32, augment=True),
)

_ALL = {"digits-cdcb": _DIGITS, **_PUBLISHED}


def names() -> tuple[str, ...]:
    """The presets there are."""
    return tuple(_ALL)


def get(name: str, image_size: int | None = None) -> Preset:
    """A preset by name.

    Args:
        name: One of ``names()``. The published experiments carry the published settings.
        image_size: Another image size than the preset's own (published: 256); ``iiae_fast.networks`` says which layers that
            drops. At 64 pixels and below the networks are narrow and the steps larger, for machines without a GPU: the
            settings printed by ``iiae train NAME --image-size 32 --help``.

    Raises:
        ConfigError: No such preset, an image size that the networks cannot take, or one for a preset of features.
    """
    if name not in _ALL:
        raise ConfigError(f"unknown preset {name!r}; accepted are {', '.join(_ALL)}")
    preset = _ALL[name]
    if image_size is None:
        return preset
    if preset.model.family == "feature":
        raise ConfigError(f"image_size={image_size}: the preset {name!r} has features, no images; accepted is None")
    if image_size == preset.model.image_size:
        return preset
    preset = replace(
        preset, model=replace(preset.model, image_size=image_size), data=replace(preset.data, image_size=image_size)
    )
    return _for_small_machines(preset) if image_size <= 64 else preset


def _for_small_machines(preset: Preset) -> Preset:
    """Narrow networks without dropout, batches of 64 in larger steps on a cosine schedule; the objective stays as published."""
    return replace(
        preset,
        model=replace(preset.model, n_shared=8, n_exclusive=4, n_decoder=8, dropout=0.0),
        # 10/3 of the epochs, since an epoch of such batches is an eighth of the steps: 20 for MNIST-CD/CB.
        optim=replace(preset.optim, lr=2e-3, batch_size=64, epochs=preset.optim.epochs * 10 // 3, lr_decay="cosine"),
        data=replace(preset.data, recolour=True),
    )
