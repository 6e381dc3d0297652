"""The losses: IIAE and the evidence bounds it is compared with, every term named.

With rec the reconstruction terms, KL in nats (sum over latent dimensions, mean over the batch), ω ``elbo_weight``, λ
``interaction_weight`` and a_t = 1 − exp(−t/τ) after t optimizer steps:

    iiae      (ω+λ)(rec_x + rec_y) + a_t (ω+λ)(KL_x + KL_y) + a_t ω KL_s + λ (KL_s‖rx + KL_s‖ry)
    dvcca     ω (rec_x + rec_y + a_t (KL_x + KL_y + KL_s)), which is iiae with λ = 0
    vae       rec_x + rec_y + a_t (KL_x + KL_y + KL_s), the bound of the pair with unit weights
    beta_vae  rec_x + rec_y + a_t β (KL_x + KL_y + KL_s)
    total_correlation  vae + a_t (β − 1) · (TC(z_x) + TC(z_s) + TC(z_y))   (β-TCVAE: Chen et al. 2018)
    hsic      vae + β · (HSIC(z_x, z_s) + HSIC(z_y, z_s))                   (HSIC between two codes: Lopez et al. 2018)
"""

from __future__ import annotations

__all__ = ["LossTerms", "beta_vae", "compute", "dvcca", "hsic", "iiae", "kl_annealing", "total_correlation", "vae"]

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from iiae_fast import kernels
from iiae_fast.config import ObjectiveConfig
from iiae_fast.kernels import ElboWeights
from iiae_fast.kernels.reference import kl_annealing
from iiae_fast.model import IIAEOutput


@dataclass(frozen=True)
class LossTerms:
    """The loss and what it is made of; all scalars.

    Attributes:
        total: What is minimized; the only one to differentiate.
        rec_x, rec_y: ``reconstruction_weight`` times the mean over batch and elements of |x − x̂| or (x − x̂)².
        kl_x, kl_y, kl_s, kl_s_rx, kl_s_ry: KL(q_x‖p), KL(q_y‖p), KL(q_s‖p), KL(q_s‖r_x), KL(q_s‖r_y), in nats per pair.
        kl_annealing: a_t, a float, or a tensor when ``step`` was one.
        penalty: The total-correlation or HSIC estimate, before its weight (``total_correlation`` and ``hsic`` only).
        classification: Cross-entropy of the classifier on z_s in nats, before its weight (with ``class_weight`` and labels).
    """

    total: Tensor
    rec_x: Tensor
    rec_y: Tensor
    kl_x: Tensor
    kl_y: Tensor
    kl_s: Tensor
    kl_s_rx: Tensor
    kl_s_ry: Tensor
    kl_annealing: float | Tensor
    penalty: Tensor | None = None
    classification: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """The tensor terms by name, without the absent ones."""
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self) if field.name != "kl_annealing")
        return {name: value for name, value in fields if value is not None}


def iiae(
    out: IIAEOutput,
    x: Tensor,
    y: Tensor,
    config: ObjectiveConfig | None = None,
    step: int | Tensor = 0,
    labels: Tensor | None = None,
) -> LossTerms:
    """The published loss (paper, section 3.3; weights as in the published code).

    Args:
        out: Output of ``IIAE.forward``.
        x, y: The batch, as it was given to the model: floating point or uint8, shaped like ``out.x_hat``.
        config: Weights; the defaults are MNIST-CDCB's.
        step: Optimizer steps already taken: an int, or an integer tensor of one element (inside CUDA graphs).
        labels: ``(B,)`` int64 classes for the classifier on z_s, when the model has one and ``class_weight`` is not 0.
    """
    config = config or ObjectiveConfig()
    omega, lamda = config.elbo_weight, config.interaction_weight
    return _elbo(out, x, y, config, step, labels, ElboWeights(omega + lamda, omega + lamda, omega, lamda))


def dvcca(
    out: IIAEOutput,
    x: Tensor,
    y: Tensor,
    config: ObjectiveConfig | None = None,
    step: int | Tensor = 0,
    labels: Tensor | None = None,
) -> LossTerms:
    """VCCA-private (Wang et al. 2016), which IIAE with λ = 0 is. Arguments as ``iiae``."""
    return iiae(out, x, y, dataclasses.replace(config or ObjectiveConfig(), interaction_weight=0.0), step, labels)


def vae(
    out: IIAEOutput,
    x: Tensor,
    y: Tensor,
    config: ObjectiveConfig | None = None,
    step: int | Tensor = 0,
    labels: Tensor | None = None,
) -> LossTerms:
    """Negative evidence bound of the pair with unit weights (Kingma and Welling 2014). Arguments as ``iiae``."""
    return _elbo(out, x, y, config or ObjectiveConfig(), step, labels, ElboWeights(1.0, 1.0, 1.0))


def beta_vae(
    out: IIAEOutput,
    x: Tensor,
    y: Tensor,
    config: ObjectiveConfig | None = None,
    step: int | Tensor = 0,
    labels: Tensor | None = None,
) -> LossTerms:
    """``vae`` with the KL terms weighted by ``config.beta`` (Higgins et al. 2017). Arguments as ``iiae``."""
    config = config or ObjectiveConfig()
    return _elbo(out, x, y, config, step, labels, ElboWeights(1.0, config.beta, config.beta))


def total_correlation(
    out: IIAEOutput,
    x: Tensor,
    y: Tensor,
    config: ObjectiveConfig | None = None,
    step: int | Tensor = 0,
    labels: Tensor | None = None,
    *,
    dataset_size: int | None = None,
) -> LossTerms:
    """``vae`` with the total correlation of each code weighted by ``config.beta`` (β-TCVAE, minibatch-weighted estimator).

    Args:
        dataset_size: Number of training pairs N of the estimator's importance weights. It enters the penalty's value as the
            constant Σ (D − 1) log N over the codes' sizes D, and no gradient. None takes the batch for the whole set.
    """
    config = config or ObjectiveConfig()
    terms = vae(out, x, y, config, step, labels)
    codes = ((out.z_x, out.q_x), (out.z_s, out.q_s), (out.z_y, out.q_y))
    size = len(x) if dataset_size is None else dataset_size
    penalty = torch.stack([kernels.total_correlation(z.flatten(1), _flat_head(q.head), size) for z, q in codes]).sum()
    return dataclasses.replace(terms, total=terms.total + terms.kl_annealing * (config.beta - 1) * penalty, penalty=penalty)


def hsic(
    out: IIAEOutput,
    x: Tensor,
    y: Tensor,
    config: ObjectiveConfig | None = None,
    step: int | Tensor = 0,
    labels: Tensor | None = None,
) -> LossTerms:
    """``vae`` with the dependence between exclusive and shared codes weighted by ``config.beta``. Arguments as ``iiae``."""
    config = config or ObjectiveConfig()
    terms = vae(out, x, y, config, step, labels)
    z_s = out.z_s.flatten(1)
    penalty = kernels.hsic(out.z_x, z_s) + kernels.hsic(out.z_y, z_s)
    return dataclasses.replace(terms, total=terms.total + config.beta * penalty, penalty=penalty)


def compute(
    out: IIAEOutput, x: Tensor, y: Tensor, config: ObjectiveConfig, step: int | Tensor, labels: Tensor | None, dataset_size: int
) -> LossTerms:
    """The objective that ``config.name`` names."""
    functions: dict[str, Callable[..., LossTerms]] = {
        "iiae": iiae,
        "dvcca": dvcca,
        "vae": vae,
        "beta_vae": beta_vae,
        "total_correlation": partial(total_correlation, dataset_size=dataset_size),
        "hsic": hsic,
    }
    return functions[config.name](out, x, y, config, step, labels)


def _elbo(
    out: IIAEOutput,
    x: Tensor,
    y: Tensor,
    config: ObjectiveConfig,
    step: int | Tensor,
    labels: Tensor | None,
    weights: ElboWeights,
) -> LossTerms:
    batch, elements = len(x), out.x_logits[0].numel()
    # All factors, the mean over batch and elements included, go into the kernel, so that the gradient it writes in the forward
    # pass is the final one: the gradient that comes back through the sum is exactly 1.
    outer = weights.reconstruction or 1.0  # a weight of 0 still reports the term
    factor = outer * config.reconstruction_weight / (batch * elements)
    losses = kernels.reconstruction(
        (out.x_logits, out.y_logits),
        (x, y),
        likelihood=config.likelihood,
        activation=out.activation,
        weight=factor,
        backend=out.backend,
    )
    bound = kernels.elbo(*losses, out.kl, weights, step=step, annealing_steps=config.kl_annealing_steps, backend=out.backend)
    terms = LossTerms(**bound._asdict())
    if config.class_weight and labels is not None and out.class_logits is not None:
        classification = F.cross_entropy(out.class_logits.float(), labels)
        total = terms.total + config.class_weight * classification
        terms = dataclasses.replace(terms, total=total, classification=classification)
    return terms


def _flat_head(head: Tensor) -> Tensor:
    mean, logvar = head.chunk(2, dim=1)
    return torch.cat((mean.flatten(1), logvar.flatten(1)), dim=1)
