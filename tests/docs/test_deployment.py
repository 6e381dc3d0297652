"""What docs/deployment.md says of commands, options and graphs is so."""

from __future__ import annotations

import re

import pytest
from paths import ROOT

from iiae_fast.export import GRAPHS, TOLERANCES

TEXT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def test_every_graph_and_precision_is_listed() -> None:
    table = TEXT.split("## Graphs")[1].split("##")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(GRAPHS)
    table = TEXT.split("## Precisions")[1].split("<!--")[0]
    accepted = {name: float(value) for name, value in re.findall(r"^\| `(\w+)` \|.*\| ([\de.-]+) \|", table, re.MULTILINE)}
    assert accepted == TOLERANCES


def test_commands_parse(capsys: pytest.CaptureFixture[str]) -> None:
    """Every iiae command of the page up to what it would work on."""
    from iiae_fast.cli.parsing import parse

    commands = re.findall(r"^iiae (.+?)(?:\s+#.*)?$", TEXT, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        assert parse(command.split()) is not None, command


def test_python_snippets_compile() -> None:
    snippets = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        compile(snippet, "docs/deployment.md", "exec")
