"""The GPU suite's plumbing: whatever a step does, the rest goes on and all there is so far is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iiae_fast.bench.gpu_suite import Step, main, run_steps, steps
from iiae_fast.bench.results import read


def python(name: str, code: str, limit: float = 60.0, **options) -> Step:
    return Step(name, [sys.executable, "-c", code], limit, **options)


HANGS = (
    "import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', 'import time; time.sleep(90)'])"
)


def test_a_step_that_hangs_crashes_or_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    todo = [
        python("first", "print('hello')"),
        python("hangs", HANGS, limit=3.0),
        python("crashes", "import os; os.abort()"),
        python("fails", "import sys; print('why', file=sys.stderr); sys.exit(4)"),
        python("other code", "import sys; sys.exit(5)", passes=(0, 5)),
        python("no tool", "print('never')", tool="no-such-program"),
        python("variables", "import os; assert os.environ['SPECIAL'] == '1'", variables=(("SPECIAL", "1"),)),
        python("last", "print('world')"),
    ]
    outcomes = run_steps(todo, tmp_path, budget=300.0)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "first": "ok",
        "hangs": "cut off",
        "crashes": "failed",
        "fails": "failed",
        "other code": "ok",
        "no tool": "skipped",
        "variables": "ok",
        "last": "ok",
    }
    assert outcomes["hangs"].reason == "still running after 3 s"
    assert outcomes["crashes"].reason == "killed by signal 6"
    assert outcomes["fails"].reason == "exit code 4"
    assert outcomes["no tool"].reason == "no-such-program is not on the PATH"
    log = (tmp_path / "log.txt").read_text()
    for text in ("hello", "begun", "why", "world"):
        assert text in log
    assert json.loads((tmp_path / "suite.json").read_text())["hangs"]["status"] == "cut off"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "suite.json"]


def test_state_is_on_disk_after_every_step(tmp_path: Path) -> None:
    state = tmp_path / "suite.json"
    look = f"import json; print('so far', list(json.load(open({str(state)!r}))))"
    run_steps([python("one", "pass"), python("two", "pass"), python("look", look)], tmp_path, budget=300.0)
    assert "so far ['one', 'two']" in (tmp_path / "log.txt").read_text()


def test_a_spent_budget_leaves_steps_out_but_not_the_report(tmp_path: Path) -> None:
    todo = [
        python("takes it all", "import time; time.sleep(90)"),
        python("late", "pass"),
        python("report", "pass", always=True),
    ]
    outcomes = run_steps(todo, tmp_path, budget=28.0)
    assert [outcome.status for outcome in outcomes.values()] == ["cut off", "not run", "ok"]
    assert outcomes["late"].reason == "no time left in the budget"


def test_resuming_runs_only_what_is_not_ok_and_keeps_the_results(tmp_path: Path) -> None:
    first, second, count = tmp_path / "first", tmp_path / "second", tmp_path / "count"
    counted = f"open({str(count)!r}, 'a').write('x')"
    broken = [python("good", counted), python("bad", "import sys; sys.exit(1)"), python("report", counted, always=True)]
    run_steps(broken, first, budget=300.0)
    (first / "results.jsonl").write_text("kept\n")
    mended = [broken[0], python("bad", counted), broken[2]]
    outcomes = run_steps(mended, second, budget=300.0, resume=first)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {"good": "ok", "bad": "ok", "report": "ok"}
    assert count.read_text() == "x" * 4  # good, report; then bad, report
    assert (second / "results.jsonl").read_text() == "kept\n"
    assert "exit code 1" in (second / "log.txt").read_text()
    with pytest.raises(SystemExit, match="no output of this suite"):
        run_steps(mended, second, budget=300.0, resume=tmp_path / "nowhere")


def test_log_stays_small(tmp_path: Path) -> None:
    loud = "import sys; [sys.stdout.write('x' * 1000 + chr(10)) for _ in range(3000)]; print('the end')"
    run_steps([python("loud", loud)], tmp_path, budget=300.0)
    log = (tmp_path / "log.txt").read_bytes()
    assert len(log) < 1 << 20
    assert log.endswith(b"the end\n")


def test_a_dry_run_has_the_same_steps(tmp_path: Path) -> None:
    real, dry = ([step.name for step in steps(tmp_path, dry_run)] for dry_run in (False, True))
    assert set(dry) <= set(real)
    assert {name.rstrip(" 123") for name in dry} == {name.rstrip(" 123") for name in real}
    assert real[:5] == ["environment", "build", "retrieval tests", "kernel tests", "training tests"]
    assert real[-1] == "report"
    assert all(step.limit <= 180 for step in steps(tmp_path, False))


@pytest.mark.slow
def test_dry_run_of_every_step(tmp_path: Path) -> None:
    variables = {**os.environ, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "iiae_fast.bench.gpu_suite", "--dry-run", "--budget", "800"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    outcomes = json.loads((tmp_path / "suite.json").read_text())
    assert {name: one["status"] for name, one in outcomes.items()} == {step.name: "ok" for step in steps(tmp_path, True)}, (
        tmp_path / "log.txt"
    ).read_text()
    assert done.returncode == 0
    assert " ok, 0 failed, 0 cut off, 0 skipped, 0 not run" in done.stdout
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(files) <= {
        "suite.json", "log.txt", "results.jsonl", "profile.txt", "report.md", "report.html", "report.png",
    }  # fmt: skip
    assert max(files.values()) < 16 << 20
    results = read([tmp_path])
    assert {line["suite"] for line in results.measured()} >= {"kernels", "training"}
    assert results.fact("training run")["steps"] > 0
    assert "kernel launches per step" in (tmp_path / "profile.txt").read_text()


def test_exit_code_says_whether_something_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from iiae_fast.bench import gpu_suite

    for code, expected in ((0, 0), (1, 1)):
        todo = [python("only", f"import sys; sys.exit({code})")]
        monkeypatch.setattr(gpu_suite, "steps", lambda out, dry_run, todo=todo: todo)
        assert main(["--out", str(tmp_path / str(code))]) == expected
