"""The CPU's own tests on a device: the same functions, around entry points that take what they are given to the device.

Those that say nothing about a device are listed with the reason; a new CPU test must go into one list or the other.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import test_evaluation
import test_index
import test_search
import torch
from device_cases import CASES, check

from iiae_fast.retrieval import FlatIndex, Hits, evaluate, paired_recall

SAME_SEARCHES = "test_device.py does it with the same kind of cases, by the device's own methods"
ENGINE = "is about a part of the CPU engine that the device's has not"
LOADER = "reads files on the CPU, whatever device they are for"
ELSEWHERE = {
    test_search: {
        "test_equals_oracle": SAME_SEARCHES,
        "test_equals_oracle_many_rows": SAME_SEARCHES,
        "test_equals_oracle_many_columns": SAME_SEARCHES,
        "test_equals_oracle_where_rows_are_sampled": ENGINE,
        "test_a_sampled_row_is_not_found_twice": ENGINE,
        "test_searches_of_few_queries_switch_to_packed_rows": ENGINE,
        "test_packed_rows_of_another_array_are_refused": ENGINE,
        "test_a_guess_that_does_not_hold": ENGINE,
        "test_a_searcher_is_done_after_its_result": ENGINE,
        "test_the_callers_floating_point_mode_does_not_matter": "sets a register of the CPU",
        "test_unknown_instruction_set_and_method": ENGINE,
    },
    test_index: {
        "test_a_search_covers_the_rows_that_were_there_when_it_began": "a device's searches and additions take turns",
        "test_every_truncation_is_refused": LOADER,
        "test_every_flipped_byte_is_refused": LOADER,
        "test_random_damage_is_refused": LOADER,
        "test_forged_files_are_refused": LOADER,
        "test_missing_file": LOADER,
        "test_failed_save_keeps_the_old_file": LOADER,
        "test_streaming_needs_little_memory": "counts host memory of a process; test_device_streams.py counts the device's",
        "test_number_of_threads_from_the_environment": "counts threads of the CPU engine",
        "test_works_without_torch": "a device is torch's",
    },
    test_evaluation: {
        "test_equals_oracle": "test_device_evaluation.py does it with the same kind of cases, by the device's own methods",
        "test_excluded_rows_are_not_counted_by_a_scan": "selects the CPU's methods; test_device_evaluation.py has its own",
    },
}
# On the emulated device these run once, with these arguments, unless more cases are asked for.
CHOSEN = {"metric": "cosine", "spread": 1.0, "mode": "path", "length": 1e-160}
LONG = (
    test_search.test_a_row_whose_squares_underflow,
    test_index.test_add_after_a_large_piece,
    test_index.test_streamed_database,
    test_evaluation.test_many_rows,
)


def cpu_tests(module: ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name.startswith("test_")}


globals().update(
    {
        f"{name}_of_{module.__name__.removeprefix('test_')}": function
        for module, left_out in ELSEWHERE.items()
        for name, function in cpu_tests(module).items()
        if name not in left_out
    }
)


@pytest.fixture(autouse=True)
def on_device(device: torch.device, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Search and evaluate there."""
    given = request.node.callspec.params
    chosen = "metric" in given and all(given.get(name, value) == value for name, value in CHOSEN.items())
    if given["device"] == "emulated" and CASES < 200 and not chosen and request.function in LONG:
        pytest.skip("takes long on the emulated device: IIAE_DEVICE_CASES=200 runs it")

    def place(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    def placed(values: dict[str, Any]) -> dict[str, Any]:
        return {name: place(value) for name, value in values.items()}

    class Index(FlatIndex):
        def __init__(self, database: Any, metric: str = "sqeuclidean", device: str = "cuda", **options: Any) -> None:
            super().__init__(place(database), metric, device, **options)

        def add(self, rows: Any) -> None:
            super().add(place(rows))

        def search(self, queries: Any, k: Any, **masks: Any) -> Hits:
            hits = super().search(place(queries), k, **placed(masks))
            return Hits(*(part.cpu() if isinstance(part, torch.Tensor) else part for part in hits))

        @classmethod
        def load(cls, path: Path) -> FlatIndex:
            return FlatIndex.load(path, device="cuda")

    def search(queries: Any, database: Any, k: Any, metric: str = "sqeuclidean", **options: Any) -> Hits:
        own = {name: options.pop(name) for name in ("threads", "memory_limit") if name in options}
        return Index(database, metric, **own).search(queries, k, **options)

    def as_tensor(values: Any) -> Any:
        """A device is chosen by a tensor that is there."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(device) if isinstance(values, np.ndarray) else place(values)

    def measured(queries: Any, database: Any, *labels: Any, **options: Any) -> dict[str, float]:
        return evaluate(as_tensor(queries), place(database), *labels, **placed(options))

    def paired(x: Any, y: Any, **options: Any) -> dict[str, float]:
        return paired_recall(as_tensor(x), as_tensor(y), **options)

    for module in ELSEWHERE:
        for name, value in {"search": search, "FlatIndex": Index, "evaluate": measured, "paired_recall": paired}.items():
            monkeypatch.setattr(module, name, value, raising=False)
    monkeypatch.setattr(test_search, "check", lambda case: check(case, device))


def test_what_is_left_out_exists() -> None:
    for module, left_out in ELSEWHERE.items():
        assert left_out.keys() < cpu_tests(module).keys()
