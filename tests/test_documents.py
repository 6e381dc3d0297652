"""Programs in the documents run as they stand."""

from __future__ import annotations

import re

import pytest
from paths import ROOT


@pytest.mark.parametrize("name", ["docs/kernels.md"])
def test_programs_run(name: str) -> None:
    programs = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert programs
    for program in programs:
        exec(compile(program, name, "exec"), {})
