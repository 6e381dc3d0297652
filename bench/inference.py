"""Encoding for deployment: exported graphs in ONNX Runtime sessions beside the model in PyTorch.

As a benchmark of ``iiae bench inference`` it times published widths; run by itself it also says latencies' tails and parity::

    python -m iiae_fast.bench.inference [--model runs/a] [--graph shared_x] [--batches 1 8 32] [--compile] [--json]
"""

from __future__ import annotations

__all__ = ["cases", "main"]

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from iiae_fast import presets
from iiae_fast.bench.environment import cores, device_name
from iiae_fast.bench.ops import compiled
from iiae_fast.bench.registry import Call, Case, Contestant, Settings, Unavailable, Work
from iiae_fast.bench.timing import CpuClock, CudaClock, Plan, Timed, measure
from iiae_fast.errors import InputError, MissingExtraError
from iiae_fast.export import TOLERANCES, ParityError, ParityReport, Session, build_tensorrt, quantize, to_onnx, verify
from iiae_fast.export import load as load_session
from iiae_fast.export.graphs import GRAPHS, evaluate
from iiae_fast.model import IIAE, load

_CHECKED = 2  # rows of a batch that the check looks at
_CALIBRATION = 64  # samples that int8 ranges come from
_MAX_ROUNDS = 2000  # 20 of them lie above a p99
_PRECISIONS = {"onnx fp32": "fp32", "onnx fp16": "fp16", "onnx int8": "int8"}


def cases(settings: Settings) -> Iterator[Case]:
    """The shared encoder of MNIST-CDCB, as published and at the size for small machines."""
    sizes = [(16, 2)] if settings.toy else [(256, 1), (256, 32)] if settings.quick else [(256, 1), (256, 8), (256, 32)]
    sizes += [] if settings.toy or settings.quick else [(32, 1), (32, 32), (32, 256)]
    for image_size, batch in sizes:
        torch.manual_seed(settings.seed)
        model = IIAE(presets.get("mnist-cdcb", image_size=image_size).model).eval()
        x = _images(model, batch, settings.seed)
        with tempfile.TemporaryDirectory() as folder:
            encoder = _Encoder(model, "shared_x", settings, Path(folder))
            yield _case(settings, encoder, x)
            if settings.device == "cuda":
                yield _case(settings, encoder, x, in_graph=True)


class _Encoder:
    """One graph of a model, as PyTorch and as sessions; each made when first asked for.

    Args:
        model: In evaluation mode, on the CPU.
        graph: One that takes one batch of images or features.
        settings: Device, threads, seed.
        folder: For the exported files.
        samples: What int8 ranges are calibrated on; None draws uniform noise.
    """

    def __init__(
        self, model: IIAE, graph: str, settings: Settings, folder: Path, samples: np.ndarray[Any, Any] | None = None
    ) -> None:
        self.model, self.graph, self.settings, self.folder = model, GRAPHS[graph], settings, folder
        (self.input,) = self.graph.inputs
        self.samples = _images(model, _CALIBRATION, settings.seed + 1).numpy() if samples is None else samples

    def session(self, precision: str) -> Session:
        path = self.folder / f"{precision}.onnx"
        if precision == "int8":
            fp32 = to_onnx(self.model, self.graph.name, self.folder / "fp32.onnx")
            quantize(fp32, path, self.samples[:_CALIBRATION])
        else:
            to_onnx(self.model, self.graph.name, path, precision="fp16" if precision == "fp16" else "fp32")
        try:
            return load_session(path, self.settings.device, threads=self.settings.threads)
        except InputError as error:
            raise Unavailable(str(error)) from None

    def onnx(self, precision: str, x: Tensor) -> Call:
        """Zero-copy runs into one output buffer."""
        try:
            session = self.session(precision)
        except MissingExtraError as error:
            raise Unavailable(str(error)) from None
        return self._into_one_buffer(session, x)

    def _into_one_buffer(self, session: Session, x: Tensor) -> Call:
        x = x.to(self.settings.device).contiguous()
        (info,) = session.outputs
        output = torch.empty(len(x), *_sample_shape(info.shape), device=x.device)

        def call() -> Tensor:
            session.run_into({self.input: x}, {info.name: output})
            return output

        return call

    def engine(self, x: Tensor) -> Call:
        """Runs of an fp16 engine into one output buffer, where a flavor of TensorRT has this GPU."""
        try:
            onnx = to_onnx(self.model, self.graph.name, self.folder / "engine.onnx", precision="fp16")
            session = load_session(build_tensorrt(onnx, self.folder / "engine.plan"), self.settings.device)
        except (InputError, MissingExtraError) as error:
            raise Unavailable(str(error)) from None
        return self._into_one_buffer(session, x)

    def pytorch(self, x: Tensor, compile: bool = False) -> Call:
        model = self.model.to(self.settings.device)
        x = x.to(self.settings.device)

        def encode() -> tuple[Tensor, ...]:
            return evaluate(model, self.graph, {self.input: x})

        function = compiled(encode, self.settings) if compile else encode

        def call() -> Tensor:
            with torch.inference_mode():
                return function()[0]

        return call


def _case(settings: Settings, encoder: _Encoder, x: Tensor, in_graph: bool = False) -> Case:
    """What runs in ONNX Runtime, or (``in_graph``) what can be captured in a CUDA graph, beside PyTorch."""
    config = encoder.model.config
    with torch.inference_mode():
        (exact,) = evaluate(_double(encoder.model), encoder.graph, {encoder.input: x[:_CHECKED].double()})

    def check(precision: str) -> Callable[[Tensor], str]:
        def judge(found: Tensor) -> str:
            error = ((found[:_CHECKED].cpu().double() - exact).abs().max() / exact.abs().max()).item()
            allowed = TOLERANCES[precision] if settings.device == "cpu" or precision != "fp32" else 1e-2  # TF32 convolutions
            return "" if error <= allowed else f"relative error {error:.3g}, accepted is {allowed:g}"

        return judge

    def onnx(name: str) -> Contestant:
        precision = _PRECISIONS[name]
        return Contestant(name, lambda: encoder.onnx(precision, x), check(precision))

    if in_graph:
        contestants = [Contestant("engine fp16", lambda: encoder.engine(x), check("fp16"))]
    else:
        contestants = [onnx("onnx fp32"), onnx("onnx int8" if settings.device == "cpu" else "onnx fp16")]
    contestants.append(Contestant("eager", lambda: encoder.pytorch(x)))
    if in_graph or not settings.quick:
        contestants.append(Contestant("torch.compile", lambda: encoder.pytorch(x, compile=True)))
    size, batch = config.image_size, len(x)
    work = Work(flops=_flops(encoder, batch), items=batch, unit="images", matmul="float32")
    parameters = {"graph": encoder.graph.name, "image_size": size, "batch": batch}
    name = f"{encoder.graph.name}, {size}×{size}, batch {batch}{', CUDA graph' if in_graph else ''}"
    return Case(name, contestants, check("fp32"), work, parameters, cold=False, replay=in_graph)


def _images(model: IIAE, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *model.config.input_shape, generator=generator) * 2 - 1


def _sample_shape(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(dim for dim in shape if dim is not None)


def _double(model: IIAE) -> IIAE:
    copy = IIAE(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.double().eval()


def _flops(encoder: _Encoder, batch: int) -> int:
    """Of the model's layers; an exported graph needs less, since it leaves the log-variance out."""
    with torch.device("meta"):
        model = IIAE(encoder.model.config).eval()
        x = torch.empty(batch, *encoder.model.config.input_shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        evaluate(model, encoder.graph, {encoder.input: x})
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class _Row:
    """One contestant at one batch size; times in milliseconds. ``cpu`` is processor time, which other work hardly changes."""

    batch: int
    contestant: str
    p50: float
    p99: float
    cpu: float | None
    runs: int
    images_per_second: float
    speedup: float
    parity: ParityReport | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print latency, throughput and parity of every contestant, side by side."""
    options = _options(arguments)
    settings = Settings(options.device, threads=options.threads, seed=options.seed)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = load(options.model) if options.model else IIAE(presets.get(options.preset, image_size=options.image_size).model)
    samples = _read_samples(options.samples, model)
    with tempfile.TemporaryDirectory() as folder:
        encoder = _Encoder(model.eval(), options.graph, settings, Path(folder), samples)
        rows = _measure(encoder, options)
    if options.json:
        print(
            json.dumps({"device": device_name(options.device), "threads": options.threads, "rows": [asdict(r) for r in rows]})
        )
    else:
        what = f"{options.graph} of {options.model or options.preset}, {model.config.image_size}×{model.config.image_size}"
        print(f"{what}, on {device_name(options.device)}, {options.threads} threads")
        print(_table(rows))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m iiae_fast.bench.inference", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="run directory; without it, random weights at a preset's widths")
    parser.add_argument("--preset", default="mnist-cdcb", choices=presets.names(), help="widths (default: mnist-cdcb)")
    parser.add_argument("--image-size", type=int, help="other than the preset's")
    encoders = [
        name for name, graph in GRAPHS.items() if graph.kind == "encoder" and len(graph.inputs) == len(graph.outputs) == 1
    ]
    parser.add_argument("--graph", default="shared_x", choices=encoders, help="which encoder (default: shared_x)")
    parser.add_argument("--samples", type=Path, help=".npy of images or features, to calibrate and compare on (default: noise)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], metavar="B", help="batch sizes (default: 1 8 32)")
    parser.add_argument("--threads", type=int, default=cores(), help="of every contestant on the CPU (default: all cores)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measurement for each batch size (default: 20)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to measure (default: cpu)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--seed", type=int, default=0, help="of weights and noise")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    for name, values in (("threads", [options.threads]), ("batches", options.batches)):
        if min(values) < 1:
            raise InputError(f"--{name} {min(values)}: accepted is a whole number of at least 1")
    return options


def _read_samples(path: Path | None, model: IIAE) -> np.ndarray[Any, Any] | None:
    if path is None:
        return None
    values = np.load(path, allow_pickle=False)
    if values.dtype == np.uint8:
        values = values.astype(np.float32) / np.float32(127.5) - 1
    if values.shape[1:] != model.config.input_shape or len(values) <= _CALIBRATION:
        accepted = f"more than {_CALIBRATION} rows of shape {model.config.input_shape}"
        raise InputError(f"{path}: holds {values.shape}, accepted are {accepted}")
    return np.ascontiguousarray(values, dtype=np.float32)


def _measure(encoder: _Encoder, options: argparse.Namespace) -> list[_Row]:
    exported = ("onnx fp32", "onnx int8" if options.device == "cpu" else "onnx fp16")
    makers: dict[str, Callable[[Tensor], Call]] = {"eager": encoder.pytorch}
    if options.compile:
        makers["torch.compile"] = partial(encoder.pytorch, compile=True)
    makers |= {name: partial(encoder.onnx, _PRECISIONS[name]) for name in exported}
    parity = {name: _parity(encoder, name) for name in exported}
    clock = CpuClock() if options.device == "cpu" else CudaClock()
    rows = []
    for batch in options.batches:
        print(f"batch {batch}: {options.seconds:g} s of measurement", file=sys.stderr, flush=True)
        x = _images(encoder.model, batch, options.seed + 2)
        calls = {name: make(x) for name, make in makers.items()}
        for call in calls.values():
            call()
        timed = {name: Timed(call) for name, call in calls.items()}  # one call a sample: a mean of several has no tail
        plan = Plan(relative_error=0.0, seconds=options.seconds, min_rounds=10, max_rounds=_MAX_ROUNDS)
        timings = measure(timed, clock, plan, options.seed)
        eager = float(np.median(timings["eager"].samples))
        for name, timing in timings.items():
            p50, p99 = (float(value) for value in np.quantile(timing.samples, (0.5, 0.99)))
            cpu = _processor_time(calls[name]) if options.device == "cpu" else None
            row = _Row(batch, name, 1e3 * p50, 1e3 * p99, cpu, len(timing.samples), batch / p50, eager / p50, parity.get(name))
            rows.append(row)
    return rows


def _processor_time(call: Call, runs: int = 10) -> float:
    """Of one run, the median, in milliseconds: of all threads, those that wait busily too."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1e3 * float(np.median(times))


def _parity(encoder: _Encoder, name: str) -> ParityReport:
    """On samples that no range was calibrated on."""
    calibrated = encoder.samples[:_CALIBRATION]
    held_out = encoder.samples[len(calibrated) :]
    samples = held_out if len(held_out) else _images(encoder.model, _CALIBRATION, encoder.settings.seed + 3).numpy()
    try:
        return verify(encoder.session(_PRECISIONS[name]), encoder.model, samples)
    except ParityError as error:
        if error.report is None:
            raise
        print(f"{name} fails its parity check: {error}", file=sys.stderr)
        return error.report


def _table(rows: Sequence[_Row]) -> str:
    lines = ["batch  contestant      runs    p50 ms    p99 ms    cpu ms   images/s  × eager  rel. error   cosine    top-1"]
    for row in rows:
        cpu = "       –" if row.cpu is None else f"{row.cpu:8.2f}"
        times = f"{row.runs:4}  {row.p50:8.2f}  {row.p99:8.2f}  {cpu}  {row.images_per_second:9.1f}  {row.speedup:7.2f}"
        parity = row.parity
        figures = f"  {parity.max_relative_error:10.2e}  {parity.cosine:.5f}  {parity.top1_agreement:7.2%}" if parity else ""
        lines.append(f"{row.batch:5}  {row.contestant:14} {times}{figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"iiae_fast.bench.inference: {error}", file=sys.stderr)
        sys.exit(2)
