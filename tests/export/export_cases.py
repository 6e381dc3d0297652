"""Tiny models of the three families, and inputs for them."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from iiae_fast import IIAE, ModelConfig

FAMILIES = ("spatial", "flat", "feature")


def tiny_model(family: str, seed: int = 0) -> IIAE:
    """Random weights and biases, with BatchNorm statistics that belong to them; in training mode."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        config = ModelConfig(
            family=family,
            image_size=16,
            n_shared=2,
            n_exclusive=2,
            n_decoder=2,
            shared_dim=5,
            exclusive_dim=3,
            feature_dim=12,
        )
        model = IIAE(config, backend="reference")
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            if getattr(module, "bias", None) is not None:
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
        samples = pairs(model, 16)
        for _ in range(30):  # running averages from their initial zeros and ones to the samples' statistics
            model(samples["x"], samples["y"])
    return model


def pairs(model: IIAE, count: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random x and y."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, *model.config.input_shape, generator=generator).clamp(-1, 1) for name in ("x", "y")}


def images(count: int, seed: int = 2) -> dict[str, torch.Tensor]:
    """Random uint8 images of the tiny models, channels last."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(256, (count, 16, 16, 3), dtype=torch.uint8, generator=generator) for name in ("x", "y")}


def float_layers_of(source: Path, kinds: tuple[str, ...] = ("Conv", "Gemm")) -> set[str]:
    """What quantization leaves in float32: the last layer of each output and, where one of those ``kinds`` is left to
    quantize, the convolution that reads the image; walked here anew.
    """
    graph = onnx.load(source).graph
    layers = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")]
    feeds = {name: node for node in graph.node for name in node.output}

    def before(node: onnx.NodeProto) -> set[str]:
        found = set()
        for name in node.input:
            if name in feeds:
                found |= {feeds[name].name} | before(feeds[name])
        return found

    behind = {node.name: before(node) & {layer.name for layer in layers} for node in layers}
    last = {name for name in behind if not any(name in others for others in behind.values())}
    reads_image = {node.name for node in layers if node.op_type == "Conv" and not behind[node.name]}
    left = {node.name for node in layers if node.op_type in kinds} - last - reads_image
    return last | reads_image if left else last
