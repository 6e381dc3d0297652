"""Coverage-guided fuzzing by atheris (libFuzzer) of what takes bytes and shapes from outside: index files, and searches.

    python tests/retrieval/fuzz.py loader|search [-max_total_time=60] [a folder of inputs] [other options of libFuzzer]

Guided by the coverage of the Python code of ``iiae_fast.retrieval``: the whole of the loader, and all checks before the engine.
The engine itself is compiled without instrumentation; its results are compared, and test_sanitized.py checks its memory.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["iiae_fast.retrieval"]):
    from iiae_fast.retrieval import METRICS, FlatIndex, search, storage

import numpy as np

from iiae_fast import _C
from iiae_fast.errors import CheckpointError, InputError

DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int32")
METHODS = ("int8", "int16", "float32", "auto")
FOLDER = Path(tempfile.mkdtemp(prefix="iiae-fuzz-"))


def check_message(error: InputError, name: str) -> None:
    """It is one line that holds the name."""
    assert name in str(error)
    assert "\n" not in str(error)


def loader(data: bytes) -> None:
    """A file loads, or is refused by a CheckpointError; mostly with a right checksum, or hardly anything would get past it."""
    path = FOLDER / "index"
    if data[:1] != b"\0":
        data = data[1:] + hashlib.sha256(data[1:]).digest()
    path.write_bytes(data)
    try:
        index = FlatIndex.load(path, threads=1)
    except CheckpointError as error:
        check_message(error, str(path))
        return
    assert len(index) >= 1
    index.save(FOLDER / "again")
    assert len(FlatIndex.load(FOLDER / "again", threads=1)) == len(index)


def searches(data: bytes) -> None:
    """Any shapes, dtypes, strides, masks and counts are refused by an InputError, or give what brute force gives."""
    given = atheris.FuzzedDataProvider(data)
    metric = given.PickValueInList(list(METRICS))

    def matrix() -> np.ndarray:
        dtype = np.dtype(given.PickValueInList(list(DTYPES)))
        shape = tuple(given.ConsumeIntInRange(0, 40) for _ in range(given.PickValueInList([2, 2, 2, 2, 1, 3])))
        values = np.frombuffer(given.ConsumeBytes(64).ljust(64, b"\1"), np.uint8).astype(dtype)
        array = np.resize(values, shape)
        if dtype.kind == "f" and given.ConsumeBool():
            array = (array * dtype.type(given.ConsumeRegularFloat())).astype(dtype)
        if given.ConsumeBool():
            array = array[:: given.PickValueInList([-1, 2, 3])]
        return np.asfortranarray(array) if given.ConsumeBool() else array

    with np.errstate(all="ignore"):
        rows, queries = matrix(), matrix()
    k = given.ConsumeIntInRange(-1, 41)
    mask = None
    if given.ConsumeBool():
        mask = np.resize(np.array([given.ConsumeBool() for _ in range(7)]), given.PickValueInList([len(rows), 3]))
    threads = given.ConsumeIntInRange(0, 5)
    try:
        _C.select_instruction_set(given.PickValueInList(_C.instruction_sets()))
        _C.select_method("brute_force")
        expected = search(queries, rows, k, metric, allowed=mask, threads=threads)
        _C.select_method(given.PickValueInList(list(METHODS)))
        found = search(queries, rows, k, metric, allowed=mask, threads=threads)
    except InputError as error:
        check_message(error, "")
        return
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.distances, expected.distances)


def seeds() -> None:
    """Sound index files for the loader to start from, in the folder that libFuzzer reads and extends."""
    for metric in ("sqeuclidean", "gaussian_kl"):
        FlatIndex(np.eye(4, dtype=np.float32), metric).save(FOLDER / "sound")
        whole = (FOLDER / "sound").read_bytes()
        (FOLDER / "corpus").mkdir(exist_ok=True)
        (FOLDER / "corpus" / metric).write_bytes(b"\1" + whole[: -hashlib.sha256().digest_size])
    assert whole.startswith(storage._MAGIC)


if __name__ == "__main__":
    targets = {"loader": loader, "search": searches}
    if len(sys.argv) < 2 or sys.argv[1] not in targets:
        sys.exit(f"give one of {', '.join(targets)}")
    target = targets[sys.argv.pop(1)]
    if target is loader:
        seeds()
        sys.argv.append(str(FOLDER / "corpus"))
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
