"""The retrieval benchmark: its gate refuses wrong ids, and its table is complete."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("faiss", reason="faiss is not installed; pip install faiss-cpu")

from iiae_fast import _C
from iiae_fast.bench.registry import Ready, Settings, Unavailable
from iiae_fast.bench.retrieval import cases, main


def test_every_contestant_passes_the_gate_and_wrong_ids_do_not() -> None:
    (case,) = cases(Settings(toy=True, quick=True, threads=1))
    for contestant in case.contestants:
        made = contestant.make()
        assert not isinstance(made, Ready)
        found = np.array(made())
        assert (contestant.check or case.check)(found) == ""
        found[0, 0] = found[0, 1]
        assert "differ from a float64 brute force" in (contestant.check or case.check)(found)


def test_on_a_gpu_without_the_cuda_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report says why there is no figure. (With the engine, its cases are tested where it is.)"""
    monkeypatch.delattr(_C, "cuda", raising=False)
    (case,) = cases(Settings(device="cuda"))
    with pytest.raises(Unavailable, match="built without its CUDA engine"):
        case.contestants[0].make()


def test_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--only", "k 10,", "--seconds", "0.1", "--threads", "1"]
    assert main(arguments) == 0
    line = capsys.readouterr().out
    assert "iiae_fast" in line
    assert "faiss" in line
    assert "x" in line
    assert main([*arguments, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["cases"]
    assert set(result["seconds"]) == {"iiae_fast", "faiss", "matmul + topk"}
    assert result["refused"] == {}
