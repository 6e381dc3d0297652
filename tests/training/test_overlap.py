"""Both domains side by side, with two streams played on the CPU: what is launched where, what waits, whose memory is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_options import batch_of, dropping, step_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toy_runs import features

from iiae_fast import objectives, training
from iiae_fast.config import Preset, TrainingOptions
from iiae_fast.data import Splits
from iiae_fast.model import IIAE
from iiae_fast.streams import Side
from iiae_fast.training import setup
from iiae_fast.training.checkpoint import load_checkpoint

CPU = torch.device("cpu")
OTHER = {"current": "side", "side": "current"}


class Stream:
    """Stands in for ``torch.cuda.Stream``."""

    device = CPU

    def __init__(self, streams: Streams, name: str) -> None:
        self.streams, self.name = streams, name

    def wait_stream(self, other: Stream) -> None:
        self.streams.wait(self.name, other.name)


class Streams(TorchDispatchMode):
    """While it is entered, operators belong to one of two streams, and what crosses between them is watched.

    Attributes:
        log: Waits, and what else was logged, in order.
        early: Reads of what the other stream made and was not waited for.
        unrecorded: Reads of the other stream's memory without ``record_stream``.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.log: list[str] = []
        self.early: list[str] = []
        self.running = "current"
        self._launched = {"current": 0, "side": 0}
        self._waited_for = {"current": 0, "side": 0}  # how many launches of the other one
        self._made: dict[int, tuple[str, int]] = {}  # by storage: the stream, and its launches then
        self._read: dict[tuple[int, str], str] = {}
        self._recorded: set[tuple[int, str]] = set()
        self._kept: list[Tensor] = []  # so that no storage takes another's place
        patch.setattr(torch.cuda, "Stream", lambda device: Stream(self, "side"))
        patch.setattr(torch.cuda, "current_stream", lambda device: Stream(self, self.running))
        patch.setattr(torch.cuda, "stream", self._stream)
        patch.setattr(Tensor, "record_stream", lambda tensor, stream: self.record(tensor, stream.name))

    @property
    def unrecorded(self) -> list[str]:
        return [name for read, name in self._read.items() if read not in self._recorded]

    def wait(self, waiting: str, other: str) -> None:
        self.log.append(f"{waiting} waits")
        self._waited_for[waiting] = self._launched[other]

    def record(self, tensor: Tensor, stream: str) -> None:
        self._recorded.add((tensor.untyped_storage()._cdata, stream))

    def make(self, tensor: Tensor) -> None:
        """A tensor is there from now on; parameters are never said to be, and may be read anywhere."""
        self._kept.append(tensor)
        self._made.setdefault(tensor.untyped_storage()._cdata, (self.running, self._launched[self.running]))

    @contextmanager
    def _stream(self, stream: Stream) -> Iterator[None]:
        before, self.running = self.running, stream.name
        yield
        self.running = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._launched[self.running] += 1
        known = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for storage in (tensor.untyped_storage()._cdata for tensor in known):
            made, when = self._made.get(storage, (self.running, 0))
            if made != self.running:
                self._read[storage, self.running] = str(func)
                if when > self._waited_for[self.running]:
                    self.early.append(str(func))
        storages = {tensor.untyped_storage()._cdata for tensor in known}
        for leaf in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in storages:
                self.make(leaf)
        return result


def presets() -> dict[str, Preset]:
    spatial = dropping()
    flat = replace(spatial, model=replace(spatial.model, family="flat", shared_dim=6))
    return {"spatial": spatial, "flat": flat, "feature": features()}


def watched(streams: Streams, family: str, precision: str) -> None:
    """A forward pass and the losses on two streams."""
    preset = presets()[family]
    model = IIAE(preset.model).train()
    for name, part in model.named_children():
        part.register_forward_pre_hook(lambda *_, name=name: streams.log.append(f"{name} on {streams.running}"))
    batch = batch_of(preset, 4)
    for tensor in batch:
        if tensor is not None:
            streams.make(tensor)
    with streams:
        side = Side(CPU)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = model(batch.x, batch.y, seed=1, side=side)
        objectives.compute(out, batch.x, batch.y, preset.objective, 1, batch.labels, 100)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["spatial", "flat", "feature"])
def test_streams_wait_and_keep_each_others_memory(family: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    watched(streams, family, precision)
    assert streams.log == [
        "side waits",
        "exclusive_x on current",
        "exclusive_y on side",
        "shared_x on current",
        "shared_y on side",
        "current waits",
        "joint on current",
        "side waits",
        "decoder_x on current",
        "decoder_y on side",
        "current waits",
        *(["classifier on current"] if family == "feature" else []),
    ]
    assert not streams.early
    assert not streams.unrecorded


@pytest.mark.parametrize("stream", ["current", "side"])
@pytest.mark.parametrize("forgotten", ["wait", "record"])
def test_what_is_forgotten_is_found(forgotten: str, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would fail without either direction's waiting, and without either one's recording."""
    streams = Streams(monkeypatch)
    original = getattr(streams, forgotten)

    def forgetful(*args: Any) -> None:
        if stream != (args[0] if forgotten == "wait" else args[1]):
            original(*args)

    monkeypatch.setattr(streams, forgotten, forgetful)
    watched(streams, "spatial", "fp32")
    assert streams.early if forgotten == "wait" else streams.unrecorded


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_and_gradients_stay_bit_for_bit(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Streams(monkeypatch)
    preset = dropping()
    found = []
    for overlap in (False, True):
        step = step_of(preset, TrainingOptions(precision, overlap=overlap))
        terms = [step(batch_of(preset, 8, number), [number], number, 1e-3) for number in range(3)]
        gradients = [parameter.grad for parameter in step.model.parameters()]
        found.append(([term.item() for one in terms for term in one.values()], gradients, step.model.state_dict()))
    (terms, gradients, state), others = found
    assert terms == others[0]
    assert all(torch.equal(one, other) for one, other in zip(gradients, others[1], strict=True))
    assert all(torch.equal(tensor, others[2][name]) for name, tensor in state.items())


def test_a_run_is_resumed_with_or_without(tmp_path: Path, feature_splits: Splits) -> None:
    training.train(features(), tmp_path, progress=False, device="cpu", stop_after=0, options=TrainingOptions("fp32"))
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "last.safetensors")
    wanted = TrainingOptions("fp32", overlap=True)
    assert setup.settle_options(wanted, features(), torch.device("cuda", 0), checkpoint) == wanted
    checkpoint.facts["options"]["overlap"] = True
    assert setup.settle_options(TrainingOptions(), features(), CPU, checkpoint) == TrainingOptions("fp32")
