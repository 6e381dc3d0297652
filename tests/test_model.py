"""The model's public surface: forward, codes, translation, files, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import iiae_fast
from iiae_fast.config import ModelConfig
from iiae_fast.errors import CheckpointError
from iiae_fast.model import IIAE

CONFIGS = {
    "spatial": ModelConfig("spatial", image_size=32, n_shared=2, n_exclusive=2, n_decoder=2),
    "flat": ModelConfig("flat", image_size=32, n_shared=2, n_exclusive=2, n_decoder=2, shared_dim=6),
    "feature": ModelConfig("feature", feature_dim=12, n_shared=3, n_exclusive=3, n_decoder=4, shared_dim=6, exclusive_dim=5),
}


@pytest.fixture(params=CONFIGS)
def config(request) -> ModelConfig:
    return CONFIGS[request.param]


def batch(config: ModelConfig, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (size, *config.input_shape)
    return tuple(torch.rand(shape, generator=generator) * 2 - 1 for _ in range(2))  # type: ignore[return-value]


def make(config: ModelConfig) -> IIAE:
    torch.manual_seed(0)
    return IIAE(config)


def test_sampling_follows_mode_and_seed(config: ModelConfig) -> None:
    model, (x, y) = make(config), batch(config)
    first, second, other = (model(x, y, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.z_s, second.z_s)
    assert not torch.equal(first.z_s, other.z_s)
    assert not torch.equal(model(x, y).z_s, model(x, y).z_s)  # no seed: torch's generator
    torch.manual_seed(5)
    once = model(x, y).z_s
    torch.manual_seed(5)
    assert torch.equal(model(x, y).z_s, once)
    assert torch.equal(model(x, y, seed=torch.tensor([1])).z_s, first.z_s)
    assert torch.equal(model(x, y, sample=False).z_s, model(x, y, sample=False).q_s.mean)
    model.eval()
    out = model(x, y)
    assert torch.equal(out.z_s, out.q_s.mean)
    assert not torch.equal(model(x, y, sample=True, seed=0).z_s, out.z_s)


def test_kl_of_the_output_is_the_kl_of_its_distributions(config: ModelConfig) -> None:
    model, (x, y) = make(config), batch(config)
    out = model(x, y, seed=0)
    expected = torch.stack([out.q_x.kl(), out.q_y.kl(), out.q_s.kl(), out.q_s.kl(out.r_x), out.q_s.kl(out.r_y)])
    torch.testing.assert_close(out.kl, expected)
    assert out.kl.dtype == torch.float32


def test_codes_are_the_means_of_the_encoders(config: ModelConfig) -> None:
    model, (x, y) = make(config).eval(), batch(config)
    out = model(x, y)
    assert torch.equal(model.encode_shared(x=x), out.r_x.mean.flatten(1))
    assert torch.equal(model.encode_shared(y=y), out.r_y.mean.flatten(1))
    assert torch.equal(model.encode_shared(x=x, y=y), out.q_s.mean.flatten(1))
    assert torch.equal(model.encode_exclusive(x=x), out.q_x.mean)
    assert torch.equal(model.encode_exclusive(y=y), out.q_y.mean)
    with pytest.raises(ValueError, match="either x or y"):
        model.encode_exclusive(x=x, y=y)
    with pytest.raises(ValueError, match="give x, y, or both"):
        model.encode_shared()


def test_translation(config: ModelConfig) -> None:
    model, (x, y) = make(config).eval(), batch(config)
    with torch.no_grad():
        for to, source, style in (("y", {"x": x}, y), ("x", {"y": y}, x)):
            styled = model.translate(**source, style=style, to=to)
            assert styled.shape == x.shape
            one = model.translate(**source, style=style[:1], to=to)
            torch.testing.assert_close(one[0], styled[0])
            prior = [model.translate(**source, to=to, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
            assert torch.equal(prior[0], prior[1])
            assert not torch.equal(prior[0], prior[2])
        shared, exclusive = model.encode_shared(x=x), model.encode_exclusive(y=y)
        torch.testing.assert_close(model.decode_y(shared, exclusive), model.translate(x=x, style=y, to="y"))
    for arguments, message in (
        ({"x": x, "to": "x"}, "translation to x takes y"),
        ({"x": x, "y": y}, "translation to y takes x"),
        ({"x": x, "to": "z"}, "to='z': accepted are 'x' and 'y'"),
        ({"x": x, "style": y[:2]}, "style has 2 samples"),
    ):
        with pytest.raises(ValueError, match=message):
            model.translate(**arguments)
    with pytest.raises(ValueError, match=r"z_s of shape .*: accepted is \(B, "):
        model.decode_x(torch.zeros(2, 1), exclusive[:2])
    with pytest.raises(ValueError, match="exclusive code of shape"):
        model.decode_x(shared, torch.zeros(4, 1))


def test_uint8_images_are_normalized() -> None:
    model = make(CONFIGS["spatial"]).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(model.encode_shared(x=pixels), model.encode_shared(x=pixels / 127.5 - 1))


def test_wrong_inputs_are_named(config: ModelConfig) -> None:
    model, (x, y) = make(config), batch(config)
    with pytest.raises(ValueError, match=r"y of shape .* accepted is \(B, "):
        model(x, y[..., :-1])
    with pytest.raises(ValueError, match="x has 4 samples and y has 3"):
        model(x, y[:3])
    with pytest.raises(ValueError, match=r"x of dtype torch\.int64"):
        model(x.long(), y)
    with pytest.raises(TypeError, match="y: expected a tensor, got ndarray"):
        model.encode_shared(y=y.numpy())


def test_gradients_reach_every_parameter(config: ModelConfig) -> None:
    model, (x, y) = make(config), batch(config)
    out = model(x, y, seed=0)
    iiae_fast.objectives.iiae(out, x, y, step=10).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_saved_models_load_in_evaluation_mode(config: ModelConfig, tmp_path: Path) -> None:
    model, (x, y) = make(config), batch(config)
    model(x, y)  # moves the running statistics
    model.save(tmp_path / "a", preset="made-up")
    loaded = iiae_fast.load(tmp_path / "a")
    assert not loaded.training
    assert loaded.config == config
    assert torch.equal(loaded(x, y).x_hat, model.eval()(x, y).x_hat)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]


def test_broken_run_directories_are_named(tmp_path: Path) -> None:
    model = make(CONFIGS["feature"])
    with pytest.raises(CheckpointError, match="absent: no such run directory"):
        iiae_fast.load(tmp_path / "absent")
    model.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: altered"):
        iiae_fast.load(tmp_path)
    make(CONFIGS["flat"]).save(tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"tensor exclusive_x\.steps\.0\.layer\.weight has shape"):
        iiae_fast.load(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        iiae_fast.load(tmp_path)
