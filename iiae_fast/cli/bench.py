"""``iiae bench``: the benchmarks in ``iiae_fast.bench``."""

from __future__ import annotations

__all__ = ["Bench"]

import ast
import importlib
import pkgutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from iiae_fast.errors import InputError


@dataclass(frozen=True)
class Bench:
    """Run a benchmark: iiae bench NAME [its options]. Without a name, list them.

    Attributes:
        name: Which one.
        arguments: Its own options; iiae bench NAME --help explains them.
    """

    name: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="NAME")]] = None
    arguments: tyro.conf.Positional[tuple[str, ...]] = ()

    def run(self) -> int:
        """List the benchmarks, or hand over to one."""
        found = _benchmarks()
        if self.name is None:
            for name, summary in found.items():
                print(f"{name:20} {summary}")
            if not found:
                print("this installation has no benchmarks")
            return 0
        if self.name not in found:
            raise InputError(f"unknown benchmark {self.name!r}; accepted are {', '.join(found) or '(none installed)'}")
        module = importlib.import_module(f"iiae_fast.bench.{self.name}")
        sys.argv = [f"iiae bench {self.name}", *self.arguments]
        code: int | None = module.main()
        return code or 0


def _benchmarks() -> dict[str, str]:
    """Modules of ``iiae_fast.bench`` that define ``main``, with the first line of their docstrings; none is imported."""
    from iiae_fast import bench

    found = {}
    for folder in bench.__path__:
        for module in pkgutil.iter_modules([folder]):
            path = Path(folder, f"{module.name}.py")
            if not path.is_file():
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
                found[module.name] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found
