"""The results file is read as written, or refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_fakes import write_timing, writer

from iiae_fast.bench.environment import describe_run
from iiae_fast.bench.registry import Settings
from iiae_fast.bench.results import FIELDS, Writer, device_folder, read
from iiae_fast.errors import DataError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for run in ("one", "two"):
        out = writer(path, run)
        write_timing(out, "eager", [0.25, 0.5])
        out.fact("limits", {"copy": 1e10})
    write_timing(out, "faiss", [], status="skipped", reason="not installed")
    results = read([tmp_path])
    assert [run["run"] for run in results.runs] == ["one", "two"]
    assert [line["samples"] for line in results.measured()] == [[0.25, 0.5], [0.25, 0.5]]
    assert results.timings[-1]["reason"] == "not installed"
    assert results.fact("limits") == {"copy": 1e10}
    assert results.fact("nothing") is None


def test_a_run_describes_itself_completely(tmp_path: Path) -> None:
    Writer(tmp_path / "a.jsonl", describe_run(Settings(threads=1), "iiae bench"))
    run = read([tmp_path]).runs[0]
    assert set(FIELDS["run"]) == set(run)
    assert run["versions"]["torch"]
    assert run["command"] == "iiae bench"
    assert run["device"].endswith("cores")


def test_a_torn_last_line_is_left_out_and_cut_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_timing(writer(path), "eager", [0.5])
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[1][:50])
    assert len(read([path]).timings) == 1
    writer(path, "two")
    assert len(read([path]).runs) == 2


@pytest.mark.parametrize("text", ["nonsense\n", '{"kind": "timing"}\n', '{"kind": "other"}\n', "[]\n", '{"kind": 3}\n'])
def test_a_bad_line_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    writer(path)
    path.write_text(path.read_text() + text)
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not a line of a results file"):
        read([path])


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    writer(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}) + "\n")
    with pytest.raises(DataError, match="schema 99, expected 1"):
        read([path])


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read([tmp_path / "absent.jsonl"])
    with pytest.raises(DataError, match=r"holds no \.jsonl file"):
        read([tmp_path])


def test_device_folder() -> None:
    assert device_folder("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert device_folder("AMD EPYC · AVX2, 2 cores") == "amd-epyc-avx2-2-cores"
