"""``iiae export --to tensorrt-rtx`` and ``--inspect``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from command_line import output_of, refuse, succeed

from iiae_fast import export

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install 'iiae_fast[rtx]'"
)


@needs_rtx
class TestEngines:
    def test_engines_beside_their_graphs(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--to", "tensorrt-rtx", "--input", "uint8", "--precision", "fp16", "--samples", "9")
        found = output_of(
            capsys, "export", run_dir, "--graphs", "encode_x", "y_to_x", *options, "--batch", 1, 4, 32, "--targets", "SM86"
        )
        assert [engine["metadata"]["graph"] for engine in found["engines"]] == ["encode_x", "y_to_x"]
        for engine in found["engines"]:
            info = export.inspect_engine(engine["path"])
            assert info.path == run_dir / "onnx" / f"{info.metadata['graph']}.plan"
            assert (info.targets, info.profiles, info.metadata["run"]) == (("SM86",), ((1, 4, 32),), "run")
            assert engine["plan_sha256"] == info.plan_sha256
            if not torch.cuda.is_available():
                assert engine["parity"] is None
                assert "an engine runs on a GPU, and torch" in engine["not_run"]

    def test_eight_bits(self, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for precision, targets in (("int8", ["SM80", "SM86", "SM89", "SM120"]), ("fp8", ["SM89", "SM120"])):
            found = output_of(
                capsys,
                *("export", run_dir, "--graphs", "shared_x", "shared_y", "--to", "tensorrt-rtx", "--precision", precision),
                *("--calibration", "100", "--out", tmp_path / precision),
            )
            assert [engine["targets"] for engine in found["engines"]] == [targets] * 2
            assert all(engine["metadata"]["target"] == "tensorrt" for engine in found["engines"])
            assert all(1e-5 < report["max_relative_error"] <= report["tolerance"] for report in found["graphs"])
            assert found["retrieval"]["top1_agreement"] >= 0.8  # of codes hardly trained

    def test_what_is_printed(self, run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        succeed("export", run_dir, "--graphs", "shared_x", "--to", "tensorrt-rtx", "--precision", "bf16", "--samples", "9")
        printed = capsys.readouterr().out
        assert "TensorRT-RTX" in printed
        assert "2 float" in printed  # layers: the first and the last of an encoder stay float32
        small = ("--precision", "int8", "--samples", "9", "--calibration", "9")
        succeed("export", run_dir, "--graphs", "exclusive_x", "--to", "tensorrt-rtx", *small)
        assert "1 int8, 1 float" in capsys.readouterr().out
        engine = run_dir / "onnx" / "shared_x.plan"
        succeed("export", "--inspect", engine)
        printed = capsys.readouterr().out
        assert f"{engine}: spatial shared_x bf16" in printed.replace("\n", "")
        assert "batches: 1 to 256, tuned for 16" in printed
        for word in ("convolution", "layers of the network", "kernels they became"):
            assert word in printed
        values = output_of(capsys, "export", "--inspect", engine)
        written = json.loads(engine.with_name("shared_x.plan.json").read_text())
        assert values == {**{key: written[key] for key in written.keys() - {"format", "checksum"}}, "path": str(engine)}

    def test_refusals(self, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        export_to = ("export", run_dir, "--graphs", "shared_x", "--samples", "2", "--to", "tensorrt-rtx")
        assert "targets=('SM90',): accepted for fp32 are SM80" in refuse(capsys, *export_to, "--targets", "SM90")
        assert "batch=(4, 2, 8): accepted is" in refuse(capsys, *export_to, "--batch", 4, 2, 8)
        (tmp_path / "other.plan").write_bytes(b"from somewhere")
        message = refuse(capsys, "export", "--inspect", tmp_path / "other.plan")
        assert "has no sidecar other.plan.json beside it. An engine is code" in message


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_a_missing_wheel_names_its_command(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refuse(capsys, "export", run_dir, "--graphs", "shared_x", "--samples", "2", "--to", "tensorrt")
    assert message == "iiae: tensorrt is not installed; install it with: pip install 'iiae_fast[gpu]'\n"


def test_options_that_do_not_go_together(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        ((), "give either a run directory, iiae export RUN, or an engine"),
        ((run_dir, "--inspect", "a.plan"), "give either a run directory, iiae export RUN, or an engine"),
        ((run_dir, "--compare", "a.onnx", "b.plan"), "give either a run directory, iiae export RUN, or an engine"),
        (("--inspect", "absent.plan"), "absent.plan: no such file"),
        (("--compare", "absent.onnx", "b.plan"), "absent.onnx: no such file"),
        ((run_dir, "--batch", 1, 2, 4), "--batch is of engines: give --to tensorrt or --to tensorrt-rtx too"),
        ((run_dir, "--targets", "SM80"), "--targets is of engines"),
        ((run_dir, "--precision", "fp8"), "--precision fp8 is of engines"),
    ]:
        assert message in refuse(capsys, "export", *arguments)


@pytest.mark.skipif(importlib.util.find_spec("polygraphy") is None, reason="polygraphy: pip install 'iiae_fast[compare]'")
def test_two_files(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for precision in ("fp32", "fp16"):
        succeed(
            "export", run_dir, "--graphs", "shared_x", "--samples", "2", "--precision", precision, "--out", tmp_path / precision
        )
    files = [tmp_path / precision / "shared_x.onnx" for precision in ("fp32", "fp16")]
    capsys.readouterr()
    succeed("export", "--compare", *files)
    printed = capsys.readouterr().out
    assert "by Polygraphy" in printed
    assert "0.02" in printed
    (difference,) = output_of(capsys, "export", "--compare", *files)["outputs"]
    assert difference["output"] == "z_s"
    assert 0 < difference["max_relative_error"] < difference["tolerance"] == 0.02
    if not torch.cuda.is_available() and importlib.util.find_spec("tensorrt_rtx") is not None:
        engine = export.build_tensorrt(files[1], tmp_path / "shared_x.plan", flavor="tensorrt-rtx").path
        assert "an engine runs on a GPU, and torch" in refuse(capsys, "export", "--compare", files[1], engine)
