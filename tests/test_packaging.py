"""What installs, and under which name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from paths import ROOT, python

ROOT_FOLDERS = ("kernels", "export", "bench")

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="reading pyproject.toml on Python 3.10 needs tomli")


def folders_with_python() -> set[str]:
    """Every package folder, the three root folders by their installed name."""
    found = {"iiae_fast"}
    for path in sorted((ROOT / "iiae_fast").glob("**/*.py")):
        if not any(parent.is_symlink() for parent in path.parents):
            found.add(".".join(path.parent.relative_to(ROOT).parts))
    for name in ROOT_FOLDERS:
        for path in (ROOT / name).glob("**/*.py"):
            found.add(".".join(("iiae_fast", *path.parent.relative_to(ROOT).parts)))
    return found


def test_every_folder_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == folders_with_python()


@pytest.mark.parametrize("name", ROOT_FOLDERS)
def test_links_and_guards(name: str) -> None:
    link = ROOT / "iiae_fast" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"import iiae_fast.{name}, not {name}" in done.stderr


@pytest.mark.slow
def test_wheel_holds_everything_and_nothing_else(tmp_path: Path) -> None:
    # From a copy without the links and without build leftovers: the mapping alone must make a complete wheel.
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    if not any(tracked):
        pytest.skip("not a git checkout: the list of source files comes from git")
    for name in filter(None, tracked):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(path.read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=source, env=os.environ | {"IIAE_CUDA": "0"}, check=True)  # CUDA adds no file, only minutes
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert len(tops) == 2
    assert "iiae_fast" in tops
    installed = {name for name in names if name.startswith("iiae_fast/") and name.endswith(".py")}
    expected = {name if name.startswith("iiae_fast/") else f"iiae_fast/{name}" for name in tracked if name.endswith(".py")}
    expected = {name for name in expected if not name.startswith(("iiae_fast/docs/", "iiae_fast/tests/", "iiae_fast/setup.py"))}
    assert installed == expected
    assert "iiae_fast/py.typed" in names
    assert "iiae_fast/reports/report.html.jinja" in names
    assert any(re.fullmatch(r"iiae_fast/_C\..*\.(so|pyd)", name) for name in names)


def test_submodules_are_attributes() -> None:
    program = "import iiae_fast; iiae_fast.errors.InputError, iiae_fast.config.ModelConfig, iiae_fast.model.IIAE"
    subprocess.run(python(program), check=True)
