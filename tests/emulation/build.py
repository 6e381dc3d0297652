"""Builds csrc/cuda as host code, around the shim in this folder, into a Python module that stands in for the real one."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
from paths import ROOT

HERE = Path(__file__).parent
SANITIZERS = ("-fsanitize=address", "-fno-omit-frame-pointer", "-g1", "-O1")
FLAGS = ("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas")
BINDINGS = (*FLAGS, "-O0", "-g0")  # they take long to compile, and do little


def build(sanitize: bool = False) -> Path | None:
    """The module's file, built if anything it depends on has changed; None where there is no compiler for it."""
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        return None
    sources = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ROOT / "csrc" / "cuda" / "bindings.cpp", *HERE.glob("*.cpp")]
    flags = (*FLAGS, *(SANITIZERS if sanitize else ()))
    digest = hashlib.sha256(repr((compiler, flags, sysconfig.get_python_version(), pybind11.__version__)).encode())
    for path in sorted(path for folder in (ROOT / "csrc", HERE) for path in folder.rglob("*") if path.suffix != ".py"):
        digest.update(path.read_bytes() if path.is_file() else b"")
    folder = ROOT / "build" / "emulation" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    built = folder / f"_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [f"-I{path}" for path in (HERE, ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include"))]
    with open(folder / "lock", "w") as lock:  # test processes run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():

            def compile_one(source: Path) -> str:
                target = folder / f"{source.name}.o"
                own = BINDINGS if source.name in ("bindings.cpp", "module.cpp") else flags
                command = [compiler, *own, *includes, "-x", "c++", "-c", str(source), "-o", str(target)]
                subprocess.run(command, check=True)
                return str(target)

            with ThreadPoolExecutor(2) as pool:
                objects = list(pool.map(compile_one, sources))
            unfinished = folder / "unfinished.so"
            subprocess.run([compiler, *flags, "-shared", "-o", str(unfinished), *objects], check=True)
            unfinished.rename(built)
    return built


def load(path: Path) -> ModuleType:
    """Import a built module."""
    spec = importlib.util.spec_from_file_location("_emulated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
