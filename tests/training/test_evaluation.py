"""Codes and retrieval figures of a data set."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emulation.runtime import emulate
from toy_runs import FeaturePairs, digits, features

import iiae_fast
from iiae_fast import data, objectives, retrieval, training
from iiae_fast.data import Gallery
from iiae_fast.errors import DataError
from iiae_fast.training.evaluation import validate


@pytest.fixture(scope="module")
def model() -> iiae_fast.IIAE:
    torch.manual_seed(3)
    return iiae_fast.IIAE(features().model).train()


def nearest(queries: np.ndarray, database: np.ndarray, metric: str) -> np.ndarray:
    """Order of the database for each query, by brute force in float64."""
    q, x = queries.astype(np.float64), database.astype(np.float64)
    if metric == "cosine":
        q, x = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (q, x))
    return np.argsort(((q[:, None] - x[None]) ** 2).sum(-1), axis=1, kind="stable")


def test_codes_are_the_models(model: iiae_fast.IIAE) -> None:
    pairs = FeaturePairs(23)
    codes = training.encode(model, pairs, batch_size=7)
    assert model.training, "the mode was put back"
    plain = iiae_fast.IIAE(model.config).eval()
    plain.load_state_dict(model.state_dict())
    x, y = torch.from_numpy(pairs.x), torch.from_numpy(pairs.y)
    with torch.no_grad():
        expected = {
            "shared_x": plain.encode_shared(x=x),
            "shared_y": plain.encode_shared(y=y),
            "exclusive_x": plain.encode_exclusive(x=x),
            "exclusive_y": plain.encode_exclusive(y=y),
        }
    for name, values in expected.items():
        given = getattr(codes, name)
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, values.numpy(), rtol=1e-5, atol=1e-6)
    assert codes.labels is pairs.labels


def test_codes_of_images_in_evaluation_mode() -> None:
    preset = digits()
    pairs = data.load(preset.data).valid
    model = iiae_fast.IIAE(preset.model).eval()
    codes = training.encode(model, pairs)
    assert not model.training
    assert codes.shared_x.shape == (len(pairs), 8 * 16)  # 4·2 channels of 4×4
    assert codes.exclusive_y.shape == (len(pairs), 8)
    batch = pairs.batch(np.arange(5))
    with torch.no_grad():
        shared = model.encode_shared(y=torch.from_numpy(batch.y))
    np.testing.assert_allclose(codes.shared_y[:5], shared.numpy(), rtol=1e-4, atol=1e-6)


def test_no_pairs_have_empty_codes(model: iiae_fast.IIAE) -> None:
    codes = training.encode(model, FeaturePairs(0))
    assert codes.shared_x.shape == (0, 4)
    assert codes.exclusive_y.shape == (0, 3)
    with pytest.raises(DataError, match="empty"):
        training.evaluate(model, FeaturePairs(0))


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
def test_retrieval_figures(model: iiae_fast.IIAE, metric: str) -> None:
    pairs = FeaturePairs(130)
    model = copy.deepcopy(model)
    model.shared_y.load_state_dict(model.shared_x.state_dict())
    pairs.y = (pairs.x + 0.3 * np.random.default_rng(0).normal(size=pairs.x.shape)).astype(np.float32)  # so that some are found
    found = training.evaluate(model, pairs, metric, ks=(1, 5, 1000))
    codes = training.encode(model, pairs)
    assert (found["pairs"], found["chance"]) == (130, 1 / 130)
    for name in ("shared", "exclusive"):
        sides = {"x": getattr(codes, f"{name}_x"), "y": getattr(codes, f"{name}_y")}
        for a, b in ("xy", "yx"):
            order = nearest(sides[a], sides[b], metric)
            rank = (order == np.arange(130)[:, None]).argmax(1)
            assert found[name][f"{a}_to_{b}"] == (rank < 1).mean()
            assert found[name][f"{a}_to_{b}@5"] == (rank < 5).mean()
            assert found[name][f"{a}_to_{b}@1000"] == 1
            relevant = pairs.labels[order] == pairs.labels[:, None]
            by_class = found[name]["by_class"][f"{a}_to_{b}"]
            assert by_class["precision@100"] == pytest.approx(relevant[:, :100].mean())
            precision = relevant.cumsum(1) / np.arange(1, 131)
            assert by_class["map@all"] == pytest.approx(np.mean((precision * relevant).sum(1) / relevant.sum(1)))
    assert 0.1 < found["shared"]["x_to_y"] < 0.9
    assert found["exclusive"]["x_to_y"] < 0.1


def test_images_have_no_figures_by_class() -> None:
    preset = digits()
    found = training.evaluate(iiae_fast.IIAE(preset.model), data.load(preset.data).valid)
    assert set(found["shared"]) == {"x_to_y", "y_to_x", "x_to_y@5", "y_to_x@5"}


def test_fewer_than_a_hundred_rows_have_no_precision_at_100(model: iiae_fast.IIAE) -> None:
    assert set(training.evaluate(model, FeaturePairs(20))["shared"]["by_class"]["x_to_y"]) == {"map@all"}


def test_a_gallery_is_ranked_by_class(model: iiae_fast.IIAE) -> None:
    x, y = FeaturePairs(120), FeaturePairs(301, seed=4)
    gallery = Gallery(x.x, y.y, x.labels, y.labels % 2)
    found = training.evaluate(model, gallery, "cosine")
    assert (found["x_rows"], found["y_rows"]) == (120, 301)
    assert found["chance"] == pytest.approx((x.labels[:, None] == (y.labels % 2)[None]).mean())
    x_codes, y_codes = training.encode(model, x).shared_x, training.encode(model, y).shared_y
    expected = retrieval.evaluate(y_codes, x_codes, gallery.y_labels, gallery.x_labels, metric="cosine", ks=(100,))
    assert found["shared"]["by_class"]["y_to_x"] == pytest.approx(
        {name: expected[name] for name in ("map@all", "precision@100")}, rel=1e-6
    )
    with pytest.raises(DataError, match="gallery is empty"):
        training.evaluate(model, replace(gallery, x=x.x[:0], x_labels=x.labels[:0]))


def test_a_model_on_a_device_is_evaluated_there(model: iiae_fast.IIAE) -> None:
    pairs, others = FeaturePairs(23), FeaturePairs(31, seed=4)
    for dataset in (pairs, Gallery(pairs.x, others.y, pairs.labels, others.labels)):
        expected = training.evaluate(model, dataset, metric="cosine")["shared"]
        with emulate() as device:
            found = training.evaluate(model, dataset, metric="cosine")["shared"]
            assert device.sizes  # it was there
        for direction, measures in expected.pop("by_class").items():
            assert found["by_class"][direction] == pytest.approx(measures, rel=1e-12)
        assert {name: found[name] for name in expected} == expected


def test_an_unknown_metric_is_refused(model: iiae_fast.IIAE) -> None:
    with pytest.raises(ValueError, match="manhattan"):
        training.evaluate(model, FeaturePairs(4), "manhattan")


def test_retrieval_takes_as_many_threads_as_torch(model: iiae_fast.IIAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--threads`` of train and evaluate is torch's number of threads."""
    given = []
    for name in ("paired_recall", "evaluate"):
        real = getattr(retrieval, name)

        def spy(*arguments: object, real: Any = real, **options: Any) -> Any:
            given.append(options["threads"])
            return real(*arguments, **options)

        monkeypatch.setattr(retrieval, name, spy)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        training.evaluate(model, FeaturePairs(12))
        validate(model, FeaturePairs(12), features().objective, 100)
    finally:
        torch.set_num_threads(before)
    assert len(given) == 10
    assert set(given) == {3}


def test_validation_is_evaluation_with_losses(model: iiae_fast.IIAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iiae_fast.training.evaluation.BATCH_SIZE", 7)  # the last batch is smaller
    pairs = FeaturePairs(23)
    objective = features().objective
    found = validate(model, pairs, objective, 100)
    assert found is not None
    evaluated = training.evaluate(model, pairs, ks=(1,))
    for name in ("shared", "exclusive"):
        by_pair = {direction: evaluated[name][direction] for direction in ("x_to_y", "y_to_x")}
        assert getattr(found, name) == by_pair
    model.eval()
    x, y, labels = (torch.from_numpy(array) for array in pairs.batch(np.arange(23)))
    with torch.no_grad():
        out = model(x, y, sample=False)
        expected = objectives.compute(out, x, y, replace(objective, kl_annealing_steps=0), 0, labels, 100)
    model.train()
    assert found.losses == pytest.approx({name: value.item() for name, value in expected.named().items()}, rel=1e-5)


def test_a_run_learns_what_the_domains_share(tmp_path: Path, feature_splits: data.Splits) -> None:
    training.train(features(epochs=12), tmp_path, progress=False)
    found = training.evaluate(iiae_fast.load(tmp_path), feature_splits.test)
    for direction in ("x_to_y", "y_to_x"):
        assert found["shared"][direction] >= 5 * found["chance"]
        assert found["exclusive"][direction] < 5 * found["chance"]
