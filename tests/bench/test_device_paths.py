"""The measurement of paths, on the emulated device."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulation.runtime import emulate

from iiae_fast.bench import device_paths
from iiae_fast.errors import DataError
from iiae_fast.retrieval.device_paths import load_tables


def test_a_table_is_measured_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "paths.json"
    monkeypatch.setattr(device_paths, "_median", lambda call, device, seconds: (call(), 1.0)[1])
    with emulate():
        for capability in ("9.0", "8.0"):
            assert device_paths.main(["--toy", "--file", str(file)], device="cpu", capability=capability) == 0
    tables = load_tables(file)
    assert set(tables) == {"8.0", "9.0"}
    assert [(entry.queries, entry.rows) for entry in tables["9.0"]] == [(3, 1100), (2, 300)]
    assert set(tables["9.0"][0].seconds) == {"int8", "brute_force", "torch"}
    file.write_text("{}")
    with pytest.raises(DataError, match="is refused"):
        device_paths.main(["--toy", "--file", str(file)], device="cpu", capability="9.0")
