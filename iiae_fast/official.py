"""The authors' published TensorFlow variables, by their names, in this package's model.

The published graph names a variable ``<part>/<scope>/<kind>``; every scope is one step of this package's towers and decoders
(``iiae_fast.networks``), so the correspondence is a short table. Layouts differ in three ways: convolution kernels are HWIO
there (transposed ones H, W, out, in), dense kernels are (in, out), and vectors that stand for flattened maps run row, column,
channel.

One thing cannot be reproduced from outside: the published image graphs decode translations (of prior samples, too) in every
training step, and their decoders' BatchNorm moving statistics average those in. Here they average reconstructions only.
"""

from __future__ import annotations

__all__ = ["config_of", "gather_variables", "load_variables", "read_checkpoint", "variable_table"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iiae_fast.config import Family, ModelConfig
from iiae_fast.errors import CheckpointError, require
from iiae_fast.model import IIAE
from iiae_fast.networks import Decoder, DecoderStep, EncoderStep, Joint, Tower

Array = NDArray[Any]

_NORM_KINDS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_OPTIMIZER_SUFFIXES = ("/Adam", "/Adam_1", "beta1_power", "beta2_power")


@dataclass(frozen=True)
class Variable:
    """How one published variable becomes one tensor of the model.

    Attributes:
        tensor: Name in the model's ``state_dict``.
        axes: Permutation from the published layout to torch's.
        map_axis: Axis, in the published layout, that runs over flattened maps in row, column, channel order; None if none does.
        maps: ``(count, H, W, C)`` of those maps: ``count`` of them concatenated.
    """

    tensor: str
    axes: tuple[int, ...]
    map_axis: int | None = None
    maps: tuple[int, int, int, int] = field(default=(1, 1, 1, 1))

    def to_torch(self, array: Array) -> Array:
        """From the published layout."""
        if self.map_axis is not None:
            array = self._reorder(array, self.maps, (0, 3, 1, 2))
        transposed: Array = array.transpose(self.axes)
        return transposed

    def to_official(self, array: Array) -> Array:
        """To the published layout."""
        array = array.transpose(np.argsort(self.axes))
        if self.map_axis is not None:
            count, height, width, channels = self.maps
            array = self._reorder(array, (count, channels, height, width), (0, 2, 3, 1))
        return array

    def _reorder(self, array: Array, shape: tuple[int, ...], order: tuple[int, ...]) -> Array:
        assert self.map_axis is not None
        moved = np.moveaxis(array, self.map_axis, 0)
        moved = moved.reshape(*shape, *moved.shape[1:])
        rest = tuple(range(len(shape), moved.ndim))
        flat = moved.transpose(*order, *rest).reshape(-1, *moved.shape[len(shape) :])
        reordered: Array = np.moveaxis(flat, 0, self.map_axis)
        return reordered


def variable_table(model: IIAE) -> dict[str, Variable]:
    """Every variable of the published graph that has a place in ``model``, by its TensorFlow name."""
    config = model.config
    table: dict[str, Variable] = {}
    flat = (config.code_size, config.code_size)

    def layer(name: str, module: nn.Module, prefix: str, maps: tuple[int, int, int, int] | None, map_axis: int) -> None:
        if isinstance(module, nn.Linear):
            table[f"{name}/dense/kernel"] = Variable(
                f"{prefix}.weight", (1, 0), map_axis if maps else None, maps or (1, 1, 1, 1)
            )
            outputs_are_maps = maps is not None and map_axis == 1
            table[f"{name}/dense/bias"] = Variable(
                f"{prefix}.bias", (0,), 0 if outputs_are_maps else None, maps or (1, 1, 1, 1)
            )
        else:
            kind = "conv2d_transpose" if isinstance(module, nn.ConvTranspose2d) else "conv2d"
            table[f"{name}/{kind}/kernel"] = Variable(f"{prefix}.weight", (3, 2, 0, 1))  # HWIO -> OIHW, and HWOI -> IOHW
            table[f"{name}/{kind}/bias"] = Variable(f"{prefix}.bias", (0,))

    def norm(name: str, prefix: str, maps: tuple[int, int, int, int] | None = None) -> None:
        for official, ours in _NORM_KINDS.items():
            entry = Variable(f"{prefix}.{ours}", (0,), 0 if maps else None, maps or (1, 1, 1, 1))
            table[f"{name}/batch_normalization/{official}"] = entry

    def tower(
        part: str, scopes: list[str], module: Tower, prefix: str, joint_maps: tuple[int, int, int, int] | None = None
    ) -> None:
        for index, (scope, step) in enumerate(zip(scopes, module.steps, strict=True)):
            assert isinstance(step, EncoderStep)
            name, path = f"{part}/{scope}", f"{prefix}.steps.{index}"
            maps = joint_maps if index == 0 else None
            if step.flatten:
                assert isinstance(step.norm, nn.BatchNorm2d)
                assert isinstance(step.layer, nn.Linear)
                inputs = step.norm.num_features  # channels of the map that is flattened
                side = int((step.layer.in_features // inputs) ** 0.5)
                maps = (1, side, side, inputs)
            layer(name, step.layer, f"{path}.layer", maps, map_axis=0)
            if step.norm is not None:
                norm(name, f"{path}.norm")

    def decoder(part: str, module: Decoder, prefix: str) -> None:
        if module.expand is not None:
            maps = (1, *flat, module.code_shape[0]) if module.code_shape is not None else None
            layer(f"{part}/expand_sR_eR", module.expand.layer, f"{prefix}.expand.layer", maps, map_axis=1)
            norm(f"{part}/expand_sR_eR", f"{prefix}.expand.norm", maps)
        count = len(module.steps)
        for index, step in enumerate(module.steps):
            assert isinstance(step, DecoderStep)
            name, path = f"{part}/vae_decoder_{count + 1 - index}", f"{prefix}.steps.{index}"
            layer(name, step.layer, f"{path}.layer", None, map_axis=0)
            norm(name, f"{path}.norm")
        layer(f"{part}/vae_decoder_1", module.output, f"{prefix}.output", None, map_axis=0)

    shared, exclusive, joint = _scopes(config.family, config.downsamplings)
    for domain in ("x", "y"):
        part = f"{domain.upper()}_encoder"
        tower(part, shared, getattr(model, f"shared_{domain}"), f"shared_{domain}")
        tower(part, exclusive, getattr(model, f"exclusive_{domain}"), f"exclusive_{domain}")
        decoder(f"{domain.upper()}_decoder", getattr(model, f"decoder_{domain}"), f"decoder_{domain}")
    assert isinstance(model.joint, Joint)
    joint_maps = (2, *flat, 8 * config.n_shared) if config.family == "flat" else None
    tower("S_encoder", joint, model.joint.tower, "joint.tower", joint_maps)
    if model.classifier is not None:
        layer("C_decoder/classifier", model.classifier, "classifier", None, map_axis=0)
    return table


def _scopes(family: Family, layers: int) -> tuple[list[str], list[str], list[str]]:
    """Published scopes of the shared tower's, exclusive tower's and joint encoder's steps."""

    def numbered(scope: str, count: int) -> list[str]:
        return [f"{scope}_{number}" for number in range(1, count + 1)]

    if family == "feature":
        shared = numbered("vae_individual_shared_encoder", 3)
        return shared, numbered("vae_individual_exclusive_encoder", 3), numbered("vae_shared_encoder", 2)
    shared = numbered("vae_individual_shared_encoder", layers)
    exclusive = [*numbered("vae_individual_exclusive_encoder", layers - 1), "vae_encoder_q_z_exclusive"]
    if family == "flat":
        return [*shared, *numbered("vae_encoder_r_z_shared", 2)], exclusive, numbered("vae_encoder_q_z_shared", 2)
    return shared, exclusive, numbered("vae_encoder_q_z_shared", 1)


def load_variables(model: IIAE, mapping: Mapping[str, Array]) -> IIAE:
    """Put the published graph's variables into ``model``, in place.

    Args:
        model: Of the widths the variables have; ``config_of`` reads them off.
        mapping: Arrays by TensorFlow name, in TensorFlow's layouts (kernels HWIO, transposed H, W, out, in, dense in, out). The
            optimizer's slots, the step counter, and the classifier where the model has none, are allowed and not used.

    Returns:
        ``model``.

    Raises:
        CheckpointError: A variable is missing, surplus, or of another shape; the model is left as it was.
    """
    table = variable_table(model)
    surplus = [name for name in mapping if name not in table and not _is_ignored(name, model)]
    if surplus:
        raise CheckpointError(f"variable {surplus[0]} has no place in this {model.config.family} model")
    state = model.state_dict()
    converted: dict[str, Tensor] = {}
    for name, variable in table.items():
        if name not in mapping:
            raise CheckpointError(f"variable {name} is missing")
        target = state[variable.tensor]
        array = np.asarray(mapping[name])
        expected = variable.to_official(np.empty(tuple(target.shape), dtype=np.int8)).shape
        if array.shape != expected:
            raise CheckpointError(f"variable {name} has shape {array.shape}, this model's is {expected}")
        converted[variable.tensor] = torch.from_numpy(np.ascontiguousarray(variable.to_torch(array))).to(target.dtype)
    model.load_state_dict({**state, **converted})
    return model


def gather_variables(model: IIAE, values: Mapping[str, Tensor] | None = None) -> dict[str, Array]:
    """The inverse of ``load_variables``: the model's state, or other tensors by its names (gradients, say), as TensorFlow's.

    Args:
        model: Gives the correspondence.
        values: Tensors by ``state_dict`` name; those absent are left out. None: the model's own state.
    """
    values = model.state_dict() if values is None else values
    return {
        name: np.array(variable.to_official(values[variable.tensor].detach().cpu().numpy()), order="C")  # a copy
        for name, variable in variable_table(model).items()
        if variable.tensor in values
    }


def config_of(mapping: Mapping[str, Array]) -> ModelConfig:
    """Read the family, the widths and the image size off the variables' names and shapes.

    Raises:
        CheckpointError: These are not the variables of one of the published graphs.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in mapping:
            raise CheckpointError(f"variable {name} is missing: not one of the published graphs")
        return tuple(int(size) for size in mapping[name].shape)

    shared, exclusive = "X_encoder/vae_individual_shared_encoder", "X_encoder/vae_individual_exclusive_encoder"
    if f"{shared}_1/dense/kernel" in mapping:
        features, width = shape(f"{shared}_1/dense/kernel")
        classes = shape("C_decoder/classifier/dense/kernel")[1] if "C_decoder/classifier/dense/kernel" in mapping else 0
        return ModelConfig(
            family="feature",
            feature_dim=features,
            n_shared=width // 4,
            n_exclusive=shape(f"{exclusive}_1/dense/kernel")[1] // 4,
            n_decoder=shape("X_decoder/expand_sR_eR/dense/kernel")[1],
            shared_dim=shape(f"{shared}_3/dense/kernel")[1] // 2,
            exclusive_dim=shape(f"{exclusive}_3/dense/kernel")[1] // 2,
            classes=classes,
        )
    layers = sum(name.startswith(f"{shared}_") and name.endswith("conv2d/kernel") for name in mapping)
    if layers != 5:
        raise CheckpointError(f"{layers} convolutions named {shared}_…, expected 5: not one of the published graphs")
    flat = "X_decoder/expand_sR_eR/dense/kernel" in mapping
    return ModelConfig(
        family="flat" if flat else "spatial",
        image_size=256,
        channels=shape(f"{shared}_1/conv2d/kernel")[2],
        n_shared=shape(f"{shared}_1/conv2d/kernel")[3],
        n_exclusive=shape(f"{exclusive}_1/conv2d/kernel")[3],
        n_decoder=shape("X_decoder/vae_decoder_2/conv2d_transpose/kernel")[2],
        shared_dim=shape("S_encoder/vae_encoder_q_z_shared_1/dense/kernel")[1] // 2 if flat else ModelConfig.shared_dim,
        exclusive_dim=shape("X_encoder/vae_encoder_q_z_exclusive/dense/kernel")[1] // 2,
    )


def read_checkpoint(path: str | Path) -> dict[str, Array]:
    """All variables of a TensorFlow checkpoint (``model.index`` and ``model.data-…``), by name.

    Args:
        path: The checkpoint's prefix, its ``.index`` file, or its directory (then the newest one there). Needs TensorFlow.

    Raises:
        CheckpointError: No checkpoint there, or one that cannot be read.
        MissingExtraError: TensorFlow is not installed.
    """
    path = Path(path)
    if path.suffix == ".index":
        path = path.with_suffix("")
    if path.is_dir():
        found = sorted(path.glob("*.index"), key=lambda index: index.stat().st_mtime)
        if not found:
            raise CheckpointError(f"{path}: holds no TensorFlow checkpoint (no .index file)")
        path = found[-1].with_suffix("")
    if not path.with_name(path.name + ".index").is_file():
        raise CheckpointError(f"{path}: no such TensorFlow checkpoint (no file {path.name}.index)")
    tensorflow = require("tensorflow", "official")
    try:
        reader = tensorflow.train.load_checkpoint(str(path))
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tensorflow.errors.OpError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a TensorFlow checkpoint ({error})") from None


def _is_ignored(name: str, model: IIAE) -> bool:
    """Whether the published graph has this variable, and this model, in its place, has nothing."""
    if name.startswith("C_decoder/") and model.classifier is None:
        return True
    return name == "global_step" or name.endswith(_OPTIMIZER_SUFFIXES)
