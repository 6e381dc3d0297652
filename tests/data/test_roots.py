"""Where data is looked for, and what importing the package costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from iiae_fast.data import data_root, roots
from iiae_fast.errors import DataError


def test_explicit_root_is_tried_in_the_working_directory_then_in_the_data_folder(tmp_path, monkeypatch):
    (tmp_path / "data" / "set").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("IIAE_DATA", str(tmp_path / "data"))
    assert data_root(None) == tmp_path / "data"
    assert data_root("set").samefile(tmp_path / "data" / "set")
    (tmp_path / "here" / "set").mkdir()
    assert data_root("set").samefile(tmp_path / "here" / "set")
    assert data_root(str(tmp_path)) == tmp_path


def test_an_absent_root_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("IIAE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"root=nothing: no such file or folder \(looked for nothing and .*nothing\)"):
        data_root("nothing")
    with pytest.raises(DataError, match=r"root=/nothing/here: no such file or folder \(looked for /nothing/here\)"):
        data_root("/nothing/here")
    monkeypatch.setenv("IIAE_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"IIAE_DATA=.*gone: no such folder"):
        data_root(None)


def test_without_a_data_folder_the_message_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("IIAE_DATA", raising=False)
    monkeypatch.setattr(roots, "_BESIDE_REPOSITORY", tmp_path / "gone")
    with pytest.raises(DataError, match="set the environment variable IIAE_DATA"):
        data_root(None)


def test_importing_data_is_light():
    heavy = "{'torch', 'sklearn', 'PIL'}"
    code = f"import sys, iiae_fast.data; sys.exit(repr({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
