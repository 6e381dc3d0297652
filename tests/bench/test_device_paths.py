"""The measurement of paths, on the emulated device."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulation.runtime import emulate

from iiae_fast.bench import device_paths
from iiae_fast.errors import DataError, DeviceMemoryError
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


def test_what_was_measured_is_kept_when_a_size_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that does not fit is left out; one whose paths differ ends the run; the table of those before it is there."""
    file = tmp_path / "paths.json"
    monkeypatch.setattr(device_paths, "_TOY", [(1, 100, 8, 2), (2, 200, 8, 2), (3, 300, 8, 2)])

    def measure(size: tuple[int, int, int, int], device: str, seconds: float) -> dict[str, float]:
        if size[0] == 1:
            raise DeviceMemoryError("out of device memory")
        assert size[0] == 2, "the paths differ"
        return {"int8": 1.0, "brute_force": 3.0, "torch": 0.5}

    monkeypatch.setattr(device_paths, "measure", measure)
    with pytest.raises(AssertionError, match="the paths differ"):
        device_paths.main(["--toy", "--file", str(file)], device="cpu", capability="9.0")
    assert [(entry.queries, entry.fastest) for entry in load_tables(file)["9.0"]] == [(2, "int8")]
    said = capsys.readouterr().out
    assert "(1, 100, 8, 2): left out: out of device memory" in said
    assert "(2, 200, 8, 2): the faster path is more than 5 % slower than torch's" in said
