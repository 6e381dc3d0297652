"""Configurations refuse what they cannot mean, and survive JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import python

import iiae_fast
from iiae_fast.config import DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, Preset
from iiae_fast.errors import ConfigError, MissingExtraError, require


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ModelConfig(family="cube"), "family='cube': accepted is one of spatial, flat, feature"),
        (lambda: ModelConfig(image_size=48), "image_size=48"),
        (lambda: ModelConfig(image_size=8), "image_size=8"),
        (lambda: ModelConfig(n_shared=0), "n_shared=0"),
        (lambda: ModelConfig(n_shared=1.5), "n_shared=1.5"),
        (lambda: ModelConfig(dropout=1.0), "dropout=1.0"),
        (lambda: ModelConfig(dropout=float("nan")), "dropout=nan"),
        (lambda: ObjectiveConfig(likelihood="poisson"), "likelihood='poisson'"),
        (lambda: ObjectiveConfig(reconstruction_weight=0), "reconstruction_weight=0"),
        (lambda: ObjectiveConfig(interaction_weight=-1), "interaction_weight=-1"),
        (lambda: OptimConfig(lr=0), "lr=0"),
        (lambda: OptimConfig(beta1=1.0), "beta1=1.0"),
        (lambda: OptimConfig(batch_size=True), "batch_size=True"),
        (lambda: OptimConfig(seed=-1), "seed=-1"),
        (lambda: DataConfig(kind="tape"), "kind='tape'"),
        (lambda: DataConfig(valid_fraction=1.0), "valid_fraction=1.0"),
        (lambda: DataConfig(root=3), "root=3: accepted is a path, or None"),
        (lambda: DataConfig(image_size=100_000_000), "image_size=100000000: accepted is a whole number from 1 to 1024"),
        (lambda: Preset.from_dict({"model": {"widht": 3}}), "Preset.model: unknown setting 'widht'"),
        (lambda: Preset.from_dict({"model": 3}), "Preset.model: expected a table of values, got int"),
    ],
)
def test_bad_values_are_named(build, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build()
    assert message in str(error.value)


@pytest.mark.parametrize("name", iiae_fast.presets.names())
@pytest.mark.parametrize("size", [None, 32, 64])
def test_presets_survive_json(name: str, size: int | None) -> None:
    if name == "sketchy" and size is not None:
        with pytest.raises(ConfigError, match=f"image_size={size}: the preset 'sketchy' has features, no images"):
            iiae_fast.presets.get(name, image_size=size)
        return
    preset = iiae_fast.presets.get(name, image_size=size)
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset
    if preset.model.family != "feature":
        assert preset.model.image_size == preset.data.image_size == (size or preset.model.image_size)


def test_a_root_given_as_a_path_survives_json() -> None:
    preset = Preset(data=DataConfig("side-by-side", root=Path("photos")))
    assert preset.data.root == "photos"
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


def test_objective_takes_its_weights_in_the_published_order() -> None:
    assert ObjectiveConfig("gaussian", 10.0, 0.5, 2.0, 30.0) == ObjectiveConfig(
        likelihood="gaussian", reconstruction_weight=10.0, elbo_weight=0.5, interaction_weight=2.0, kl_annealing_steps=30.0
    )


def test_published_settings() -> None:
    rows = {name: iiae_fast.presets.get(name) for name in ("mnist-cdcb", "facades", "maps", "cars", "sketchy")}
    weights = {
        name: (p.objective.reconstruction_weight, p.objective.elbo_weight, p.objective.kl_annealing_steps)
        for name, p in rows.items()
    }
    assert weights == {
        "mnist-cdcb": (1000, 0.2, 25000),
        "facades": (1000, 0.001, 25000),
        "maps": (20000, 0.02, 25000),
        "cars": (1000, 0.02, 100),
        "sketchy": (10, 0.5, 2000),
    }
    for preset in rows.values():
        assert preset.objective.interaction_weight == 1
        assert (preset.optim.lr, preset.optim.beta1) == (2e-4, 0.5)
        assert preset.optim.batch_size == (100 if preset.name == "sketchy" else 8)


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'mnist'; accepted are digits-cdcb, mnist-cdcb"):
        iiae_fast.presets.get("mnist")


def test_missing_extra_says_what_installs_it() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'iiae_fast\[onnx\]'"):
        require("a_module_that_is_not_there", "onnx")


def test_import_is_light() -> None:
    code = (
        "import sys, iiae_fast; iiae_fast.presets.get('maps'); import iiae_fast.retrieval, iiae_fast.export;"
        "heavy = {'torch', 'triton', 'onnx', 'onnxruntime', 'sklearn', 'matplotlib', 'PIL', 'jinja2'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run(python(code), check=True)


def test_import_does_not_initialize_cuda() -> None:
    code = "import iiae_fast.model, iiae_fast.kernels, iiae_fast.training, torch; assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)
