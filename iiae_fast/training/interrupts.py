"""SIGINT and SIGTERM ask for a clean end; a second one gets the usual treatment."""

from __future__ import annotations

__all__ = ["Interrupts"]

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupts:
    """Context in which the first SIGINT or SIGTERM only sets ``received``; the former handlers return then, and at the end.

    Python delivers signals to the main thread alone: in another thread this context changes nothing.

    Args:
        say: Takes a line for the user, from ``announce``: a handler must not print, as it may have interrupted a print.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.received: signal.Signals | None = None
        self._say, self._announced = say, False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def announce(self) -> bool:
        """Whether a signal came; says so to the user the first time."""
        if self.received is None:
            return False
        if not self._announced:
            self._announced = True
            self._say(f"{self.received.name}: finishing this step and saving; send it again to abort")
        return True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            # None: the handler was not installed from Python and cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
