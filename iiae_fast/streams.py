"""A CUDA stream beside the current one, for work that depends on nothing the current one does meanwhile.

Memory: the caching allocator gives what is freed to the next tensor of the same stream at once. That is right by the order of
that stream; of other streams it knows what ``record_stream`` told it. So a tensor that one stream makes and the other reads is
recorded there: by ``fork`` what the side reads, by ``join`` what it made. A backward pass asks no more. Autograd runs each
operator's backward on the operator's own stream, where it reads what the operator read or made; it orders and records the
gradients that go from stream to stream, and in the end lets the stream that called it wait for the others. The gradients of
parameters that the side made are its memory: it writes there again after a fork, so after the optimizer has read them.

A capture of the current stream in a CUDA graph takes the side in with ``fork``, and has it back with ``join`` or the end of the
backward pass. Random numbers come in the order of the calls, whichever stream they are drawn on.
"""

from __future__ import annotations

__all__ = ["Side"]

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class Side:
    """What runs beside the current stream. Keep one: its memory is its own, and a capture wants the stream of the warm-up.

    Args:
        device: A CUDA device; or None, then there is no second stream, and everything runs in the order of the calls.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._stream = None if device is None else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def fork(self, *read: Tensor) -> None:
        """Let the side begin where the current stream is now.

        Args:
            read: What the side reads, or a backward pass there; parameters, which outlive every step, left out.
        """
        if self._stream is None:
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        for tensor in read:
            tensor.record_stream(self._stream)

    def running(self) -> AbstractContextManager[object]:
        """Within it, operators go to the side."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def join(self, *made: Tensor) -> None:
        """Let the current stream wait for the side.

        Args:
            made: What the side made and the current stream reads from here on.
        """
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in made:
            tensor.record_stream(current)
