"""Commands and programs in the guides are such as the package takes."""

from __future__ import annotations

import re

import pytest
from paths import ROOT


def read(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "least", "most"), [("deployment.md", 4, 100), ("tensorrt.md", 3, 3)])
def test_commands_parse(page: str, least: int, most: int) -> None:
    """Every iiae command of the page up to what it would work on."""
    from iiae_fast.cli.parsing import parse

    commands = re.findall(r"^iiae (.+?)(?:\s+#.*)?$", read(page), re.MULTILINE)
    assert least <= len(commands) <= most
    for command in commands:
        assert parse(command.split()) is not None, command


@pytest.mark.parametrize("page", ["deployment.md", "tensorrt.md"])
def test_python_snippets_compile(page: str) -> None:
    snippets = re.findall(r"```python\n(.*?)```", read(page), re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        compile(snippet, f"docs/{page}", "exec")
