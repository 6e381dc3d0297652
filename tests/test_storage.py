"""Files are whole or absent, and a changed byte anywhere is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from iiae_fast.errors import CheckpointError
from iiae_fast.storage import load_json, load_tensors, save_json, save_tensors, write_atomic


def test_tensors_and_metadata_survive_the_round_trip(tmp_path: Path) -> None:
    tensors = {
        "weights": torch.randn(3, 4).t(),
        "half": torch.randn(5).bfloat16(),
        "step": torch.tensor(7),
        "none": torch.empty(0, 3),
        "mask": torch.tensor([True, False]),
    }
    save_tensors(tmp_path / "a.safetensors", tensors, {"epoch": 3, "name": "α"})
    loaded, metadata = load_tensors(tmp_path / "a.safetensors")
    assert metadata == {"epoch": 3, "name": "α"}
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_equal_contents_are_equal_files(tmp_path: Path) -> None:
    contents = set()
    for number in range(20):
        save_tensors(tmp_path / str(number), {"b": torch.ones(2), "a": torch.zeros(3)}, {"k": 1, "j": 2})
        contents.add((tmp_path / str(number)).read_bytes())
    assert len(contents) == 1


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.int64)}, {"k": 1})
    data = path.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            load_tensors(path)


@pytest.mark.parametrize("entry", ["5", '["x", 5]', '["x", null]', '{"a": 1, "b": 2}', "[" * 100_000])
def test_a_forged_header_is_refused(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"a": torch.arange(4.0)}, metadata={"iiae": entry}))
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        load_tensors(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.arange(4.0)})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            load_tensors(path)


def test_altered_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    save_json(path, {"dropout": 0.5, "name": "a"})
    assert load_json(path) == {"dropout": 0.5, "name": "a"}
    text = path.read_text()
    for changed in (text.replace("0.5", "0.4"), text[:-20], "{}", "[]", '{"dropout": 0.5}', "[" * 100_000):
        path.write_text(changed)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_json(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for load in (load_json, load_tensors):
        with pytest.raises(CheckpointError, match=r"absent: no such file"):
            load(tmp_path / "absent")
        with pytest.raises(CheckpointError, match="is a directory"):
            load(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    code = (
        "import sys; from iiae_fast.storage import write_atomic\n"
        "n = 0\n"
        "while True: n += 1; write_atomic(sys.argv[1], bytes([n % 251]) * 3_000_000)"
    )
    for pause in (0.3, 0.41, 0.52):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        data = path.read_bytes()
        assert len(data) == 3_000_000
        assert len(set(data)) == 1
