"""Running graphs: containers, buffers, batches, threads, devices, bad input and bad files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_cases import pairs
from paths import python

from iiae_fast import IIAE
from iiae_fast.errors import CheckpointError, InputError
from iiae_fast.export import Session, load
from iiae_fast.export.providers import choose

Export = Callable[..., Path]


@pytest.fixture
def encoder(export_graph: Export) -> Session:
    return load(export_graph("spatial", "shared_x"), device="cpu")


@pytest.fixture
def translator(export_graph: Export) -> Session:
    return load(export_graph("spatial", "x_to_y"), device="cpu")


@pytest.fixture
def x(models: dict[str, IIAE]) -> np.ndarray:
    return pairs(models["spatial"], 7)["x"].numpy()


def test_description(translator: Session) -> None:
    described = [(info.name, info.dtype, info.shape) for info in (*translator.inputs, *translator.outputs)]
    assert described == [
        ("x", "float32", (None, 3, 16, 16)),
        ("z_y", "float32", (None, 3)),
        ("y", "float32", (None, 3, 16, 16)),
    ]
    assert translator.device == "cpu"
    assert translator.providers == ("CPUExecutionProvider",)
    assert translator.reason == "CPUExecutionProvider: the CPU was asked for"
    assert repr(translator) == "<OnnxSession spatial x_to_y fp32: x, z_y -> y on cpu>"


def test_containers(encoder: Session, x: np.ndarray) -> None:
    codes = encoder(x)
    assert isinstance(codes, np.ndarray)
    assert (codes.shape, codes.dtype) == ((7, 128), np.float32)
    named = encoder({"x": x})
    assert list(named) == ["z_s"]
    np.testing.assert_array_equal(named["z_s"], codes)
    tensor = encoder(torch.from_numpy(x).requires_grad_())
    assert isinstance(tensor, torch.Tensor)
    assert not tensor.requires_grad
    np.testing.assert_array_equal(tensor.numpy(), codes)


def test_inputs_in_order(translator: Session, encoder: Session, x: np.ndarray) -> None:
    z_y = np.ones((7, 3), np.float32)
    wanted = translator({"x": x, "z_y": z_y})["y"]
    for given in ((x, z_y), [x, z_y]):
        np.testing.assert_array_equal(translator(given), wanted)
    tensors = translator((torch.from_numpy(x), torch.from_numpy(z_y)))
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_array_equal(tensors.numpy(), wanted)
    np.testing.assert_array_equal(encoder((x,)), encoder(x))


def test_any_stride(encoder: Session, x: np.ndarray) -> None:
    codes = encoder(x)
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for strided in (channels_last, torch.from_numpy(channels_last), np.repeat(x, 2, axis=0)[::2], x[::-1][::-1]):
        np.testing.assert_array_equal(np.asarray(encoder(strided)), codes)


class CountingRuntime:
    """A runtime session that counts its runs."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        self.runs = 0

    def io_binding(self) -> Any:
        return self.runtime.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        self.runs += 1
        self.runtime.run_with_iobinding(binding)


def test_batches(encoder: Session, export_graph: Export, x: np.ndarray) -> None:
    codes = encoder(x)
    assert encoder(x[:0]).shape == (0, 128)
    assert encoder({"x": torch.from_numpy(x[:0])})["z_s"].shape == (0, 128)
    np.testing.assert_allclose(encoder(x[:1]), codes[:1], rtol=0, atol=1e-5)
    for limited in (
        load(export_graph("spatial", "shared_x"), max_batch=3),
        load(export_graph("spatial", "shared_x", max_batch=3)),
        load(export_graph("spatial", "shared_x", max_batch=3), max_batch=100),
        load(export_graph("spatial", "shared_x", max_batch=3), max_batch=2),
    ):
        assert limited.max_batch in (2, 3)
        limited._runtime = counting = CountingRuntime(limited._runtime)
        np.testing.assert_allclose(limited(x), codes, rtol=0, atol=1e-5)
        assert counting.runs == -(-7 // limited.max_batch)


def test_run_into_writes_your_buffers(translator: Session, x: np.ndarray) -> None:
    z_y = np.ones((7, 3), np.float32)
    wanted = translator({"x": x, "z_y": z_y})["y"]
    for convert in (np.asarray, torch.from_numpy):
        inputs = {"x": convert(x), "z_y": convert(z_y)}
        target = convert(np.full(wanted.shape, np.nan, np.float32))
        translator.run_into(inputs, {"y": target})
        np.testing.assert_array_equal(np.asarray(target), wanted)
        half = convert(np.full((10, 3, 16, 16), np.nan, np.float32))
        translator.run_into(inputs, {"y": half[2:9]})
        np.testing.assert_array_equal(np.asarray(half[2:9]), wanted)
        assert np.isnan(np.asarray(half[[0, 1, 9]])).all()


def test_bad_buffers(encoder: Session, x: np.ndarray) -> None:
    codes = np.zeros((7, 128), np.float32)
    frozen = np.empty_like(codes)
    frozen.flags.writeable = False
    for inputs, outputs, message in [
        ({"x": x.transpose(0, 1, 3, 2)}, {"z_s": codes}, "input 'x' is not contiguous"),
        ({"x": x}, {"z_s": np.empty((7, 256), np.float32)[:, ::2]}, "output 'z_s' is not contiguous"),
        ({"x": x}, {"z_s": frozen}, "output 'z_s' cannot be written to"),
        ({"x": x}, {"z_s": torch.empty(7, 128, requires_grad=True)}, "output 'z_s' cannot be written to"),
        ({"x": x}, {"z_s": codes[:6]}, "outputs hold 6 rows, the inputs 7"),
        (
            {"x": x},
            {"z_s": codes.astype(np.float64)},
            "output 'z_s' is float64 of shape (7, 128): accepted is float32 of shape (B, 128)",
        ),
        ({"x": x}, {}, "output 'z_s' is missing"),
        ({"x": x}, {"z_s": codes, "z_x": codes}, "output 'z_x': graph shared_x has no such output"),
        ({"x": torch.empty(7, 3, 16, 16, device="meta")}, {"z_s": codes}, "input 'x' lies on meta"),
    ]:
        with pytest.raises(InputError) as caught:
            encoder.run_into(inputs, outputs)
        assert message in str(caught.value)


def test_bad_inputs(encoder: Session, translator: Session, x: np.ndarray) -> None:
    z_y = np.zeros((7, 3), np.float32)
    for session, given, message in [
        (encoder, {"y": x}, "input 'y': graph shared_x has no such input; accepted are x"),
        (encoder, {}, "input 'x' is missing: graph shared_x has x"),
        (encoder, x[0], "input 'x' is float32 of shape (3, 16, 16): accepted is float32 of shape (B, 3, 16, 16)"),
        (encoder, np.zeros((), np.float32), "input 'x' is float32 of shape ()"),
        (encoder, x[:, :, :15], "input 'x' is float32 of shape (7, 3, 15, 16)"),
        (encoder, x.astype(np.float64), "input 'x' is float64"),
        (encoder, torch.from_numpy(x).bfloat16(), "input 'x' is bfloat16"),
        (encoder, x.tolist(), "input 'x' of type list: accepted is an array or tensor, float32 of shape (B, 3, 16, 16)"),
        (translator, x, "graph x_to_y takes x, z_y: give a dictionary of them, or a tuple in this order, not one ndarray"),
        (translator, (x,), "graph x_to_y takes x, z_y: a tuple of 1 was given"),
        (translator, (z_y, x), "input 'x' is float32 of shape (7, 3)"),
        (encoder, [x, x], "graph shared_x takes x: a list of 2 was given"),
        (encoder, None, "input 'x' of type NoneType"),
        (translator, {"x": x}, "input 'z_y' is missing: graph x_to_y has x, z_y"),
        (translator, {"x": x, "z_y": z_y[:1]}, "inputs differ in their number of rows: x has 7, z_y has 1"),
    ]:
        with pytest.raises(InputError) as caught:
            session(given)
        assert message in str(caught.value)


def test_several_threads_at_once(encoder: Session, models: dict[str, IIAE]) -> None:
    batches = [pairs(models["spatial"], 5, seed=seed)["x"].numpy() for seed in range(40)]
    wanted = [encoder(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for codes, expected in zip(pool.map(encoder, batches), wanted):
            np.testing.assert_array_equal(codes, expected)


def test_thread_count_and_warm_up(export_graph: Export, x: np.ndarray) -> None:
    session = load(export_graph("spatial", "shared_x"), threads=1)
    assert session._runtime.get_session_options().intra_op_num_threads == 1
    session.warm_up(1, 4)
    limited = load(export_graph("spatial", "shared_x"), max_batch=4)
    for batch in (0, 5):
        with pytest.raises(InputError, match="accepted are batches from 1 to 4"):
            limited.warm_up(batch)
    for arguments in ({"threads": 0}, {"threads": 1.5}, {"max_batch": 0}, {"max_batch": False}):
        with pytest.raises(InputError, match="accepted is a whole number of at least 1, or None"):
            load(export_graph("spatial", "shared_x"), **arguments)


def test_torch_and_onnx_are_not_imported(export_graph: Export, tmp_path: Path, x: np.ndarray, encoder: Session) -> None:
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy as np; from iiae_fast import export\n"
        f"session = export.load({str(export_graph('spatial', 'shared_x'))!r})\n"
        f"np.save({str(tmp_path / 'codes.npy')!r}, session(np.load({str(tmp_path / 'x.npy')!r})))\n"
        "assert not {'torch', 'onnx', 'onnxscript'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), encoder(x))


def test_nothing_is_reported_or_left_at_home(export_graph: Export, tmp_path: Path) -> None:
    """onnxruntime's telemetry, on by default since 1.29, opens a database there for what it will send."""
    quiet = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith(("ORT_", "XDG_"))}
    code = f"from iiae_fast import export; export.load({str(export_graph('spatial', 'shared_x'))!r}).warm_up()"
    subprocess.run(python(code), env={**quiet, "HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.rglob("*")) == []


def test_idle_threads_do_not_spin(encoder: Session) -> None:
    """With several sessions in one process they would take the cores from whichever runs."""
    assert encoder._runtime.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_devices(export_graph: Export) -> None:
    path = export_graph("spatial", "shared_x")
    for device in ("gpu", "cpu:0", "cuda:x", "cuda:-1", "auto:1", ""):
        with pytest.raises(InputError, match="accepted are 'auto', 'cpu', 'cuda'"):
            load(path, device=device)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(
            InputError, match=r"device='cuda': this onnxruntime .* has no CUDAExecutionProvider .*iiae_fast\[gpu\]"
        ):
            load(path, device="cuda")
        assert "has no CUDAExecutionProvider (it has " in load(path).reason
    with pytest.raises(InputError, match="cuda_graph=True needs a GPU; CPUExecutionProvider: the CPU was asked for"):
        load(path, device="cpu", cuda_graph=True)


class FakeRuntime:
    """onnxruntime with providers that this machine lacks."""

    capi = onnxruntime.capi
    __version__ = "1.99"

    def __init__(self, available: list[str], starts: list[str], error: str | None = None) -> None:
        self.available, self.starts, self.error = available, starts, error
        self.asked: list[Any] = []

    def get_available_providers(self) -> list[str]:
        return [*self.available, "CPUExecutionProvider"]

    def InferenceSession(self, data: bytes, options: Any, providers: list[Any]) -> Any:
        self.asked.append(providers)
        names = [entry if isinstance(entry, str) else entry[0] for entry in providers]
        if self.error and names != ["CPUExecutionProvider"]:
            raise RuntimeError(self.error)
        return SimpleNamespace(get_providers=lambda: [n for n in names if n in (*self.starts, "CPUExecutionProvider")])


def test_provider_choice() -> None:
    cuda, tensorrt = "CUDAExecutionProvider", "TensorrtExecutionProvider"
    runtime = FakeRuntime([tensorrt, cuda], [tensorrt, cuda])
    assert choose(runtime, b"", None, "auto")[1:] == ("cuda:0", f"{cuda}: the first one available")
    assert choose(runtime, b"", None, "cuda:1")[1:] == ("cuda:1", f"{cuda}: cuda:1 was asked for")
    assert choose(runtime, b"", None, "tensorrt")[1:] == ("cuda:0", f"{tensorrt}: tensorrt was asked for")
    assert runtime.asked[1] == [(cuda, {"device_id": 1}), "CPUExecutionProvider"]
    assert runtime.asked[2] == [(tensorrt, {"device_id": 0}), (cuda, {"device_id": 0}), "CPUExecutionProvider"]
    choose(runtime, b"", None, "tensorrt:1", cuda_graph=True)
    assert runtime.asked[3] == [
        (tensorrt, {"device_id": 1, "trt_cuda_graph_enable": "1"}),
        (cuda, {"device_id": 1, "enable_cuda_graph": "1"}),
        "CPUExecutionProvider",
    ]
    # ONNX Runtime falls back by itself, silently, where the driver is missing: we say so, or refuse
    for broken in (FakeRuntime([cuda], []), FakeRuntime([cuda], [], error="no driver")):
        _, device, reason = choose(broken, b"", None, "auto")
        assert device == "cpu"
        assert f"{cuda} did not start" in reason
        with pytest.raises(InputError, match=f"device='cuda': {cuda} did not start"):
            choose(broken, b"", None, "cuda")


def test_bad_files(export_graph: Export, tmp_path: Path) -> None:
    good = export_graph("spatial", "shared_x").read_bytes()
    foreign = onnx.ModelProto.FromString(good)
    del foreign.metadata_props[:]
    file = tmp_path / "model.onnx"
    for data, message in [
        (b"", "truncated, or not an ONNX file"),
        (b"not a model", "truncated, or not an ONNX file"),
        (np.random.default_rng(0).bytes(5000), "truncated, or not an ONNX file"),
        (good[: len(good) // 2], "truncated, or not an ONNX file"),
        (foreign.SerializeToString(), "an ONNX model, but not as iiae_fast.export.to_onnx wrote it"),
    ]:
        file.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            load(file)
        assert str(caught.value).startswith(f"{file}: {message}")
    with pytest.raises(CheckpointError, match=r"absent\.onnx: no such file"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(CheckpointError, match="is a directory"):
        load(tmp_path)


def test_one_altered_byte_anywhere(export_graph: Export, tmp_path: Path) -> None:
    good = export_graph("spatial", "shared_x").read_bytes()
    file = tmp_path / "model.onnx"
    rng = np.random.default_rng(0)
    positions = {0, len(good) - 1, len(good) - 64, len(good) - 65, len(good) - 78, *rng.integers(0, len(good), 60).tolist()}
    for position in positions:
        altered = bytearray(good)
        altered[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(altered)
        with pytest.raises(CheckpointError, match=f"^{file}: "):
            load(file)
    for length in rng.integers(0, len(good), 30).tolist():
        file.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match=f"^{file}: "):
            load(file)
