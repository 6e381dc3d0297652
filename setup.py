"""Builds ``iiae_fast._C``: what runs on the CPU always, retrieval on CUDA devices where nvcc is.

``IIAE_CUDA=0`` leaves the CUDA engine out, ``IIAE_CUDA=1`` makes its absence an error. ``IIAE_CUDA_ARCHS=80,90`` names its
targets (default: all that are tested and that this nvcc knows; the newest goes in as PTX too). No GPU is needed to build it.
``IIAE_SANITIZE=1`` builds with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

CSRC = Path("csrc")
JOBS = int(os.environ.get("IIAE_BUILD_JOBS", os.cpu_count() or 1))
CUDA_ARCHS = ("80", "86", "89", "90", "100", "120")
# No fused operations: canonical distances have the bits of the CPU's (see csrc/canonical.h).
NVCC_ARGS = ("-std=c++20", "-O3", "--fmad=false", "--expt-relaxed-constexpr", f"-I{CSRC}")


def headers() -> list[str]:
    """What all sources may depend on."""
    return sorted(str(path) for pattern in ("*.h", "*.inl", "*.cuh") for path in CSRC.rglob(pattern))


def extension() -> Pybind11Extension:
    """What runs on the CPU; the baseline instruction set, so that one binary runs on every machine of the architecture."""
    compile_args = ["-O3", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wextra", "-pthread"]
    link_args = ["-pthread"]
    if os.environ.get("IIAE_SANITIZE") == "1":
        sanitize = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
        compile_args += [*sanitize, "-O1"]
        link_args += sanitize
    return Pybind11Extension(
        "iiae_fast._C",
        sorted(str(path) for path in CSRC.rglob("*.cpp") if CSRC / "cuda" not in path.parents),
        include_dirs=[str(CSRC)],
        depends=[*headers(), *(str(path) for path in sorted(CSRC.rglob("*.cu")))],
        cxx_std=20,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


def find_nvcc() -> Path | None:
    """The CUDA compiler; None if the CUDA engine is to be left out."""
    wanted = os.environ.get("IIAE_CUDA", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"IIAE_CUDA={wanted!r}: accepted are 0 (without the CUDA engine) and 1 (not without it)")
    if wanted == "0":
        return None
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = next(filter(None, (shutil.which("nvcc", path=f"{home}/bin") for home in homes)), None)
    found = found or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None and wanted == "1":
        sys.exit("IIAE_CUDA=1, but there is no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda/bin")
    return Path(found) if found else None


def cuda_targets(nvcc: Path) -> list[str]:
    """nvcc's arguments for the architectures to build for."""
    asked = os.environ.get("IIAE_CUDA_ARCHS")
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    known = {name.removeprefix("compute_") for name in listed}
    archs = asked.replace(" ", "").split(",") if asked else [arch for arch in CUDA_ARCHS if arch in known]
    for arch in archs:
        if arch not in known or not arch.isdecimal() or int(arch) < 80:
            sys.exit(
                f"IIAE_CUDA_ARCHS={asked!r}: {nvcc} cannot build {arch!r}; accepted are numbers from 80 of {sorted(known)}"
            )
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    newest = max(archs, key=int)
    return [*targets, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def toolkit_of(nvcc: Path) -> Path:
    """The folder with CUDA's headers and libraries, as nvcc itself sees it."""
    lines = subprocess.run([nvcc, "-v", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True).stderr
    tops = [line.split("=", 1)[1] for line in lines.splitlines() if line.startswith("#$ TOP=")]
    return Path(tops[0]).resolve() if tops else nvcc.resolve().parent.parent


class BuildExtension(build_ext):
    """Compiles the CUDA sources by nvcc, and adds them to the extension."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        nvcc = find_nvcc()
        if nvcc is not None:
            self._add_cuda(ext, nvcc)
        super().build_extension(ext)

    def _add_cuda(self, ext: Pybind11Extension, nvcc: Path) -> None:
        toolkit = toolkit_of(nvcc)
        folders = (toolkit / "lib64", toolkit / "lib", *sorted(toolkit.glob(f"targets/{os.uname().machine}-linux/lib")))
        libraries = [path for path in folders if (path / "libcudart_static.a").exists()]
        if not libraries:
            sys.exit(f"there is no libcudart_static.a in {toolkit}, to which {nvcc} belongs; IIAE_CUDA=0 builds without it")
        targets = cuda_targets(nvcc)
        folder = Path(self.build_temp) / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        newest = max(os.path.getmtime(path) for path in (*headers(), __file__))

        def compile_one(source: Path) -> str:
            built = folder / f"{source.stem}.o"
            command = [str(nvcc), "-c", str(source), "-o", str(built), *NVCC_ARGS, *targets]
            command += ["-Xcompiler=-fPIC,-fvisibility=hidden"]
            record = built.with_suffix(".command")
            current = built.exists() and built.stat().st_mtime > max(newest, source.stat().st_mtime)
            if not current or not record.exists() or record.read_text() != " ".join(command):
                print(" ".join(command), flush=True)
                if subprocess.run(command, check=False).returncode != 0:
                    raise SystemExit(f"nvcc failed on {source}; IIAE_CUDA=0 builds without the CUDA engine")
                record.write_text(" ".join(command))
            return str(built)

        with ThreadPoolExecutor(JOBS) as pool:
            ext.extra_objects = list(pool.map(compile_one, sorted(CSRC.glob("cuda/*.cu"))))
        ext.sources = sorted({*ext.sources, *(str(path) for path in CSRC.glob("cuda/*.cpp"))})
        ext.define_macros = [("IIAE_WITH_CUDA", "1")]
        # The runtime is linked in, so that the module loads on machines without CUDA.
        ext.library_dirs = [str(libraries[0])]
        ext.libraries = ["cudart_static", "dl", "rt", "pthread"]


ParallelCompile("IIAE_BUILD_JOBS", default=os.cpu_count() or 1).install()
setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})
