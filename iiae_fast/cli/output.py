"""What commands print and write: JSON for scripts, tables and progress for people, files whole or not at all."""

from __future__ import annotations

__all__ = ["percent", "print_json", "save_npy", "spans", "table"]

import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal


def print_json(values: Any) -> None:
    """``values`` as indented JSON on stdout."""
    print(json.dumps(values, indent=2, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; a column whose name begins with ">" is right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        drawn.add_row(*row)
    Console(highlight=False, markup=False).print(drawn)


def percent(fraction: float) -> str:
    """0.9972 → "99.72 %"."""
    return f"{100 * fraction:.2f} %"


def save_npy(path: Path, array: np.ndarray) -> None:
    """Write one array as a ``.npy`` file."""
    from iiae_fast.storage import write_atomic

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def spans(total: int, size: int, label: str, start: int = 0) -> Iterator[np.ndarray]:
    """``start`` … total − 1 in consecutive int64 spans of ``size``, with progress, rate and time left on stderr.

    On a terminal they are a bar; elsewhere a line every ten seconds.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{_rounded(task.speed)}/s" if task.speed else "")

    on_terminal = sys.stderr.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    began = said = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not on_terminal) as progress:
        task = progress.add_task(label, total=total, completed=start)
        for first in range(start, total, size):
            span = np.arange(first, min(first + size, total))
            yield span
            progress.advance(task, len(span))
            now = time.monotonic()
            if not on_terminal and now - said >= _LINE_SECONDS:
                done, said = first + len(span), now
                rate = (done - start) / (now - began)
                print(
                    f"{label}  {done:,}/{total:,}  {_rounded(rate)}/s  {(total - done) / rate:,.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
