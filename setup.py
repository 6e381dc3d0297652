"""Builds the retrieval engine ``iiae_fast._C``, which runs on the CPU.

``IIAE_SANITIZE=1`` builds with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import os
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

CSRC = Path("csrc")


def cpu_extension() -> Pybind11Extension:
    """The CPU engine; the baseline instruction set, so that one binary runs on every machine of the architecture."""
    compile_args = ["-O3", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wextra", "-pthread"]
    link_args = ["-pthread"]
    if os.environ.get("IIAE_SANITIZE") == "1":
        sanitize = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
        compile_args += [*sanitize, "-O1"]
        link_args += sanitize
    return Pybind11Extension(
        "iiae_fast._C",
        sorted(str(path) for path in CSRC.rglob("*.cpp")),
        include_dirs=[str(CSRC)],
        depends=sorted(str(path) for pattern in ("*.h", "*.inl") for path in CSRC.rglob(pattern)),
        cxx_std=20,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


ParallelCompile("IIAE_BUILD_JOBS", default=os.cpu_count() or 1).install()
setup(ext_modules=[cpu_extension()], cmdclass={"build_ext": build_ext})
