"""What docs/tensorrt.md says of commands, precisions and targets is so."""

from __future__ import annotations

import re

from paths import ROOT

from iiae_fast.export import TOLERANCES
from iiae_fast.export.flavors import RTX_TARGETS

TEXT = (ROOT / "docs" / "tensorrt.md").read_text(encoding="utf-8")


def test_precisions_and_targets() -> None:
    table = TEXT.split("## Precisions")[1].split("No graph holds")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(TOLERANCES)
    row = re.search(r"^\| GPUs \| .*compute capability ([\d., ]+) \|", TEXT, re.MULTILINE)
    assert row is not None
    assert tuple("SM" + number.replace(".", "") for number in row[1].split(", ")) == RTX_TARGETS


def test_commands_parse() -> None:
    from iiae_fast.cli.parsing import parse

    commands = re.findall(r"^iiae (.+?)(?:\s+#.*)?$", TEXT, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert parse(command.split()) is not None, command


def test_python_snippets_compile() -> None:
    snippets = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        compile(snippet, "docs/tensorrt.md", "exec")
