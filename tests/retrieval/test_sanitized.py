"""The C++ code, built with AddressSanitizer and UndefinedBehaviorSanitizer, under the tests of this folder and of layers.

As part of the suite it runs a share of them that takes a minute; ``make sanitize`` runs all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import RUN_PYTEST, python

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITE = ("test_search.py", "test_evaluation.py", "test_index.py")
TRAINING = (
    "layers/test_convolution.py",
    "layers/test_batch_norm.py",
    "layers/test_adam.py",
    "kernels/test_reconstruction_cpu.py",
)
# These start processes of their own, count memory, or write thousands of files.
TOO_SLOW = "not (without_torch or little_memory or damage or truncation or flipped)"


def runtimes() -> str:
    """What has to be loaded before Python, which is not sanitized itself."""
    paths = []
    for name in ("libasan.so", "libubsan.so"):
        command = ["g++", f"-print-file-name={name}"]
        paths.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    return " ".join(paths)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a process that imports a sanitized build of the package."""
    if sys.platform != "linux" or not shutil.which("g++") or not all(os.path.isabs(path) for path in runtimes().split()):
        pytest.skip("needs Linux, g++ and its sanitizer libraries")
    folder = tmp_path_factory.mktemp("sanitized")
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", folder / "base", "--build-lib", folder / "lib"]
    subprocess.run(build, cwd=ROOT, check=True, env={**os.environ, "IIAE_SANITIZE": "1", "IIAE_CUDA": "0"})
    (library,) = (folder / "lib" / "iiae_fast").glob("_C*.so")
    assert b"__asan_init" in library.read_bytes()
    assert b"__ubsan_handle" in library.read_bytes()
    return {
        **os.environ,
        "PYTHONPATH": str(folder / "lib"),
        "LD_PRELOAD": runtimes(),
        # Python itself leaks on exit, and some tests ask for impossible amounts of memory.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
        "IIAE_SEARCH_CASES": os.environ.get("IIAE_SEARCH_CASES", "45"),
    }


@pytest.mark.slow
def test_suite_is_clean(environment: dict[str, str]) -> None:
    probe = "import iiae_fast._C as engine; print(engine.__file__)"
    used = subprocess.run(python(probe), env=environment, check=True, capture_output=True, text=True)
    assert used.stdout.startswith(environment["PYTHONPATH"])
    training = [ROOT / "tests" / name for name in TRAINING]
    if os.environ.get("IIAE_SANITIZE_ALL") == "1":
        # The fuzzer's own coverage does not work beside a preloaded sanitizer; it runs on the usual build. ARM has its own.
        left_out = (Path(__file__).name, "test_fuzz.py", "test_arm.py")
        selected = [*training, HERE, *(f"--ignore={HERE / name}" for name in left_out)]
    else:
        selected = [*training, *(HERE / name for name in SUITE), "-k", TOO_SLOW]
    command = python(RUN_PYTEST, "-p", "no:cacheprovider", "-p", "no:xdist", *map(str, selected))
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    assert "passed" in result.stdout or "[100%]" in result.stdout
