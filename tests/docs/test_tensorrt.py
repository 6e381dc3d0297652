"""What docs/tensorrt.md says of precisions and targets is so."""

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
