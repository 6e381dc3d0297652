"""The server's repository: parsed as the server parses it, checked against the graphs, and its ensembles run step by step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from export_cases import images, pairs
from server_config import parse

from iiae_fast import IIAE
from iiae_fast.errors import CheckpointError, InputError
from iiae_fast.export import EngineInfo, engines, load, model_repository

Export = Callable[..., Path]

_DTYPES = {11: "tensor(float)", 2: "tensor(uint8)"}


def configs(directory: Path) -> dict[str, Any]:
    """Every model's configuration by name; the folder, the name in the file and the version folder must agree."""
    parsed = {}
    for folder in sorted(directory.iterdir()):
        assert (folder / "1").is_dir()
        config = parse((folder / "config.pbtxt").read_text())
        assert config.name == folder.name
        parsed[folder.name] = config
    return parsed


def interface(values: Any) -> list[tuple[str, str, list[Any]]]:
    return [(value.name, _DTYPES[value.data_type], list(value.dims)) for value in values]


def serve(directory: Path, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the server would answer, by ONNX Runtime and the ensemble's own wiring."""
    config = parse((directory / name / "config.pbtxt").read_text())
    assert {value.name for value in config.input} == set(inputs)
    if config.platform == "onnxruntime_onnx":
        runtime = onnxruntime.InferenceSession(directory / name / "1" / "model.onnx")
        return dict(zip([value.name for value in config.output], runtime.run([v.name for v in config.output], inputs)))
    tensors = dict(inputs)
    for step in config.ensemble_scheduling.step:
        given = {entry.key: tensors[entry.value] for entry in step.input_map}
        results = serve(directory, step.model_name, given)
        for entry in step.output_map:
            assert entry.value not in tensors
            tensors[entry.value] = results[entry.key]
    return {value.name: tensors[value.name] for value in config.output}


@pytest.fixture(scope="module")
def spatial(export_graph: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    graphs = ("shared_x", "exclusive_x", "shared_y", "exclusive_y", "x_to_y", "y_to_x", "decode_x")
    paths = [export_graph("spatial", graph) for graph in graphs]
    directory = tmp_path_factory.mktemp("server") / "models"
    assert model_repository(paths, directory, max_batch=16, kind="cpu", instances=2, threads=1) == directory
    return directory


def test_graphs_match_their_configuration(spatial: Path) -> None:
    parsed = configs(spatial)
    graphs = {name: config for name, config in parsed.items() if config.platform == "onnxruntime_onnx"}
    ensembles = {"encode_x", "encode_y", "translate_x_to_y", "translate_y_to_x"}
    assert set(parsed) == set(graphs) | ensembles
    assert set(graphs) == {"shared_x", "exclusive_x", "shared_y", "exclusive_y", "x_to_y", "y_to_x", "decode_x", "normalize"}
    for name, config in graphs.items():
        runtime = onnxruntime.InferenceSession(spatial / name / "1" / "model.onnx")
        for values, actual in ((config.input, runtime.get_inputs()), (config.output, runtime.get_outputs())):
            assert interface(values) == [(value.name, value.type, value.shape[1:]) for value in actual]
            assert all(isinstance(value.shape[0], str) for value in actual)  # the batch axis is the server's
        assert config.max_batch_size == 16
        assert [(group.count, group.kind) for group in config.instance_group] == [(2, 2)]
        assert config.dynamic_batching.max_queue_delay_microseconds == 1000
        assert [(entry.key, entry.value.string_value) for entry in config.parameters] == [("intra_op_thread_count", "1")]


def test_ensembles_are_wired_to_what_their_models_have(spatial: Path) -> None:
    parsed = configs(spatial)
    for config in parsed.values():
        if config.platform != "ensemble":
            continue
        assert config.max_batch_size == 16
        known = {value.name: (value.data_type, list(value.dims)) for value in config.input}
        for step in config.ensemble_scheduling.step:
            model = parsed[step.model_name]
            assert step.model_version == -1
            assert {entry.key for entry in step.input_map} == {value.name for value in model.input}
            for value in model.input:
                source = next(entry.value for entry in step.input_map if entry.key == value.name)
                assert known[source] == (value.data_type, list(value.dims))
            for entry in step.output_map:
                value = next(value for value in model.output if value.name == entry.key)
                known[entry.value] = (value.data_type, list(value.dims))
        for value in config.output:
            assert known[value.name] == (value.data_type, list(value.dims))


def test_ensembles_from_images(spatial: Path, models: dict[str, IIAE]) -> None:
    model = models["spatial"].eval()
    try:
        samples = images(5)
        x, y = samples["x"], samples["y"]
        with torch.no_grad():
            nchw_x, nchw_y = x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2)
            codes = {"z_s": model.encode_shared(x=nchw_x), "z_x": model.encode_exclusive(x=nchw_x)}
            translated = model.translate(x=nchw_x, style=nchw_y)
    finally:
        model.train()
    answer = serve(spatial, "encode_x", {"x": x.numpy()})
    assert set(answer) == {"z_s", "z_x"}
    for name, values in codes.items():
        np.testing.assert_allclose(answer[name], values.numpy(), rtol=0, atol=1e-5)
    answer = serve(spatial, "translate_x_to_y", {"x": x.numpy(), "style": y.numpy()})
    np.testing.assert_allclose(answer["y"], translated.numpy(), rtol=0, atol=1e-5)


def test_graphs_that_take_images_need_no_normalization(export_graph: Export, tmp_path: Path) -> None:
    shared = export_graph("spatial", "shared_x", input="uint8", max_batch=8)
    directory = model_repository([shared, export_graph("spatial", "exclusive_x")], tmp_path)
    parsed = configs(directory)
    assert set(parsed) == {"shared_x", "exclusive_x", "normalize", "encode_x"}
    assert [step.model_name for step in parsed["encode_x"].ensemble_scheduling.step] == ["shared_x", "normalize", "exclusive_x"]
    assert (parsed["shared_x"].max_batch_size, parsed["exclusive_x"].max_batch_size, parsed["encode_x"].max_batch_size) == (
        8,
        64,
        8,
    )
    x = images(3)["x"].numpy()
    np.testing.assert_allclose(serve(directory, "encode_x", {"x": x})["z_s"], load(shared)(x), rtol=0, atol=1e-6)
    assert set(configs(model_repository([shared], tmp_path / "one"))) == {"shared_x", "encode_x"}


def test_features(export_graph: Export, tmp_path: Path, models: dict[str, IIAE]) -> None:
    paths = [export_graph("feature", graph) for graph in ("shared_x", "exclusive_y", "x_to_y")]
    directory = model_repository(paths, tmp_path, kind="gpu")
    parsed = configs(directory)
    assert set(parsed) == {"shared_x", "exclusive_y", "x_to_y", "encode_x", "encode_y", "translate_x_to_y"}
    assert parsed["shared_x"].instance_group[0].kind == 1
    assert not parsed["shared_x"].parameters
    samples = pairs(models["feature"], 3)
    answer = serve(directory, "translate_x_to_y", {"x": samples["x"].numpy(), "style": samples["y"].numpy()})
    z_y = load(paths[1])(samples["y"])
    wanted = load(paths[2])({"x": samples["x"], "z_y": z_y})["y"]
    np.testing.assert_allclose(answer["y"], wanted.numpy(), rtol=0, atol=1e-6)


def test_names_of_your_own(export_graph: Export, tmp_path: Path) -> None:
    fast, exact = export_graph("spatial", "shared_x", precision="fp16"), export_graph("spatial", "shared_x")
    directory = model_repository({"fast": fast, "exact": exact}, tmp_path)
    parsed = configs(directory)
    assert set(parsed) == {"fast", "exact", "normalize", "encode_x"}
    assert [step.model_name for step in parsed["encode_x"].ensemble_scheduling.step] == ["normalize", "fast"]
    assert (directory / "fast" / "1" / "model.onnx").read_bytes() == fast.read_bytes()
    load(directory / "fast" / "1" / "model.onnx")


def test_one_graph_of_both_codes_takes_the_place_of_its_parts(export_graph: Export, tmp_path: Path) -> None:
    both, shared = export_graph("spatial", "encode_x", input="uint8"), export_graph("spatial", "shared_x")
    parsed = configs(model_repository([both, shared], tmp_path / "a"))
    assert set(parsed) == {"encode_x", "shared_x"}
    assert parsed["encode_x"].platform == "onnxruntime_onnx"
    assert [value.name for value in parsed["encode_x"].output] == ["z_s", "z_x"]
    parsed = configs(model_repository({"both": both, "one": shared}, tmp_path / "b"))
    assert [step.model_name for step in parsed["encode_x"].ensemble_scheduling.step] == ["both"]
    x = images(3)["x"].numpy()
    answer = serve(tmp_path / "b", "encode_x", {"x": x})
    for name, values in load(both)({"x": x}).items():
        np.testing.assert_array_equal(answer[name], values)


def test_engines(export_graph: Export, tmp_path: Path) -> None:
    """Copied, not loaded: so an engine of TensorRT is one by its sidecar here."""
    source = export_graph("spatial", "shared_x", precision="fp16")
    engine = sidecar_of(tmp_path / "shared.plan", source, "tensorrt", ((1, 1, 1), (1, 8, 32)))
    exclusive = export_graph("spatial", "exclusive_x")
    directory = model_repository([engine, exclusive], tmp_path / "models", threads=1, instances=2)
    config = configs(directory)["shared_x"]
    assert (directory / "shared_x" / "1" / "model.plan").read_bytes() == engine.read_bytes()
    assert not (directory / "shared_x" / "1" / "model.onnx").exists()
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 32)
    assert (config.instance_group[0].kind, list(config.instance_group[0].profile)) == (1, ["0", "1"])
    assert not config.parameters
    assert [(value.name, list(value.dims)) for value in (*config.input, *config.output)] == [("x", [3, 16, 16]), ("z_s", [128])]
    assert configs(directory)["exclusive_x"].platform == "onnxruntime_onnx"
    steps = configs(directory)["encode_x"].ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["normalize", "shared_x", "exclusive_x"]
    for flavor, profile, message in [
        ("tensorrt-rtx", (1, 8, 32), "an engine of tensorrt-rtx, which the server has no backend for"),
        ("tensorrt", (4, 8, 32), "takes batches from 4 on, and a server's start at 1"),
    ]:
        other = sidecar_of(tmp_path / "other.plan", source, flavor, (profile,))
        with pytest.raises(InputError, match=message):
            model_repository([other], tmp_path / "never")
    engine.write_bytes(b"another")
    with pytest.raises(CheckpointError, match="not those that"):
        model_repository([engine], tmp_path / "never")
    assert not (tmp_path / "never").exists()


def sidecar_of(path: Path, source: Path, flavor: str, profiles: tuple[tuple[int, int, int], ...]) -> Path:
    """An engine's file and sidecar, of nothing that a GPU could run."""
    metadata, inputs, outputs = engines._interface(source, source.read_bytes())
    plan = b"a plan"
    facts = {
        "version": "11.4.0.106",
        "reason": "",
        "targets": ("SM90",),
        "source_sha256": "",
        "build_seconds": 1.0,
        "options": {},
    }
    info = EngineInfo(
        path=path,
        flavor=flavor,
        profiles=profiles,
        inputs=inputs,
        outputs=outputs,
        metadata=metadata,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        size=len(plan),
        layers=[],
        kernels=[],
        **facts,
    )
    engines._write(info, plan)
    return path


def test_writing_again_leaves_other_models_alone(export_graph: Export, tmp_path: Path) -> None:
    other = tmp_path / "other" / "1" / "model.onnx"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"someone else's")
    for batch in (4, 8):
        model_repository([export_graph("feature", "decode_x")], tmp_path, max_batch=batch)
        assert parse((tmp_path / "decode_x" / "config.pbtxt").read_text()).max_batch_size == batch
    assert other.read_bytes() == b"someone else's"


def test_bad_arguments(export_graph: Export, tmp_path: Path) -> None:
    path = export_graph("spatial", "shared_x")
    for paths, options, message in [
        ([], {}, "paths: no graph given"),
        ([path, path], {}, "graph 'shared_x' is also that of"),
        ({"a/b": path}, {}, "model name 'a/b': accepted are letters"),
        ({"normalize": path}, {}, "model name 'normalize'"),
        ({"encode_x": path}, {}, "model name 'encode_x': this is the name of the ensemble"),
        ([path], {"max_batch": 0}, "max_batch=0: accepted is a whole number"),
        ([path], {"instances": 1.5}, "instances=1.5"),
        ([path], {"threads": -1}, "threads=-1"),
        ([path], {"kind": "tpu"}, "kind='tpu': accepted are auto, cpu, gpu"),
        ([path], {"max_queue_delay": float("nan")}, "max_queue_delay=nan: accepted are 0 to 60 seconds"),
        ([path, export_graph("feature", "exclusive_x")], {}, "not of one model"),
    ]:
        directory = tmp_path / "never"
        with pytest.raises(InputError) as caught:
            model_repository(paths, directory, **options)
        assert message in str(caught.value)
        assert not directory.exists()
    with pytest.raises(CheckpointError, match="no such file"):
        model_repository([tmp_path / "absent.onnx"], tmp_path / "never")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        model_repository([path], tmp_path / "file")
