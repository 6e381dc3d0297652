"""``iiae bench``: its arguments, and processes that hang or crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from iiae_fast import convolution
from iiae_fast.bench import command
from iiae_fast.bench.command import _Job, _start, main
from iiae_fast.bench.registry import SUITES
from iiae_fast.bench.results import read
from iiae_fast.errors import InputError

CODE = ["timeit", "-n", "1", "-r", "1"]  # python -m timeit runs the code given


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "unknown benchmark 'nothing'; accepted are kernels, retrieval, training, inference, all"),
        (["kernels", "--against", "nobody"], "--against: unknown rival 'nobody'; accepted are eager"),
        (["kernels", "--runs", "0"], "--runs 0: accepted is a whole number of at least 1"),
        (["kernels", "--threads", "x"], "argument --threads: invalid int value"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["compare", "a"], "the following arguments are required: B"),
        (["compare", "a", "b", "--tolerance", "2"], "--tolerance 2.0: accepted is a share between 0 and 1"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], says: str) -> None:
    with pytest.raises(InputError, match="^" + says.replace("(", r"\(")):
        main(arguments)


def test_without_arguments_it_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(suite in text for suite in SUITES)
    assert "FAISS" in text


def test_module_runs_without_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "iiae_fast.bench", "nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("iiae_fast.bench: unknown benchmark 'nothing'")


def test_a_process_that_hangs_or_crashes_is_cut_off_and_named() -> None:
    assert _start(_Job("hangs", [*CODE, "import time; time.sleep(60)"]), 1, 2.0) == "cut off after 2 s"
    assert _start(_Job("crashes", [*CODE, "import os; os.abort()"]), 1, 60.0) == "killed by signal 6"
    assert _start(_Job("exits", [*CODE, "raise SystemExit(7)"]), 1, 60.0) == "ended with exit code 1"
    assert _start(_Job("works", [*CODE, "pass"]), 1, 60.0) == ""


def test_a_whole_run_at_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = command._jobs

    def toy_jobs(*arguments):
        made = [job for job in jobs(*arguments) if "counts" not in job.label]
        toy = [_Job(job.label, [*job.arguments, "--toy"]) for job in made]
        return [*toy, _Job("crashes", [*CODE, "import os; os.abort()"])]

    monkeypatch.setattr(command, "_jobs", toy_jobs)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = main(["training", "--quick", "--runs", "1", "--threads", "1", "--out", str(tmp_path), "--json"])
    printed = json.loads(capfd.readouterr().out)
    assert code == 1  # something failed, and everything else is there
    assert printed["problems"] == [{"suite": "crashes", "what": "the process", "reason": "killed by signal 6"}]
    expected = {("training", "iiae_fast"), ("training", "plain"), ("layers", "eager")}
    expected |= {("adam", name) for name in ("iiae_fast", "eager", "eager fused")}
    if convolution.available():  # on another processor the layers' own row says why it is missing
        expected.add(("layers", "iiae_fast"))
    assert {(timing["benchmark"], timing["contestant"]) for timing in printed["timings"]} == expected
    kinds = ("html", "jsonl", "md", "png")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"training-quick.{kind}" for kind in kinds]
    results = read([tmp_path])
    assert results.fact("limits")["copy"] > 0
    assert {run["command"] for run in results.runs} == {f"iiae bench {' '.join(_arguments(tmp_path))}"}
    assert all(run["threads"] == 1 for run in results.runs)


def _arguments(out: Path) -> list[str]:
    return ["training", "--quick", "--runs", "1", "--threads", "1", "--out", str(out), "--json"]
