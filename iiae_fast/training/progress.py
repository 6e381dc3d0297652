"""What a user sees while a run goes on: a live bar on a terminal, else a line now and then; all of it on stderr."""

from __future__ import annotations

__all__ = ["ProgressDisplay"]

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.25


class ProgressDisplay:
    """Context that shows where the run stands.

    Args:
        total: Steps of the whole run.
        epochs: Passes of the whole run.
        enabled: False shows nothing at all.
    """

    def __init__(self, total: int, epochs: int, enabled: bool) -> None:
        self._total, self._epochs, self._enabled = total, epochs, enabled
        self._next = 0.0
        self._loss = ""
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if enabled and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=console, refresh_per_second=4)
            self._task = self._bar.add_task("", total=total, facts="")

    def __enter__(self) -> ProgressDisplay:
        if self._bar is not None:
            self._bar.start()
        else:
            self._next = time.monotonic() + _LINE_SECONDS
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def loss(self, value: float) -> None:
        """The loss that was last read."""
        self._loss = f"loss {value:.4g}"

    def update(self, step: int, epoch: int, pairs_per_second: float, seconds_left: float) -> None:
        """Show where the run stands; called every step, shown a few times a second (or every ten seconds)."""
        now = time.monotonic()
        if not self._enabled or now < self._next:
            return
        place = f"epoch {min(epoch + 1, self._epochs)}/{self._epochs}  step {step}/{self._total}"
        facts = "  ".join(filter(None, (self._loss, f"{pairs_per_second:.4g} pairs/s", f"{_duration(seconds_left)} left")))
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=place, facts=facts)
            self._next = now + _BAR_SECONDS
        else:
            print(f"{place}  {facts}", file=sys.stderr, flush=True)
            self._next = now + _LINE_SECONDS

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._enabled:
            print(text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
