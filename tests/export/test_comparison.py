"""Two files against one another by Polygraphy: its own ONNX Runtime runner beside ours, precisions, engines, refusals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import fake_tensorrt
import numpy as np
import onnx
import pytest
import torch
from export_cases import images, pairs, tiny_model
from fake_tensorrt import FakeCuda

from iiae_fast import IIAE
from iiae_fast.errors import InputError, MissingExtraError
from iiae_fast.export import ParityError, compare, load, polygraphy_runner, to_onnx, verify
from iiae_fast.export.sealing import finish

pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'iiae_fast[compare]'")

Export = Callable[..., Path]


@pytest.mark.parametrize(("family", "graph"), [("spatial", "x_to_y"), ("flat", "encode_x"), ("feature", "joint")])
def test_polygraphys_own_runner_agrees_with_ours(
    family: str, graph: str, export_graph: Export, models: dict[str, IIAE]
) -> None:
    """The file is an ordinary ONNX model: what runs it without this package gives the same outputs."""
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    path = export_graph(family, graph)
    session = load(path, device="cpu")
    samples = {**pairs(models[family], 5), "z_y": torch.randn(5, models[family].config.exclusive_dim)}
    feed = {info.name: samples[info.name].numpy() for info in session.inputs}
    runners = [OnnxrtRunner(SessionFromOnnx(str(path), providers=["cpu"])), polygraphy_runner(session)]
    assert runners[1].name == repr(session)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        with runners[0] as theirs, runners[1] as ours:
            expected, found = (runner.get_input_metadata(use_numpy_dtypes=False) for runner in (theirs, ours))
        assert list(found) == list(expected) == list(feed)
        assert all(found[name].dtype == expected[name].dtype for name in feed)
        assert all(tuple(found[name].shape)[1:] == tuple(expected[name].shape)[1:] for name in feed)
        results = Comparator.run(runners, data_loader=[feed])
        judge = SimpleCompareFunc(atol=1e-6, rtol=1e-6, check_error_stat="max")
        assert bool(Comparator.compare_accuracy(results, compare_func=judge))
    assert list(results[repr(session)][0]) == [info.name for info in session.outputs]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precisions(precision: str, export_graph: Export, models: dict[str, IIAE]) -> None:
    exact, low = export_graph("spatial", "encode_x"), export_graph("spatial", "encode_x", precision=precision)
    samples = {"x": pairs(models["spatial"], 30)["x"]}
    found = compare(exact, low, samples, device="cpu")
    assert [difference.output for difference in found] == ["z_s", "z_x"]
    for difference in found:
        assert 1e-5 < difference.max_relative_error <= difference.tolerance == 2e-2
        assert 0 < difference.mean_absolute_error < difference.max_absolute_error
    worst = verify(load(low, device="cpu"), models["spatial"], samples)
    assert worst.max_relative_error == pytest.approx(max(one.max_relative_error for one in found), rel=1e-2)
    with pytest.raises(ParityError, match=r"output z_\w differs by .* of its largest magnitude; accepted is 1e-06$"):
        compare(exact, low, samples, tolerance=1e-6, device="cpu")
    assert [one.max_absolute_error for one in compare(exact, exact, device="cpu")] == [0, 0]


def test_bytes_and_codes_are_drawn(export_graph: Export) -> None:
    for graph, options in (("shared_x", {"input": "uint8"}), ("decode_y", {})):
        source, low = (export_graph("spatial", graph, precision=precision, **options) for precision in ("fp32", "fp16"))
        (difference,) = compare(source, low, device="cpu")
        assert 0 < difference.max_relative_error < 2e-2
        assert compare(source, low, device="cpu") == [difference]  # always the same samples


def test_an_engine_against_its_graph(export_graph: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the stand-in for TensorRT's runtime; the engine here is a graph of other weights, which has to be found."""
    from test_engine_session import written

    source = export_graph("feature", "shared_x")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setattr("iiae_fast.export.engine_session._cuda", lambda device: FakeCuda("SM89"))
    (difference,) = compare(source, written(tmp_path, source))
    assert difference.max_absolute_error == 0
    other = to_onnx(tiny_model("feature", seed=3), "shared_x", tmp_path / "other.onnx")
    with pytest.raises(ParityError, match=r"engine\.plan against .*: output z_s differs by .*exported from different weights$"):
        compare(source, written(tmp_path, other))


def test_refusals(export_graph: Export, tmp_path: Path) -> None:
    source = export_graph("spatial", "shared_x")
    with pytest.raises(InputError, match=r"only files of one graph .* of spatial shared_x, head mean, .* of spatial shared_y"):
        compare(source, export_graph("spatial", "shared_y"))
    with pytest.raises(InputError, match=r"input float32 \(x .*, z_s .*\), .* input uint8 \("):
        compare(source, export_graph("spatial", "shared_x", input="uint8"))
    with pytest.raises(InputError, match="samples are empty"):
        compare(source, source, np.zeros((0, 3, 16, 16), np.float32))
    with pytest.raises(InputError, match="input 'x' is uint8 of shape"):
        compare(source, source, images(2)["x"])
    broken = onnx.load(source)
    weights = broken.graph.initializer[0]
    weights.raw_data = np.full(len(weights.raw_data) // 4, np.nan, np.float32).tobytes()
    facts = {entry.key: entry.value for entry in broken.metadata_props if entry.key != "checksum"}
    (tmp_path / "nan.onnx").write_bytes(finish(broken, facts))
    with pytest.raises(ParityError, match=r"nan\.onnx against .*: output z_s is not finite$"):
        compare(source, tmp_path / "nan.onnx")


def test_a_missing_wheel(export_graph: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'iiae_fast\[compare\]'"):
        compare(export_graph("spatial", "shared_x"), export_graph("spatial", "shared_x"))


def test_nothing_is_printed(export_graph: Export, capfd: pytest.CaptureFixture[str]) -> None:
    compare(export_graph("spatial", "shared_x"), export_graph("spatial", "shared_x"), device="cpu")
    assert capfd.readouterr() == ("", "")
