"""Time of a run over its sessions, with validations and checkpoints told apart from steps."""

from __future__ import annotations

__all__ = ["Clock"]

import time
from collections.abc import Iterator
from contextlib import contextmanager

from iiae_fast.training.checkpoint import RunState


class Clock:
    """Started with the session; adds to the times that the state brought along.

    Args:
        state: Of the run; its times are kept up to date there, by ``stamp`` and ``pause``.
    """

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._seconds, self._cpu_seconds, self._pause_seconds = state.seconds, state.cpu_seconds, state.pause_seconds
        self._start, self._cpu_start, self._first = time.monotonic(), time.process_time(), state.step
        self._mark = (0.0, state.step)

    def session(self) -> float:
        """Seconds of this session."""
        return time.monotonic() - self._start

    def stamp(self) -> None:
        """Bring the state's times up to date."""
        self._state.seconds = self._seconds + self.session()
        self._state.cpu_seconds = self._cpu_seconds + time.process_time() - self._cpu_start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time in here is not the steps'."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._state.pause_seconds += time.monotonic() - start

    def steps_per_second(self) -> float:
        """Of this session."""
        return (self._state.step - self._first) / max(self._active(), 1e-9)

    def interval_steps_per_second(self) -> float:
        """Since the last call, or since the session began."""
        active, step = self._active(), self._state.step
        (before, first), self._mark = self._mark, (active, step)
        return (step - first) / max(active - before, 1e-9)

    def seconds_left(self, steps: int) -> float:
        """Until ``steps`` steps, with pauses as this session had them."""
        return self.session() * (steps - self._state.step) / (self._state.step - self._first)

    def _active(self) -> float:
        return self.session() - (self._state.pause_seconds - self._pause_seconds)
