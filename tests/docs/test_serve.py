"""The service of docs/serve.py, run as its first lines say and asked over HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import succeed
from paths import ROOT
from PIL import Image
from tiny_run import tiny_preset, tiny_run

import iiae_fast
from iiae_fast import data, retrieval

for module in ("fastapi", "uvicorn"):
    pytest.importorskip(module, reason="the example needs: pip install 'iiae_fast[serve]'")

PAIRS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries of x, a gallery of y, exported encoders, and the gallery's codes."""
    folder = tmp_path_factory.mktemp("service")
    batch = data.load(tiny_preset().data).test.batch(np.arange(PAIRS))
    for name, images in (("queries", batch.x), ("gallery", batch.y)):
        (folder / name).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / name / f"{index:02}.png")
    succeed("export", tiny_run(), "--graphs", "shared_x", "shared_y", "--input", "uint8", "--out", folder, "--samples", "8")
    succeed("embed", folder / "shared_y.onnx", folder / "gallery", "--out", folder / "gallery.npy")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Where the service listens."""
    command = [sys.executable, ROOT / "docs" / "serve.py", folder / "shared_x.onnx", folder / "gallery.npy", folder / "gallery"]
    with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                break
        assert found, "".join(lines)
        yield found[1]
        process.terminate()


def ask(address: str, body: bytes, query: str = "") -> tuple[int, object]:
    """Status and answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/nearest{query}", body), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_answers_are_the_models(address: str, folder: Path) -> None:
    batch = data.load(tiny_preset().data).test.batch(np.arange(PAIRS))
    model = iiae_fast.load(tiny_run())
    with torch.inference_mode():
        x, y = (
            codes.numpy()
            for codes in (model.encode_shared(x=torch.from_numpy(batch.x)), model.encode_shared(y=torch.from_numpy(batch.y)))
        )
    hits = retrieval.search(x, y, 3)
    queries = [(folder / "queries" / f"{index:02}.png").read_bytes() for index in range(PAIRS)]
    with ThreadPoolExecutor(4) as clients:  # several at once
        answers = list(clients.map(lambda body: ask(address, body, "?k=3"), queries))
    for (status, answer), rows, distances in zip(answers, hits.indices, hits.distances):
        assert status == 200
        assert [found["item"] for found in answer] == [f"{row:02}.png" for row in rows]
        np.testing.assert_allclose([found["distance"] for found in answer], distances, rtol=1e-3)
    assert ask(address, queries[0]) == (200, answers[0][1][:1])


@pytest.mark.parametrize(("query", "status"), [("?k=0", 422), (f"?k={PAIRS + 1}", 422), ("?k=many", 422), (f"?k={PAIRS}", 200)])
def test_k(address: str, folder: Path, query: str, status: int) -> None:
    assert ask(address, (folder / "queries" / "00.png").read_bytes(), query)[0] == status


def test_no_image(address: str, folder: Path) -> None:
    whole = (folder / "queries" / "00.png").read_bytes()
    assert ask(address, b"no image") == (422, {"detail": "image: not an image"})
    status, answer = ask(address, whole[: len(whole) // 2])
    assert status == 422
    assert "damaged image" in str(answer)
    assert ask(address, whole)[0] == 200  # and it goes on serving


def test_what_does_not_fit_together_is_refused_at_the_start(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "narrow.npy", np.zeros((PAIRS, 7), np.float32))
    command = [
        sys.executable,
        ROOT / "docs" / "serve.py",
        folder / "shared_x.onnx",
        tmp_path / "narrow.npy",
        folder / "gallery",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "do not fit together" in done.stderr.splitlines()[-1]
