"""Nothing wrong is timed, and nothing is dropped silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bench_fakes import doubling, writer
from torch import Tensor

from iiae_fast.bench import reconstruction
from iiae_fast.bench.registry import SUITES, Contestant, Ready, Settings, Unavailable, cases_of
from iiae_fast.bench.results import read
from iiae_fast.bench.worker import TOY, run_case, run_suite
from iiae_fast.kernels import reference

SETTINGS = Settings(quick=True, toy=True)


def lines_of(case: Any, path: Path, **options: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Run a case; its lines by contestant and cache."""
    run_case("kernels", "double", case, SETTINGS, TOY, writer(path), **options)
    return {(line["contestant"], line["cache"]): line for line in read([path]).timings}


def absent() -> Any:
    raise Unavailable("faiss cannot be imported; pip install faiss-cpu")


def broken() -> Any:
    raise RuntimeError("no kernel image\nis available")


def test_right_is_timed_wrong_is_refused_absent_is_skipped_broken_fails(tmp_path: Path) -> None:
    case = doubling(
        Contestant("reference", lambda: lambda: 42),
        Contestant("eager", lambda: lambda: 41),
        Contestant("faiss", absent),
        Contestant("torch.compile", broken),
    )
    lines = lines_of(case, tmp_path / "a.jsonl")
    for cache in ("hot", "cold"):
        assert lines["reference", cache]["status"] == "measured"
        assert lines["reference", cache]["p50"] > 0
    expected = {"eager": ("refused", "got 41"), "faiss": ("skipped", "faiss cannot be imported; pip install faiss-cpu")}
    expected["torch.compile"] = ("failed", "RuntimeError: no kernel image is available")
    for name, (status, reason) in expected.items():
        line = lines[name, "n/a"]
        assert (line["status"], line["reason"], line["samples"], line["p50"]) == (status, reason, [], None)
    assert len(lines) == 5


def test_a_contestant_may_promise_less_and_may_be_probed(tmp_path: Path) -> None:
    calls: list[str] = []
    case = doubling(
        Contestant("reference", lambda: Ready(lambda: calls.append("call"), lambda: 42)),
        Contestant("faiss", lambda: lambda: 41, check=lambda found: "" if found > 40 else "too small"),
    )
    lines = lines_of(case, tmp_path / "a.jsonl")
    assert {line["status"] for line in lines.values()} == {"measured"}
    assert calls


def test_against_chooses_rivals_and_keeps_ours(tmp_path: Path) -> None:
    case = doubling(*(Contestant(name, lambda: lambda: 42) for name in ("reference", "eager", "faiss")))
    lines = lines_of(case, tmp_path / "a.jsonl", against=["faiss"])
    assert {name for name, _ in lines} == {"reference", "faiss"}


def test_a_kernel_broken_on_purpose_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference.reconstruction

    def slightly_wrong(*arguments: Any) -> Tensor:
        return right(*arguments) * 1.0001

    monkeypatch.setattr(reference, "reconstruction", slightly_wrong)
    monkeypatch.setitem(SUITES, "kernels", ("reconstruction",))
    out = writer(tmp_path / "a.jsonl")
    run_suite("kernels", SETTINGS, TOY, out, ["eager"])
    assert out.problems == 1
    lines = read([tmp_path]).timings
    ours = [line for line in lines if line["contestant"] == "reference"]
    assert [line["status"] for line in ours] == ["refused"]
    assert ours[0]["reason"].startswith("loss is off by 0.0001")
    assert {line["status"] for line in lines if line["contestant"] == "eager"} == {"measured"}


def test_a_benchmark_that_raises_is_recorded_and_the_next_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "kernels", ("reconstruction", "philox"))
    monkeypatch.setattr(reconstruction, "cases", lambda settings: 1 / 0)
    run_suite("kernels", SETTINGS, TOY, writer(tmp_path / "a.jsonl"), ["eager"])
    results = read([tmp_path])
    assert results.fact("failure")["what"] == "reconstruction"
    assert {line["benchmark"] for line in results.measured()} == {"philox"}


@pytest.mark.parametrize("benchmark", SUITES["kernels"])
def test_every_check_passes_plain_pytorch_and_refuses_a_small_change_of_any_result(benchmark: str) -> None:
    case = next(iter(cases_of(benchmark, SETTINGS)))
    eager = next(one for one in case.contestants if one.name == "eager")
    made = eager.make()
    assert not isinstance(made, Ready)
    found = made()
    assert case.check(found) == ""
    for index in range(len(found)):
        for change in (
            lambda one: one * 1.05,
            lambda one: one.flip(0) if one.dim() else one + 1,
            lambda one: one * float("nan"),
        ):
            changed = [change(one) if number == index else one for number, one in enumerate(found)]
            # A constant gradient turned round is itself.
            if torch.equal(changed[index], found[index]):
                continue
            # Other noise is as good: a code may be turned round, but not scaled.
            if benchmark == "philox" and (changed[0] == found[0].flip(0)).all():
                continue
            assert case.check(tuple(changed)) != "", (index, change)


def test_contestants_are_known_by_name() -> None:
    from iiae_fast.bench.registry import OURS, RIVALS

    for suite in ("kernels", "training"):
        for benchmark in SUITES[suite]:
            case = next(iter(cases_of(benchmark, SETTINGS)))
            assert {one.name for one in case.contestants} <= OURS.keys() | RIVALS.keys()
            assert any(one.ours for one in case.contestants)
