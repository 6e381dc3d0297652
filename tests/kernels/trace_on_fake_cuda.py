"""Trace every op on CUDA tensors without data, on a machine that need not have a GPU. Prints, as JSON, which pointers each of
an op's Triton kernels writes: a compiler that could not tell would copy every input first.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import triton
from functorch.compile import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget

from iiae_fast import kernels
from iiae_fast.kernels.elbo import forward as elbo_forward
from iiae_fast.kernels.iiae_latents import backward
from iiae_fast.kernels.reconstruction import forward


class FakeDriver:
    """What the analysis of a kernel's writes asks of a GPU."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


def written_pointers(function: Callable[..., Any], *arguments: torch.Tensor) -> list[list[str]]:
    """The pointers that each Triton kernel in the function's graph writes."""
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    try:
        aot_function(function, fw_compiler=keep, bw_compiler=keep)(*arguments)
    except RuntimeError as error:  # running what was traced needs a GPU
        if not graphs:
            raise error
    return [node.kwargs["tensors_to_clone"] for node in graphs[0].graph.nodes if "tensors_to_clone" in node.kwargs]


def main() -> None:
    triton.runtime.driver.set_active(FakeDriver())
    with FakeTensorMode():

        def fake(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            tensor = torch.empty(shape, dtype=dtype, device="cuda")
            return tensor.to(memory_format=torch.channels_last) if len(shape) == 4 else tensor

        heads = [fake(8, 16) if exclusive else fake(8, 256, 8, 8) for exclusive in (True, False, True, False, False)]
        codes = (fake(8, 8), fake(8, 128, 8, 8), fake(8, 8), fake(5, 8, dtype=torch.float32))
        loss, kl = fake(8, dtype=torch.float32), fake(5, 8, dtype=torch.float32)
        seed = fake(1, dtype=torch.int64)
        image, target = fake(8, 3, 64, 64), fake(8, 3, 64, 64, dtype=torch.uint8)
        calls: dict[str, tuple[Any, ...]] = {
            "iiae_latents": (lambda seed, *heads: tuple(kernels.iiae_latents(*heads, seed=seed)), seed, *heads),
            "iiae_latents_backward": (lambda *given: backward(*given, [True] * 5), *codes, *heads, seed),
            "reparameterize": (lambda seed, q: kernels.reparameterize(q, seed=seed), seed, heads[1]),
            "reconstruction": (lambda x, t: forward(x, t, x, t, "laplace", "tanh", 0.1, [True, True]), image, target),
            "elbo": (lambda *given: elbo_forward(*given, [1.2, 1.2, 0.2, 1.0], 100.0), loss, loss, kl, seed),
            "philox_normal": (lambda seed: kernels.philox_normal((3, 4), seed), seed),
        }
        print(json.dumps({name: written_pointers(*call) for name, call in calls.items()}))


if __name__ == "__main__":
    main()
