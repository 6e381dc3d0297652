"""Sessions of engines, against a stand-in for TensorRT's runtime that computes on the CPU; no GPU has run them yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
import torch
from export_cases import images, pairs
from fake_tensorrt import FakeCuda, IExecutionContext

from iiae_fast import IIAE
from iiae_fast.errors import CheckpointError, InputError, MissingExtraError
from iiae_fast.export import EngineInfo, engines, load, verify
from iiae_fast.export.engine_session import EngineSession, check_target, check_version
from iiae_fast.export.flavors import Flavor

Export = Callable[..., Path]


def engine_of(source: Path, profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 8),)) -> tuple[EngineInfo, bytes]:
    data = source.read_bytes()
    metadata, inputs, outputs = engines._interface(source, data)
    empty = {field.name: None for field in dataclasses.fields(EngineInfo)}
    facts = {"path": Path("x.plan"), "flavor": "tensorrt", "version": fake_tensorrt.__version__, "targets": ("SM89",)}
    info = EngineInfo(**{**empty, **facts, "profiles": profiles, "inputs": inputs, "outputs": outputs, "metadata": metadata})
    return info, data


def open_fake(
    source: Path, profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 8),), cuda_graph: bool = False
) -> tuple[EngineSession, FakeCuda]:
    cuda = FakeCuda()
    IExecutionContext.runs.clear()
    info, plan = engine_of(source, profiles)
    return EngineSession(info, plan, Flavor("tensorrt", fake_tensorrt), cuda, cuda_graph), cuda


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize(("family", "graph"), [("spatial", "x_to_y"), ("flat", "encode_x"), ("feature", "joint")])
def test_engines_compute_what_the_model_computes(
    family: str, graph: str, cuda_graph: bool, export_graph: Export, models: dict[str, IIAE]
) -> None:
    session, _ = open_fake(export_graph(family, graph), cuda_graph=cuda_graph)
    for batch in (1, 7, 8, 30):
        verify(session, models[family], pairs(models[family], batch))


def test_description(export_graph: Export) -> None:
    session, _ = open_fake(export_graph("spatial", "encode_x", input="uint8"))
    assert repr(session) == "<EngineSession spatial encode_x fp32: x -> z_s, z_x on cuda:0>"
    assert session.reason == "TensorRT 11.4.0.106: the engine's own, on SM89"
    assert session.max_batch == 8
    z_s, z_x = session(images(3)["x"])
    assert (z_s.shape, z_x.shape) == ((3, 128), (3, 3))
    assert isinstance(z_s, torch.Tensor)
    named = session({"x": images(3)["x"].numpy()})
    np.testing.assert_array_equal(named["z_s"], z_s.numpy())
    assert all(len(values) == 0 for values in session(images(3)["x"][:0]))


def test_tensors_on_the_device_are_used_where_they_lie(export_graph: Export, models: dict[str, IIAE]) -> None:
    session, cuda = open_fake(export_graph("spatial", "shared_x"))
    x, z_s = cuda.empty((5, 3, 16, 16), "float32"), cuda.empty((5, 128), "float32")
    x.copy_(pairs(models["spatial"], 5)["x"])
    before = len(cuda.allocated)
    session._run({"x": x}, {"z_s": z_s}, 5)
    assert len(cuda.allocated) == before
    np.testing.assert_allclose(z_s.numpy(), load(export_graph("spatial", "shared_x"))(x.numpy()), rtol=0, atol=1e-6)
    cuda.current = 11  # the caller's stream of the moment
    session._run({"x": x}, {"z_s": z_s}, 5)
    assert [stream for _, stream, _ in IExecutionContext.runs] == [7, 11]


def test_parts_of_tensors_that_begin_anywhere(export_graph: Export, models: dict[str, IIAE]) -> None:
    """TensorRT's addresses are multiples of 256, and a row of features has 48 bytes."""
    source = export_graph("feature", "shared_x")
    session, cuda = open_fake(source)
    x, z_s = cuda.empty((20, 12), "float32"), cuda.empty((20, 5), "float32")
    x.copy_(pairs(models["feature"], 20)["x"])
    before = len(cuda.allocated)
    session._run({"x": x[1:]}, {"z_s": z_s[1:]}, 19)
    assert len(cuda.allocated) == before + 2
    np.testing.assert_allclose(z_s[1:].numpy(), load(source)(x[1:].numpy()), rtol=0, atol=1e-6)


def test_buffers_are_kept(export_graph: Export, models: dict[str, IIAE]) -> None:
    session, cuda = open_fake(export_graph("spatial", "x_to_y"))
    samples = pairs(models["spatial"], 30)["x"].numpy()
    z_y = np.ones((30, 3), np.float32)
    for batch in (8, 3, 30, 8):
        session((samples[:batch], z_y[:batch]))
    assert len(cuda.allocated) == 3  # x, z_y and y, of the largest part


def test_parts_and_profiles(export_graph: Export, models: dict[str, IIAE]) -> None:
    source = export_graph("spatial", "shared_x")
    session, _ = open_fake(source, ((1, 1, 1), (2, 4, 8)))
    x = pairs(models["spatial"], 17)["x"].numpy()
    np.testing.assert_allclose(session(x), load(source)(x), rtol=0, atol=1e-6)
    assert [(profile, shapes["x"][0]) for profile, _, shapes in IExecutionContext.runs] == [(1, 8), (1, 8), (0, 1)]
    session.max_batch = 5
    IExecutionContext.runs.clear()
    session(x)
    assert [shapes["x"][0] for _, _, shapes in IExecutionContext.runs] == [5, 5, 5, 2]
    overlapping, _ = open_fake(source, ((1, 2, 8), (1, 8, 8)))
    for batch in (1, 3, 7):
        overlapping(x[:batch])
    assert [profile for profile, _, _ in IExecutionContext.runs] == [0, 0, 1]
    large, _ = open_fake(source, ((4, 4, 8),))
    with pytest.raises(InputError, match=r"a run of 1 samples: the engine's profiles take 4 to 8"):
        large(x)
    assert IExecutionContext.runs == []  # refused before the first part ran


def test_cuda_graphs(export_graph: Export, models: dict[str, IIAE]) -> None:
    source = export_graph("spatial", "shared_x")
    session, cuda = open_fake(source, cuda_graph=True)
    exact, x = load(source), pairs(models["spatial"], 20)["x"]
    for batch in (3, 3, 4, 3, 20):
        np.testing.assert_allclose(session(x[:batch]).numpy(), exact(x[:batch].numpy()), rtol=0, atol=1e-6)
    assert cuda.captures == 3  # of 3, 4 and 8; 20 is 8, 8 and 4
    assert cuda.replays == 7
    wide, cuda = open_fake(source, ((1, 4, 64),), cuda_graph=True)
    many = pairs(models["spatial"], 20)["x"]
    for batch in range(1, 20):
        wide(many[:batch])
    assert len(wide._captured) == 16  # the oldest were dropped, once the device had done with them
    assert cuda.waits == 3


def test_several_threads(export_graph: Export, models: dict[str, IIAE]) -> None:
    source = export_graph("spatial", "shared_x")
    session, _ = open_fake(source)
    exact = load(source)
    batches = [pairs(models["spatial"], 5, seed=seed)["x"].numpy() for seed in range(20)]
    with ThreadPoolExecutor(4) as pool:
        for codes, batch in zip(pool.map(session, batches), batches):
            np.testing.assert_allclose(codes, exact(batch), rtol=0, atol=1e-6)


def test_read_only_arrays(export_graph: Export, models: dict[str, IIAE], recwarn: pytest.WarningsRecorder) -> None:
    session, _ = open_fake(export_graph("spatial", "shared_x"))
    x = pairs(models["spatial"], 3)["x"].numpy()
    x.flags.writeable = False
    session(x)
    assert not recwarn.list


def test_refusals(export_graph: Export) -> None:
    info, _ = engine_of(export_graph("feature", "shared_x"))
    check_version(info, "11.4.0.106")
    with pytest.raises(
        CheckpointError, match=r"x\.plan: built by tensorrt 11\.4\.0\.106, installed is 11\.4\.1\.1; .* build it again"
    ):
        check_version(info, "11.4.1.1")
    check_target(info, "SM89")
    with pytest.raises(InputError, match=r"x\.plan: built for SM89, and this GPU is SM90"):
        check_target(info, "SM90")
    with pytest.raises(InputError, match=r"TensorRT 11\.4\.0\.106 does not load the engine: .*no good$"):
        EngineSession(info, b"broken", Flavor("tensorrt", fake_tensorrt), FakeCuda(), False)
    three = dataclasses.replace(info, profiles=((1, 1, 1),) * 3)
    with pytest.raises(InputError, match="makes no context for profile 2: it gives no reason"):
        EngineSession(
            three, export_graph("feature", "shared_x").read_bytes(), Flavor("tensorrt", fake_tensorrt), FakeCuda(), False
        )


def written(directory: Path, source: Path, **changes: Any) -> Path:
    info, plan = engine_of(source)
    facts = {"flavor": "tensorrt", "reason": "", "source_sha256": "", "size": len(plan), "build_seconds": 1.0}
    facts |= {"options": {}, "layers": [], "kernels": [], "path": directory / "engine.plan"}
    facts["plan_sha256"] = __import__("hashlib").sha256(plan).hexdigest()
    engines._write(dataclasses.replace(info, **{**facts, **changes}), plan)
    return directory / "engine.plan"


def test_order_of_the_checks(export_graph: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flavor, version, device and target, each refused before anything is deserialized."""
    path = written(tmp_path, export_graph("feature", "shared_x"))
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'iiae_fast\[gpu\]'"):
        load(path)
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", fake_tensorrt)
    monkeypatch.setattr(fake_tensorrt, "Runtime", None)
    monkeypatch.setattr(fake_tensorrt, "__version__", "11.5.0.1")
    with pytest.raises(CheckpointError, match=r"built by tensorrt 11\.4\.0\.106, installed is 11\.5\.0\.1"):
        load(path)
    monkeypatch.setattr(fake_tensorrt, "__version__", "11.4.0.106")
    for device in ("cpu", "tensorrt", "cuda:x", "auto:1"):
        with pytest.raises(InputError, match="an engine runs on a GPU; accepted are 'auto', 'cuda', 'cuda:N'"):
            load(path, device=device)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"device='auto': an engine runs on a GPU, and torch .* finds none here"):
            load(path)
    monkeypatch.setattr("iiae_fast.export.engine_session._cuda", lambda device: FakeCuda("SM90"))
    with pytest.raises(InputError, match="built for SM89, and this GPU is SM90"):
        load(path)
    with pytest.raises(InputError, match="threads=2: an engine runs on a GPU"):
        load(path, threads=2)
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", fake_tensorrt)
    monkeypatch.setattr("iiae_fast.export.engine_session._cuda", lambda device: FakeCuda("SM89"))
    assert load(path, max_batch=3).max_batch == 3
    assert load(path, max_batch=300).max_batch == 8
