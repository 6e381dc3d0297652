"""What docs/deployment.md says of graphs and precisions is so."""

from __future__ import annotations

import re

from paths import ROOT

from iiae_fast.export import GRAPHS, TOLERANCES

TEXT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def test_every_graph_and_precision_is_listed() -> None:
    table = TEXT.split("## Graphs")[1].split("##")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(GRAPHS)
    table = TEXT.split("## Precisions")[1].split("<!--")[0]
    accepted = {name: float(value) for name, value in re.findall(r"^\| `(\w+)` \|.*\| ([\de.-]+) \|", table, re.MULTILINE)}
    assert accepted == TOLERANCES
