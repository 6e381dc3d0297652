"""What single steps of the GPU suite do, each in a process of its own; ``gpu_suite`` starts them.

python -m iiae_fast.bench.gpu_steps STEP --out FOLDER [--toy]
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_TOOLS = ("nvcc", "nvidia-smi", "compute-sanitizer", "ncu", "nsys", "cuobjdump", "g++")
_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "sklearn",
    "pybind11",
    "pytest",
    "pytest_timeout",
    "xdist",
    "hypothesis",
    "flashlib",
    "matplotlib",
    "safetensors",
    "faiss",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
)
_NEEDED_RECALL = 0.9  # of the short run: far above chance (1/360), below what the whole run reaches


def environment(out: Path, toy: bool) -> int:
    """Print what there is: device, driver, tools, packages."""
    import torch

    print(f"python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores")
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, device present: {torch.cuda.is_available()}")
    if torch.cuda.is_available():
        print(torch.cuda.get_device_properties(0))
        subprocess.run(["nvidia-smi"], check=False)
        subprocess.run(["nvidia-smi", "-q", "-d", "CLOCK,PERFORMANCE"], check=False)
    for name in _TOOLS:
        print(f"{name}: {shutil.which(name) or 'not on PATH'}")
    for name in _PACKAGES:
        print(f"{name}: {'installed' if importlib.util.find_spec(name) else 'not installed'}")
    return 0 if toy or torch.cuda.is_available() else _fail("no CUDA device")


def build(out: Path, toy: bool) -> int:
    """Build the extension in place, with CUDA for this device alone, and import it. Toy: only where it cannot be imported yet.

    Where CUDA cannot be built the step fails, but leaves an extension without it: training and its measurements need one too.
    """
    check = [sys.executable, "-c", "from iiae_fast import _C; print(_C.__file__)"]
    if toy and subprocess.run(check, check=False).returncode == 0:
        return 0
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    wanted = {} if toy else {"IIAE_CUDA": "1", "IIAE_CUDA_ARCHS": _architecture()}
    code = subprocess.run(command, cwd=_ROOT, env=os.environ | wanted, check=False).returncode
    if code and not toy:
        subprocess.run(command, cwd=_ROOT, env=os.environ | {"IIAE_CUDA": "0"}, check=False)
    return code or subprocess.run(check, check=False).returncode


def _architecture() -> str:
    """The device's, as ``IIAE_CUDA_ARCHS`` takes it: ``"90"``."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def touch(out: Path, toy: bool) -> int:
    """Run every kernel once, forward and backward, at sizes that leave ragged blocks: for compute-sanitizer and profilers."""
    import torch

    from iiae_fast import kernels

    device = "cpu" if toy else "cuda"
    backend = "reference" if toy else "triton"

    weights, step = kernels.ElboWeights(1.2, 1.2, 0.2, 1.0), torch.tensor(3, device=device)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).requires_grad_()

    for order in (torch.contiguous_format, torch.channels_last):
        shared = [random(3, 10, 5, 7).to(memory_format=order) for _ in range(3)]
        exclusive = [random(3, 6) for _ in range(2)]
        latents = kernels.iiae_latents(exclusive[0], shared[0], exclusive[1], *shared[1:], seed=1, backend=backend)
        images = [random(3, 3, 33, 31).to(memory_format=order) for _ in range(2)]
        targets = [torch.randint(256, image.shape, dtype=torch.uint8, device=device) for image in images]
        for likelihood, activation in (("laplace", "tanh"), ("gaussian", "sigmoid"), ("bernoulli", None)):
            losses = kernels.reconstruction(
                (images[0], images[1]),
                (targets[0], targets[1]),
                likelihood=likelihood,
                activation=activation,
                backend=backend,
            )
            bound = kernels.elbo(*losses, latents.kl, weights, step=step, annealing_steps=100.0, backend=backend)
            (2 * bound.total).backward(retain_graph=True)  # type: ignore[no-untyped-call]
        z, kl = kernels.reparameterize(shared[0], shared[1], seed=2, backend=backend)
        (latents.z_s.sum() + latents.kl.sum() + z.sum() + kl.sum()).backward()  # type: ignore[no-untyped-call]
        kernels.philox_normal((1001,), torch.tensor([3], device=device), 0, backend=backend)
    _touch_retrieval(device)
    if not toy:
        torch.cuda.synchronize()
    print("every kernel ran")
    return 0


def _touch_retrieval(device: str) -> None:
    """Few and many queries, all rows and few of them, ties that overflow the candidates, streamed blocks, and measures."""
    import torch

    from iiae_fast import _C
    from iiae_fast.retrieval import METRICS, FlatIndex, device_paths, evaluate, search

    if not hasattr(_C, "cuda") and device != "cpu":
        print("the retrieval engine was built without CUDA: it is not touched")
        return
    for metric in METRICS:
        rows = torch.randn(2500, 70, device=device)
        rows[::3] = rows[0]
        index = FlatIndex(rows, metric, device=device)
        for queries, k in ((rows[:3], 5), (rows[:150], 40), (rows[:2], 2400)):
            index.search(queries, k, exclude=torch.zeros(len(rows), dtype=torch.bool, device=device))
        device_paths.select_method("int8")
        index.search(rows[:2], 1100)  # by large blocks
        device_paths.select_method("auto")
        search(rows[:3], rows.cpu().numpy(), 5, metric=metric, memory_limit=1 << 17)  # streamed
        labels = torch.arange(len(rows)) % 7
        evaluate(rows[:5], rows, labels[:5], labels, metric=metric)
        evaluate(rows[:5], rows[:500], labels[:5], labels[:500], metric=metric)


def paths(out: Path, toy: bool) -> int:
    """Measure the table that searches choose their path by: ``device_paths.json``, to be put into ``iiae_fast/retrieval``."""
    import torch

    from iiae_fast.bench import device_paths

    file = ["--file", str(out / "device_paths.json"), *(["--toy"] if toy else [])]
    if toy and not torch.cuda.is_available():
        print("needs a CUDA device; tests/bench/test_device_paths.py runs it on the emulated one")
        return 0
    return device_paths.main(file)


def train(out: Path, toy: bool) -> int:
    """Train on the embedded digits for a minute and retrieve; fails below 90 % R@1."""
    import dataclasses
    import tempfile

    from iiae_fast import data, load, presets, training
    from iiae_fast.bench.environment import describe_run
    from iiae_fast.bench.registry import Settings
    from iiae_fast.bench.results import Writer

    device = "cpu" if toy else "cuda"
    preset = presets.get("digits-cdcb", image_size=16 if toy else None)
    if toy:
        small = dataclasses.replace(preset.model, n_shared=2, n_exclusive=2, n_decoder=2)
        preset = dataclasses.replace(preset, model=small, optim=dataclasses.replace(preset.optim, batch_size=256, epochs=1))
    with tempfile.TemporaryDirectory() as folder:
        result = training.train(preset, Path(folder) / "run", device=device, progress=False, stop_after=60)
        found = training.evaluate(load(result.run_dir, device=device), data.load(preset.data).test, metric="sqeuclidean")
    facts = {
        "preset": preset.name,
        "steps": result.step,
        "finished": result.finished,
        "seconds": result.seconds,
        "pairs_per_second": result.pairs_per_second,
        **{f"{code} {way}": found[code][way] for code in ("shared", "exclusive") for way in ("x_to_y", "y_to_x")},
    }
    settings = Settings(device)
    Writer(out / "results.jsonl", describe_run(settings, "gpu_suite: train")).fact("training run", facts)
    print(facts)
    worst = min(found["shared"]["x_to_y"], found["shared"]["y_to_x"])
    return 0 if toy or worst >= _NEEDED_RECALL else _fail(f"R@1 {worst:.3f} is below {_NEEDED_RECALL}")


def engines(out: Path, toy: bool) -> int:
    """Build, load and verify engines by the flavors of TensorRT that are there; say why where none can run."""
    import tempfile

    import torch

    from iiae_fast import IIAE, presets
    from iiae_fast.errors import InputError, MissingExtraError
    from iiae_fast.export import build_tensorrt, compare, load, to_onnx, verify
    from iiae_fast.export.flavors import FLAVORS
    from iiae_fast.export.onnx import Precision

    cases: tuple[tuple[str, Precision], ...] = (("encode_x", "fp16"), ("x_to_y", "fp32"))
    torch.manual_seed(0)
    model = IIAE(presets.get("mnist-cdcb", image_size=16 if toy else 256).model).eval()
    samples = {name: torch.rand(40, *model.config.input_shape) * 2 - 1 for name in ("x", "y")}
    with tempfile.TemporaryDirectory() as folder:
        for flavor in FLAVORS:
            for graph, precision in cases:
                path = Path(folder) / f"{flavor}.plan"
                try:
                    onnx = to_onnx(model, graph, path.with_suffix(".onnx"), precision=precision)
                    info = build_tensorrt(onnx, path, batch=(1, 8, 32), flavor=flavor)
                    sessions = [load(info, cuda_graph=captured) for captured in (False, True)]
                except (InputError, MissingExtraError) as error:
                    print(f"{flavor}, {graph} {precision}: skipped: {error}")
                    continue
                for session in sessions:
                    print(f"{flavor}, {graph} {precision}: {session.reason}: {verify(session, model, samples)}")
                try:
                    print(f"{flavor}, {graph} {precision}: against its graph by Polygraphy: {compare(onnx, info)}")
                except MissingExtraError as error:
                    print(f"{flavor}, {graph} {precision}: not compared: {error}")
    return 0


def profile(out: Path, toy: bool) -> int:
    """Profile training steps: operators and kernels in ``profile.txt``, launches per step, time per part."""
    import itertools
    import tempfile

    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from iiae_fast import presets, training
    from iiae_fast.bench.registry import Ready, Settings
    from iiae_fast.bench.training import cases

    device = "cpu" if toy else "cuda"
    steps = 2 if toy else 20
    case = next(iter(cases(Settings(device, quick=True, toy=toy))))
    ready = next(one for one in case.contestants if one.ours).make()
    assert isinstance(ready, Ready)
    for _ in range(3):
        ready.call()
    activities = [ProfilerActivity.CPU] + ([] if toy else [ProfilerActivity.CUDA])
    with profiler(activities=activities) as record:
        for _ in range(steps):
            ready.call()
        if not toy:
            torch.cuda.synchronize()
    averages = record.key_averages()
    launches = sum(one.count for one in averages if "LaunchKernel" in one.key) / steps
    order = "self_cpu_time_total" if toy else "self_device_time_total"
    table = averages.table(sort_by=order, row_limit=40)
    text = f"{case.name}, {steps} steps\nkernel launches per step: {launches:g}\n\n{table}"
    (out / "profile.txt").write_text(text + "\n")
    print("\n".join(itertools.islice(text.splitlines(), 12)))
    with tempfile.TemporaryDirectory() as folder:  # the trace is too large to bring back
        preset = presets.get("digits-cdcb", image_size=16 if toy else None)
        found = training.profile(preset, steps, Path(folder) / "trace.json", device=device)
    for part, share in found.parts.items():
        print(f"{part:10} {100 * share:5.1f} % of {1e3 * found.seconds:.2f} ms")
    print(f"{found.operators} operators and {found.launches:g} launches a step, {found.achieved / 1e9:.1f} GFLOP/s")
    return 0


def report(out: Path, toy: bool) -> int:
    """Write the report of everything measured so far."""
    from iiae_fast.bench.report import write_report
    from iiae_fast.bench.results import read

    for path in write_report(read([out / "results.jsonl"]), out, "report"):
        print(path)
    return 0


def _fail(reason: str) -> int:
    print(reason, file=sys.stderr)
    return 1


STEPS: dict[str, Callable[[Path, bool], int]] = {
    step.__name__: step for step in (environment, build, touch, paths, train, engines, profile, report)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one step."""
    parser = argparse.ArgumentParser(prog="python -m iiae_fast.bench.gpu_steps", description="One step of the GPU suite.")
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--toy", action="store_true", help="on the CPU, at toy sizes")
    options = parser.parse_args(arguments)
    return STEPS[options.step](options.out, options.toy)


if __name__ == "__main__":
    sys.exit(main())
