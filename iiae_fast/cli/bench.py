"""``iiae bench``: handed over to ``iiae_fast.bench``, which reads its own options."""

from __future__ import annotations

__all__ = ["Bench"]

from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Bench:
    """Measure this package beside what one would otherwise use; without arguments, say what there is to measure.

    Attributes:
        arguments: Which suite, and its options; iiae bench --help explains them.
    """

    arguments: tyro.conf.Positional[tuple[str, ...]] = ()

    def run(self) -> int:
        """Run, compare or render."""
        from iiae_fast.bench.command import main

        try:
            return main(self.arguments)
        except SystemExit as exit:  # argparse, after its help
            return int(exit.code or 0)
