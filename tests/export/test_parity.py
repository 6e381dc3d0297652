"""The parity check itself: it must see what is wrong, name it, and compute its figures as documented."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from export_cases import images, pairs, tiny_model

from iiae_fast import IIAE
from iiae_fast.errors import InputError
from iiae_fast.export import TOLERANCES, ParityError, Session, load, verify
from iiae_fast.export.graphs import GRAPHS
from iiae_fast.export.parity import _compare, _nearest, agreement, complete_inputs

Export = Callable[..., Path]


@pytest.fixture
def session(export_graph: Export) -> Session:
    return load(export_graph("spatial", "shared_x"), device="cpu")


def test_figures() -> None:
    theirs = np.array([[1.0, 0.0], [0.0, 4.0], [0.0, 0.0]], np.float32)
    ours = np.array([[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]], np.float32)
    report = _compare(GRAPHS["shared_x"], "z_s", "fp32", ours, theirs, 1e-4)
    assert report.samples == 3
    assert report.max_absolute_error == 2
    assert report.worst_sample == 1
    assert report.max_relative_error == 0.5
    assert report.cosine == pytest.approx(2**-0.5)
    # nearest others: of ours 1→0 (tie with 2), 0→2 (tie with 1: both at squared distance 2), of theirs 2, 0 … by hand:
    # ours: d01 = 2, d02 = 2, d12 = 4 -> 0: 1, 1: 0, 2: 0; theirs: d01 = 17, d02 = 1, d12 = 16 -> 0: 2, 1: 2, 2: 0
    assert report.top1_agreement == pytest.approx(1 / 3)
    assert report.top10_agreement == 1


def test_agreement_matches_brute_force() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 3, (1200, 3)).astype(np.float32)  # many ties, and more equal codes than neighbours are looked for
    b = a.copy()
    b[rng.random(1200) < 0.1] += 1

    def nearest(codes: np.ndarray) -> np.ndarray:
        distances = ((codes[:, None] - codes[None]) ** 2).sum(-1)
        np.fill_diagonal(distances, np.inf)
        return np.argsort(distances, axis=1, kind="stable")[:, :10]

    mine, others = nearest(a), nearest(b)
    overlap = np.mean([len(set(i) & set(j)) / 10 for i, j in zip(mine, others)])
    np.testing.assert_array_equal(_nearest(a), mine)
    top1, top10 = agreement(_nearest(a), _nearest(b))
    assert top1 == (mine[:, 0] == others[:, 0]).mean() < 1
    assert top10 == pytest.approx(overlap)


def test_single_samples_and_images_have_no_neighbours(session: Session, export_graph: Export, models: dict[str, IIAE]) -> None:
    assert verify(session, models["spatial"], pairs(models["spatial"], 1)["x"]).top1_agreement is None
    decoder = load(export_graph("spatial", "decode_x"), device="cpu")
    report = verify(decoder, models["spatial"], pairs(models["spatial"], 4))
    assert report.top1_agreement is None
    assert report.output == "x"


def test_samples_in_any_form(session: Session, export_graph: Export, models: dict[str, IIAE]) -> None:
    model, samples = models["spatial"], pairs(models["spatial"], 5)
    reports = {
        verify(session, model, given) for given in (samples, samples["x"], samples["x"].numpy(), {"x": samples["x"].numpy()})
    }
    assert len(reports) == 1
    codes = {"z_s": torch.randn(5, 128), "z_y": torch.randn(5, 3)}
    verify(load(export_graph("spatial", "decode_y"), device="cpu"), model, codes)
    verify(load(export_graph("spatial", "decode_y"), device="cpu"), model, {"y": samples["y"]})


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_tuple_is_a_pair_or_the_inputs_in_order(graph: str, export_graph: Export, models: dict[str, IIAE]) -> None:
    model, samples = models["spatial"], pairs(models["spatial"], 5)
    session = load(export_graph("spatial", graph), device="cpu")
    by_name = verify(session, model, samples)
    assert verify(session, model, (samples["x"], samples["y"])) == by_name
    assert verify(session, model, [samples["x"].numpy(), samples["y"].numpy()]) == by_name
    z = torch.randn(5, 3)
    inputs = {"x": samples["x"], "y": samples["y"], "z_s": torch.randn(5, 128), "z_x": z, "z_y": z}
    named = {name: inputs[name] for name in GRAPHS[graph].inputs}
    assert verify(session, model, tuple(named.values())) == verify(session, model, named)


@pytest.mark.parametrize("graph", ["decode_x", "x_to_y"])
def test_codes_from_uint8_images_in_either_layout(graph: str, export_graph: Export, models: dict[str, IIAE]) -> None:
    """The missing code must be that of the picture, not of its bytes in another order."""
    model, of_files = models["spatial"], images(5)
    as_floats = {name: values.permute(0, 3, 1, 2).float() / 127.5 - 1 for name, values in of_files.items()}
    session = load(export_graph("spatial", graph), device="cpu")
    expected = verify(session, model, as_floats)
    reference = copy.deepcopy(model).eval()
    wanted = complete_inputs(session, reference, as_floats)
    for layout in (of_files, {name: values.permute(0, 3, 1, 2) for name, values in of_files.items()}):
        given = layout if graph == "decode_x" else {"x": as_floats["x"], "y": layout["y"]}
        found = verify(session, model, given)
        assert found.max_absolute_error == pytest.approx(expected.max_absolute_error, abs=1e-6)
        codes = complete_inputs(session, reference, given)
        for name in codes.keys() & {"z_s", "z_x", "z_y"}:
            np.testing.assert_allclose(codes[name], wanted[name], rtol=0, atol=1e-6)
    decoder = load(export_graph("spatial", "decode_y"), device="cpu")
    with pytest.raises(
        InputError, match=r"'y' is uint8 of shape \(5, 16, 16, 4\): accepted is uint8 of shape \(B, 16, 16, 3\) or"
    ):
        verify(decoder, model, {"y": torch.zeros(5, 16, 16, 4, dtype=torch.uint8)})


def test_the_model_keeps_its_mode(session: Session, models: dict[str, IIAE]) -> None:
    model = models["spatial"]
    assert model.training
    statistics = model.shared_x.steps[1].norm.running_mean.clone()
    verify(session, model, pairs(model, 4))
    assert model.training
    assert torch.equal(model.shared_x.steps[1].norm.running_mean, statistics)


def test_other_weights_are_found_and_said(session: Session) -> None:
    model = tiny_model("spatial", seed=5)
    with pytest.raises(
        ParityError, match=r"graph shared_x \(fp32\), output z_s: sample \d+ differs .* other weights than this"
    ):
        verify(session, model, pairs(model, 6))


def test_the_worst_sample_is_named(session: Session, models: dict[str, IIAE]) -> None:
    samples = pairs(models["spatial"], 300)["x"]

    class Tampered(Session):
        """Off by a little in sample 257."""

        def __init__(self) -> None:
            self.__dict__.update(session.__dict__)
            self.rows = 0

        def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            output = session(inputs)["z_s"]
            if self.rows <= 257 < self.rows + len(output):
                output[257 - self.rows, 3] += 0.05
            self.rows += len(output)
            return {"z_s": output}

        def _run(self, *arguments: object) -> None:
            raise AssertionError("never called")

    with pytest.raises(ParityError, match=r"sample 257 differs by 0\.05") as caught:
        verify(Tampered(), models["spatial"], samples)
    assert "other weights" not in str(caught.value)
    assert caught.value.report is not None
    assert caught.value.report.worst_sample == 257
    assert caught.value.report.tolerance == TOLERANCES["fp32"]
    assert verify(Tampered(), models["spatial"], samples, tolerance=0.5).max_absolute_error == pytest.approx(0.05, rel=1e-3)


def test_nonfinite_outputs_fail_at_any_tolerance(session: Session, models: dict[str, IIAE]) -> None:
    samples = pairs(models["spatial"], 6)["x"]
    samples[4, 0, 0, 0] = float("nan")
    with pytest.raises(ParityError, match="sample 4 is not finite"):
        verify(session, models["spatial"], samples, tolerance=1e9)


def test_neighbour_agreement_can_be_required(session: Session) -> None:
    model = tiny_model("spatial", seed=6)
    samples = pairs(model, 40)
    report = verify(session, model, samples, tolerance=1e9)
    assert report.top1_agreement is not None
    assert report.top1_agreement < 1
    with pytest.raises(ParityError, match=r"of 40 samples have the same nearest neighbour; accepted is 99\.90% and more"):
        verify(session, model, samples, tolerance=1e9, min_top1_agreement=0.999)


def test_agreement_in_a_gallery(export_graph: Export, models: dict[str, IIAE]) -> None:
    """Queries and items by the sessions, against queries and items by the model."""
    model = models["spatial"]
    samples = pairs(model, 60)
    model.eval()
    with torch.no_grad():
        wanted = {name: model.encode_shared(**{name: values}).numpy() for name, values in samples.items()}
    model.train()
    off = wanted["y"][::-1].copy()  # of each pair's x: the code of another pair's y

    def nearest(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.argsort(((queries[:, None] - items[None]) ** 2).sum(-1), axis=1, kind="stable")[:, :10]

    session_y = load(export_graph("spatial", "shared_y"), device="cpu")
    for graph in ("shared_x", "encode_x"):
        exact = verify(load(export_graph("spatial", graph), device="cpu"), model, samples, gallery=session_y)
        if exact.output == "z_s":
            assert (exact.gallery_top1_agreement, exact.gallery_top10_agreement) == (1, 1)

    class Other(Session):
        def __init__(self) -> None:
            self.__dict__.update(load(export_graph("spatial", "shared_x"), device="cpu").__dict__)

        def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"z_s": off}

        def _run(self, *arguments: object) -> None:
            raise AssertionError("never called")

    report = verify(Other(), model, samples, tolerance=1e9, gallery=session_y)
    found, expected = nearest(off, wanted["y"]), nearest(wanted["x"], wanted["y"])
    assert report.gallery_top1_agreement == (found[:, 0] == expected[:, 0]).mean() < 1
    overlap = np.mean([len(set(ours) & set(theirs)) / 10 for ours, theirs in zip(found, expected)])
    assert report.gallery_top10_agreement == pytest.approx(overlap)
    assert verify(Other(), model, samples, tolerance=1e9).gallery_top1_agreement is None
    with pytest.raises(ParityError, match=r"of 60 samples have the same nearest item of the gallery; accepted is 99\.00%"):
        verify(Other(), model, samples, tolerance=1e9, gallery=session_y, min_top1_agreement=0.99)


def test_other_galleries_are_refused(session: Session, export_graph: Export, models: dict[str, IIAE]) -> None:
    model, samples = models["spatial"], pairs(models["spatial"], 4)
    for graph, options, message in [
        ("shared_x", {}, "gallery: graph shared_x with graph shared_x; accepted are shared_y and encode_y with shared_x"),
        ("exclusive_y", {}, "gallery: graph exclusive_y with graph shared_x"),
        ("joint", {}, "gallery: graph joint with graph shared_x"),
        ("shared_y", {"head": "normalized"}, "gallery: its head is normalized, the session's mean"),
    ]:
        with pytest.raises(InputError, match=message):
            verify(session, model, samples, gallery=load(export_graph("spatial", graph, **options), device="cpu"))
    gallery = load(export_graph("spatial", "shared_y"), device="cpu")
    with pytest.raises(InputError, match="samples have no y: graph shared_y takes y"):
        verify(session, model, {"x": samples["x"]}, gallery=gallery)
    with pytest.raises(ParityError, match="graph shared_y: its inputs and outputs are"):
        verify(session, model, samples, gallery=load(export_graph("flat", "shared_y"), device="cpu"))


def test_another_interface(session: Session, models: dict[str, IIAE]) -> None:
    with pytest.raises(ParityError, match=r"graph shared_x: its inputs and outputs are .* the model's are"):
        verify(session, models["flat"], pairs(models["flat"], 3))


def test_bad_samples(session: Session, export_graph: Export, models: dict[str, IIAE]) -> None:
    model, samples = models["spatial"], pairs(models["spatial"], 4)
    translator = load(export_graph("spatial", "x_to_y"), device="cpu")
    joint = load(export_graph("spatial", "joint"), device="cpu")
    for which, given, message in [
        (session, samples["x"][:0], "samples are empty"),
        (session, {"y": samples["y"]}, "samples have no x: graph shared_x takes x"),
        (session, {"x": [1.0, 2.0]}, "samples 'x' of type list"),
        (session, samples["x"].double(), "input 'x' is float64 of shape"),
        (translator, samples["x"], "samples: graph x_to_y takes x, z_y: give a dictionary"),
        (translator, (samples["x"],), "samples: graph x_to_y takes x, z_y: a tuple of 1 was given"),
        (translator, {"x": samples["x"]}, "samples have no z_y, nor y to take it from: graph x_to_y takes x, z_y"),
        (joint, {"x": samples["x"], "y": samples["y"][:3]}, "differ in their number of rows: x has 4, y has 3"),
    ]:
        with pytest.raises(InputError) as caught:
            verify(which, model, given)
        assert message in str(caught.value)
