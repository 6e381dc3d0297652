"""One head: its code, and its KL divergence to N(0, I) or to another head."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from iiae_fast.kernels import philox_normal, reparameterize


@pytest.mark.parametrize("stream", [0, 7])
@pytest.mark.parametrize("with_prior", [False, True])
def test_code_and_kl_are_the_definition(with_prior: bool, stream: int) -> None:
    q, prior = torch.randn(2, 5, 12, dtype=torch.float64)
    z, kl = reparameterize(q, prior if with_prior else None, seed=3, stream=stream)
    posterior = Normal(q[:, :6], (0.5 * q[:, 6:]).exp())
    other = Normal(prior[:, :6], (0.5 * prior[:, 6:]).exp()) if with_prior else Normal(0.0, 1.0)
    torch.testing.assert_close(z, posterior.mean + posterior.stddev * philox_normal((5, 6), 3, stream))
    torch.testing.assert_close(kl, kl_divergence(posterior, other).sum(1))


def test_mean_without_sampling() -> None:
    q = torch.randn(3, 4, 2, 2)
    assert torch.equal(reparameterize(q, sample=False)[0], q[:, :2])


def test_empty_batch() -> None:
    z, kl = reparameterize(torch.zeros(0, 6), seed=0)
    assert z.shape == (0, 3)
    assert kl.shape == (0,)


def test_gradcheck() -> None:
    q, prior = (torch.randn(2, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda q, prior: reparameterize(q, prior, seed=1), (q, prior))
    assert torch.autograd.gradcheck(lambda q: reparameterize(q, seed=1), (q,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": torch.zeros(2, 3)}, r"q: shape \(2, 3\); accepted"),
        ({"prior": torch.zeros(2, 8)}, r"prior: shape \(2, 8\) differs from q's \(2, 6\)"),
        ({"prior": torch.zeros(2, 6).half()}, "prior: dtype torch.float16 differs from q's torch.float32"),
        ({"stream": -1}, "stream=-1; accepted"),
        ({"seed": None}, "seed=None; sampling needs a seed"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reparameterize(**{"q": torch.zeros(2, 6), "seed": 0, **arguments})  # type: ignore[arg-type]
