"""Which path a search on a CUDA device takes, by a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iiae_fast.errors import DataError
from iiae_fast.retrieval import device_paths
from iiae_fast.retrieval.device_paths import Entry, choose, load_tables, untabled

ENTRY: dict[str, Any] = {"queries": 10, "rows": 1000, "dim": 64, "k": 5, "seconds": {"int8": 2e-3, "brute_force": 1e-3}}


def write(path: Path, tables: object, form: int = 1) -> Path:
    path.write_text(json.dumps({"format": form, "tables": tables}))
    return path


def test_what_was_measured_nearby_decides(tmp_path: Path) -> None:
    large = {**ENTRY, "rows": 1_000_000, "seconds": {"int8": 1e-3, "brute_force": 2e-3, "torch": 1e-4}}
    tables = load_tables(write(tmp_path / "paths.json", {"9.0": {"device": "some", "entries": [ENTRY, large]}}))
    assert choose(10, 30_000, 64, 5, "9.0", tables) == "brute_force"  # 1,000 is nearer by its ratio
    assert choose(10, 33_000, 64, 5, "9.0", tables) == "int8"
    assert choose(10, 30_000, 64, 5, "8.0", tables) == untabled(10, 30_000, 64, 5) == "int8"


def test_without_a_table() -> None:
    assert load_tables(device_paths.TABLES) == {}  # none was measured yet; the documents say so
    assert choose(1, 10_000, 64, 10, "9.0") == "int8"
    assert choose(1, 1_000, 64, 10, "9.0") == "brute_force"
    assert choose(1, 10_000, 64, 2_000, "9.0") == "brute_force"  # a fifth of the rows
    assert choose(1, 100_000, 64, 2_000, "9.0") == "brute_force"  # one block would select them
    assert choose(100, 100_000, 64, 2_000, "9.0") == "int8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "entry 0 has a size that is no whole number"),
        ({"k": True}, "entry 0 has a size that is no whole number"),
        ({"seconds": {"int8": 1e-3}}, "entry 0 has no positive seconds for int8 and brute_force"),
        ({"seconds": {"int8": 1e-3, "brute_force": float("inf")}}, "no positive seconds"),
        ({"more": 1}, "entry 0 has not exactly queries, rows, dim, k and seconds"),
    ],
)
def test_bad_entries_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "paths.json", {"9.0": {"entries": [{**ENTRY, **change}]}})
    with pytest.raises(DataError, match=f"paths.json is refused: table '9.0' .*{message}"):
        load_tables(path)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a table of paths"):
        load_tables(tmp_path / "missing.json")
    with pytest.raises(DataError, match="accepted is an object with 'format' 1"):
        load_tables(write(tmp_path / "paths.json", {}, form=2))
    with pytest.raises(DataError, match=r"table '9\.0' has no 'entries'"):
        load_tables(write(tmp_path / "paths.json", {"9.0": {}}))


def test_entries_choose_the_faster_of_our_paths() -> None:
    assert Entry(1, 1, 1, 1, {"int8": 2.0, "brute_force": 3.0, "torch": 1.0}).fastest == "int8"
