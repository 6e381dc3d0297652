"""Shapes at every image size and family, initialization, and the two BatchNorm conventions."""

from __future__ import annotations

import pytest
import torch

from iiae_fast import networks
from iiae_fast.config import ModelConfig
from iiae_fast.errors import InputError
from iiae_fast.model import IIAE


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256, 512])
@pytest.mark.parametrize("family", ["spatial", "flat"])
def test_every_image_size_keeps_its_code(family: str, size: int) -> None:
    config = ModelConfig(family, image_size=size, n_shared=1, n_exclusive=2, n_decoder=1, shared_dim=5, exclusive_dim=3)
    model = IIAE(config)
    x = torch.rand(2, 3, size, size) * 2 - 1
    out = model(x, x.flip(0))
    code = 8 if size >= 128 else 4
    assert out.z_s.shape == ((2, 4, code, code) if family == "spatial" else (2, 5))
    assert out.z_x.shape == out.z_y.shape == (2, 3)
    assert out.x_hat.shape == out.y_hat.shape == x.shape
    assert model.shared_shape == tuple(out.z_s.shape[1:])
    assert model.encode_shared(x=x).shape == (2, out.z_s[0].numel())


def test_published_layer_widths() -> None:
    model = IIAE(ModelConfig("spatial"))
    convolutions = [step.layer for step in model.shared_x.steps]
    assert [conv.out_channels for conv in convolutions] == [32, 64, 128, 256, 256]
    assert [step.layer.out_channels for step in model.exclusive_x.steps[:-1]] == [32, 64, 128, 256]
    assert model.exclusive_x.steps[-1].layer.in_features == 16 * 16 * 256
    assert [step.layer.out_channels for step in model.decoder_x.steps] == [512, 256, 128, 64]
    assert [step.dropout.p for step in model.decoder_x.steps] == [0.5, 0.5, 0.0, 0.0]
    assert model.joint.tower.steps[0].layer.in_channels == 512


def test_small_images_drop_the_layers_nearest_the_image() -> None:
    model = IIAE(ModelConfig("spatial", image_size=32))
    assert [step.layer.out_channels for step in model.shared_x.steps] == [128, 256, 256]
    assert [step.layer.out_channels for step in model.decoder_x.steps] == [512, 256]


def test_initialization_is_as_published() -> None:
    torch.manual_seed(0)
    model = IIAE(ModelConfig("flat", image_size=64))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not module.bias.any()
        elif isinstance(module, torch.nn.Linear):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5
            assert 0.9 * bound < module.weight.abs().max().item() <= bound
            assert not module.bias.any()


def test_dense_batch_norm_differs_from_torch_in_its_running_variance_only() -> None:
    torch.manual_seed(0)
    ours, theirs = networks.DenseBatchNorm(6, momentum=0.1), torch.nn.BatchNorm1d(6, momentum=0.1)
    x = torch.randn(5, 6, requires_grad=True)
    weights = torch.randn(5, 6)
    gradients = []
    outputs = []
    for norm in (ours, theirs):
        output = norm(x)
        outputs.append(output)
        gradients.append(torch.autograd.grad((output * weights).sum(), [x, *norm.parameters()]))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var - 0.9, (theirs.running_var - 0.9) * 4 / 5)
    with pytest.raises(InputError, match="batch of 1"):  # a user's error: --optim.batch-size 1
        ours(x[:1])
    ours.eval()
    assert ours(x[:1]).shape == (1, 6)


def test_feature_family_uses_the_first_activation_for_the_joint_encoder() -> None:
    model = IIAE(
        ModelConfig("feature", feature_dim=20, n_shared=3, n_exclusive=2, n_decoder=7, shared_dim=4, exclusive_dim=5, classes=6)
    )
    out = model(torch.randn(3, 20), torch.randn(3, 20))
    assert model.joint.tower.steps[0].layer.in_features == 2 * 12
    assert out.z_s.shape == (3, 4)
    assert out.z_x.shape == (3, 5)
    assert out.x_hat.shape == (3, 20)
    assert out.class_logits is not None
    assert out.class_logits.shape == (3, 6)
