"""The NEON code: the engine compiled for 64-bit ARM (Debian: g++-aarch64-linux-gnu) and run under QEMU (qemu-user-static)."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from paths import ROOT

COMPILER = "aarch64-linux-gnu-g++"
FLAGS = ("-std=c++20", "-O1", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wextra", "-pthread")
EMULATOR = next(filter(None, map(shutil.which, ("qemu-aarch64-static", "qemu-aarch64"))), None)
CASES = os.environ.get("IIAE_ARM_CASES", "40")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """engine_test.cpp with the CPU engine, for ARM."""
    if not shutil.which(COMPILER) or EMULATOR is None:
        pytest.skip(f"needs {COMPILER} and QEMU's qemu-aarch64")
    folder = tmp_path_factory.mktemp("arm")
    sources = [*sorted((ROOT / "csrc" / "cpu").glob("*.cpp")), Path(__file__).with_name("engine_test.cpp")]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run([COMPILER, *FLAGS, f"-I{ROOT / 'csrc'}", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    subprocess.run([COMPILER, "-static", "-pthread", *objects, "-o", folder / "engine_test"], check=True)
    return folder / "engine_test"


# A Cortex-A57 has no dot product instructions.
@pytest.mark.parametrize(("processor", "sets"), [("max", ("neon_dot", "neon", "scalar")), ("cortex-a57", ("neon", "scalar"))])
def test_neon_has_the_bits_of_scalar_code(program: Path, processor: str, sets: tuple[str, ...]) -> None:
    assert EMULATOR is not None
    result = subprocess.run([EMULATOR, "-cpu", processor, program, CASES, *sets], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == f"by default: {sets[0]}\n{CASES} cases are equal on {' '.join(sets)}\n"
