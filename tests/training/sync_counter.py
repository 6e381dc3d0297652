"""What would make the host wait for a GPU, counted on a CPU."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default", "masked_select", "aten::item", "unique")


class Synchronizations(TorchDispatchMode):
    """Context that collects the operators that read a device's values into the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in WAITING):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))
