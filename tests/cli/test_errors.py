"""What the program does with exceptions: users' errors in a line, bugs with their traceback, interrupts by their code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iiae_fast.cli import main, parsing
from iiae_fast.errors import CheckpointError, ConfigError, DataError, InputError, MissingExtraError, NonFiniteLossError
from iiae_fast.export.parity import ParityError


def raise_from_a_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    class Command:
        def run(self) -> int:
            raise error

    monkeypatch.setattr(parsing, "parse", lambda arguments: Command())


@pytest.mark.parametrize(
    "kind", [InputError, ConfigError, DataError, CheckpointError, MissingExtraError, NonFiniteLossError, ParityError]
)
def test_users_errors_end_in_one_line(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_from_a_command(monkeypatch, kind("something\n  is wrong"))
    assert main(["any"]) == 2
    assert capsys.readouterr().err == "iiae: something is wrong\n"


def test_files_are_named_in_system_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raise_from_a_command(monkeypatch, PermissionError(13, "Permission denied", "/some/file"))
    assert main(["any"]) == 2
    assert capsys.readouterr().err == "iiae: /some/file: Permission denied\n"


@pytest.mark.parametrize("error", [ValueError("bug"), RuntimeError("bug"), ImportError("bug"), AssertionError()])
def test_bugs_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_from_a_command(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["any"])


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raise_from_a_command(monkeypatch, KeyboardInterrupt())
    assert main(["any"]) == 130
    assert capsys.readouterr().err == "iiae: interrupted\n"


def test_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).standard_normal((3000, 4), dtype=np.float32))
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [sys.executable, "-m", "iiae_fast", "search", "a.npy", "a.npy", "--k", "50", "--json"]
    done = subprocess.run(arguments, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path)
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == b""


def test_missing_extra_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert main(["data", "digits-cdcb", "--out", str(tmp_path / "sheet.png")]) == 2
    assert "pip install 'iiae_fast[train]'" in capsys.readouterr().err


def test_json_output_is_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "digits-cdcb", "--image-size", "16", "--out", str(tmp_path / "sheet.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"][2]["pairs"] == 360


def test_terminal_without_unicode_is_served() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for arguments in (["--help"], ["train", "maps", "--help"], ["train", "maps", "--model.n-sharde", "3"]):
        done = subprocess.run([sys.executable, "-m", "iiae_fast", *arguments], capture_output=True, env=environment)
        assert done.returncode == (0 if "--help" in arguments else 2)
        assert done.stderr.count(b"\n") == (0 if "--help" in arguments else 1)
    assert done.stderr.startswith(b"iiae: Unrecognized options: --model.n-sharde, 3; perhaps you meant: --model.n-shared INT")
