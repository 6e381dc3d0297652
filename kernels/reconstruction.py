"""Reconstruction losses with the decoder's last activation fused: weight · Σ |x − x̂|, (x − x̂)², or the Bernoulli NLL.

Prediction and target are ``(B, …)``, the loss ``(B,)``.
"""

from __future__ import annotations

from typing import overload

from torch import Tensor

from iiae_fast.kernels import reference
from iiae_fast.kernels._backend import use_triton
from iiae_fast.kernels._validate import TARGET_DTYPES, require_choice, require_dtype, require_finite, require_tensor

Pair = tuple[Tensor, Tensor]


def _as_tuple(name: str, value: object) -> tuple[Tensor, ...]:
    """A tensor by itself, or a pair of them."""
    if isinstance(value, Tensor):
        return (value,)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: expected a tensor or a pair of tensors, got {type(value).__name__}")
    for one in value:
        require_tensor(name, one)
    return tuple(value)


def _require_sample_pair(prediction: Tensor, target: Tensor) -> None:
    require_dtype("prediction", prediction)
    require_dtype("target", target, TARGET_DTYPES)
    if prediction.dim() < 2:
        raise ValueError(f"prediction: shape {tuple(prediction.shape)}; accepted is (B, ...) with at least 2 dimensions")
    if prediction.shape != target.shape:
        raise ValueError(f"target: shape {tuple(target.shape)} differs from prediction's {tuple(prediction.shape)}")
    if prediction.device != target.device:
        raise ValueError(f"target: device {target.device} differs from prediction's {prediction.device}")
    if target.requires_grad:
        raise ValueError("target: requires grad, and the loss is differentiable only in the prediction; pass target.detach()")


@overload
def reconstruction(
    prediction: Tensor,
    target: Tensor,
    *,
    likelihood: str,
    activation: str | None = None,
    weight: float = 1.0,
    backend: str = "auto",
) -> Tensor: ...


@overload
def reconstruction(
    prediction: Pair,
    target: Pair,
    *,
    likelihood: str,
    activation: str | None = None,
    weight: float = 1.0,
    backend: str = "auto",
) -> Pair: ...


def reconstruction(
    prediction: Tensor | Pair,
    target: Tensor | Pair,
    *,
    likelihood: str,
    activation: str | None = None,
    weight: float = 1.0,
    backend: str = "auto",
) -> Tensor | Pair:
    """Negative log-likelihood of each sample up to a constant, weighted; for one domain, or for both at once.

    Args:
        prediction: ``(B, …)`` decoder output before its last activation, any strides; fp32, bf16, fp16 or fp64. Or a pair.
        target: Of the same shape, any of those dtypes or uint8: v then means v / 127.5 − 1, or v / 255 for ``"bernoulli"``.
            A pair when the prediction is one.
        likelihood: ``"laplace"`` |x − x̂|, ``"gaussian"`` (x − x̂)², ``"bernoulli"`` −x log σ(x̂) − (1 − x) log(1 − σ(x̂)).
        activation: Applied to the prediction first. ``"bernoulli"`` takes logits, so None.
        weight: Factor on the loss. Fold the mean over batch and elements in here and sum the result: the gradient that
            reaches this function is then exactly 1, and its backward has nothing to do.
        backend: ``"reference"``, ``"triton"``, or ``"auto"``: Triton on a CUDA device, else the reference.

    Returns:
        ``(B,)`` in nats, fp32 (fp64 for fp64 predictions), summed over a sample's elements; for a pair, a pair of them.

    Raises:
        ValueError: Shapes or devices that differ, a dtype or name that is not accepted, a target that requires grad.
        TypeError: An argument of another type.
    """
    require_choice("likelihood", likelihood, ("laplace", "gaussian", "bernoulli"))
    require_choice("activation", activation, (None, "tanh", "sigmoid"))
    if likelihood == "bernoulli" and activation is not None:
        raise ValueError(f"activation={activation!r}; 'bernoulli' takes logits, so accepted is None")
    require_finite("weight", weight)
    predictions, targets = _as_tuple("prediction", prediction), _as_tuple("target", target)
    if len(predictions) != len(targets):
        raise ValueError(f"target: {len(targets)} tensors for {len(predictions)} predictions; accepted are as many")
    for one, wanted in zip(predictions, targets):
        _require_sample_pair(one, wanted)
        use_triton(backend, one.device)
    losses = [
        reference.reconstruction(one, wanted, likelihood, activation, weight) for one, wanted in zip(predictions, targets)
    ]
    return losses[0] if isinstance(prediction, Tensor) else (losses[0], losses[1])
