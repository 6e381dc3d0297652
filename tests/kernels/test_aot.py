"""Compilation without a GPU: assembled kernels, and what a compiler sees of the ops. Neither works under the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

TRACE = Path(__file__).parent / "trace_on_fake_cuda.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


# A sample; `make aot` compiles every variant for every target.
@pytest.mark.parametrize(
    ("match", "target"),
    [
        ("iiae_latents_forward bf16 contiguous", "sm_80"),
        ("iiae_latents_backward fp32 channels_last", "sm_100"),
        ("reconstruction_forward bf16 u8 contiguous laplace", "sm_90"),
        ("reconstruction_scale", "gfx942"),
        ("elbo", "sm_120"),
    ],
)
def test_kernels_assemble_without_spills(match: str, target: str, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    result = run("-m", "iiae_fast.kernels.aot", "--targets", target, "--match", match, "--json", str(table))
    assert result.returncode == 0, result.stdout + result.stderr
    reports = json.loads(table.read_text())
    assert reports
    for report in reports:
        assert report["spills"] == 0
        assert 0 < report["registers"] <= 255
        assert report["instructions"] == sum(report["mix"].values()) > 50
        assert report["mix"]["memory"] > 0
        assert report["mix"]["integer"] > report["mix"]["other"]
        assert report["load"] >= 16 or "strided" in report["name"] or "elbo" in report["name"]  # whose rows are small


def test_interpreter_is_refused() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-m", "iiae_fast.kernels.aot"], capture_output=True, text=True, env=environment)
    assert result.returncode != 0
    assert "TRITON_INTERPRET" in result.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def traced() -> dict[str, list[list[str]]]:
    result = run(str(TRACE))
    assert result.returncode == 0, result.stderr
    traced: dict[str, list[list[str]]] = json.loads(result.stdout.splitlines()[-1])
    return traced


def test_latents_trace_to_one_kernel_each_way(traced: dict[str, list[list[str]]]) -> None:
    assert traced["iiae_latents"] == [["z_x_ptr", "z_s_ptr", "z_y_ptr", "kl_ptr"]]
    assert traced["iiae_latents_backward"] == [["dq_x_ptr", "dq_s_ptr", "dq_y_ptr", "dr_x_ptr", "dr_y_ptr"]]


def test_other_ops_trace_to_their_kernels(traced: dict[str, list[list[str]]]) -> None:
    assert traced["reparameterize"] == [["z_ptr", "kl_ptr"]]
    assert traced["elbo"] == [["total_ptr", "terms_ptr"]]
    assert traced["philox_normal"] == [["out_ptr"]]
    assert traced["reconstruction"] == [
        ["gradient_ptr", "partial_ptr", "gradient_2_ptr", "partial_2_ptr"],
        ["loss_ptr", "loss_2_ptr"],
    ]
