"""The page: self-contained, escaped, and saying what was measured."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iiae_fast import presets
from iiae_fast.reports import environment
from iiae_fast.reports.curves import line_chart
from iiae_fast.reports.figures import Figure, Group
from iiae_fast.reports.html import RunFacts, render

VOID = {"meta", "img", "br", "line", "circle", "polyline"}


class Outline(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def evaluation(**changes: Any) -> dict[str, Any]:
    shared = {"x_to_y": 354 / 360, "y_to_x": 1.0, "x_to_y@5": 1.0, "y_to_x@5": 1.0}
    exclusive = {"x_to_y": 1 / 360, "y_to_x": 40 / 360, "x_to_y@5": 0.01, "y_to_x@5": 0.2}
    return {"chance": 1 / 360, "pairs": 360, "shared": shared, "exclusive": exclusive, **changes}


def facts(**changes: Any) -> RunFacts:
    values = RunFacts(
        run_dir="runs/<a>",
        preset=presets.get("digits-cdcb"),
        parameters=1_400_000,
        evaluation=evaluation(),
        metric="sqeuclidean",
        environment=environment.describe(),
        training={"steps": 800, "epochs": 40.0, "pairs": 1293, "best_step": 780, "seconds": 125.0, "pairs_per_second": 400.0},
        groups=[Group("Pictures & more", "", [Figure("name", "A <b>", "", np.full((9, 7, 3), 5, np.uint8))])],
        charts=[line_chart("Loss", {"training": [(1, 2.0), (2, 1.0)]})],
    )
    return dataclasses.replace(values, **changes)


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    assert parsed.open == []
    return parsed


def test_page_holds_everything_it_shows() -> None:
    page = render(facts())
    parsed = outline(page)
    assert not [tag for tag, _ in parsed.tags if tag in {"script", "link", "iframe"}]
    references = [value for _, given in parsed.tags for name, value in given.items() if name in {"src", "href"}]
    assert references
    assert all(value is not None and value.startswith("data:image/png;base64,") for value in references)
    assert not re.search(r"url\(|@import|https?://", page)
    (source,) = references
    assert source is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    assert np.array_equal(shown, np.full((9, 7, 3), 5, np.uint8))


def test_page_serves_both_colour_schemes_and_small_screens() -> None:
    page = render(facts())
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_text_is_escaped() -> None:
    parsed = outline(render(facts(commands="iiae train x > <y> & z")))
    assert not [tag for tag, _ in parsed.tags if tag in {"y", "a"}]
    assert "iiae train x > <y> & z" in parsed.text
    assert "Pictures & more" in parsed.text


def test_retrieval_and_leak_are_stated() -> None:
    text = outline(render(facts())).text
    assert "98.33 %" in text  # 354 of 360
    assert "354 of 360 queries" in text
    assert "within binomial noise" in text  # x to y: one hit
    assert "above binomial noise" in text  # y to x: forty
    assert "1/360 = 0.28 %" in text
    assert "2 min 5 s" in text


def test_parity_is_shown_once_there_was_an_export() -> None:
    assert "iiae export runs/<a>" in outline(render(facts())).text
    graph = {
        "graph": "shared_x",
        "output": "z_s",
        "precision": "fp32",
        "samples": 256,
        "max_absolute_error": 2e-6,
        "max_relative_error": 3e-6,
        "cosine": 1.0,
        "top1_agreement": None,
        "tolerance": 1e-4,
    }
    retrieval = {"queries": 720, "top1_agreement": 1.0, "x_to_y": 0.98, "y_to_x": 0.97}
    text = outline(render(facts(parity={"graphs": [graph], "retrieval": retrieval}))).text
    assert "3.0e-06" in text
    assert "720 queries" in text
    assert "iiae export" not in text


def test_run_without_log_or_pictures_has_a_page() -> None:
    text = outline(render(facts(charts=[], groups=[], training={}))).text
    assert "no training log" in text


def test_classes_of_feature_runs_are_shown() -> None:
    by_class = {"x_to_y": {"map@all": 0.4321, "precision@100": 0.5}, "y_to_x": {"map@all": 0.3, "precision@100": 0.2}}
    gallery = {"shared": {"by_class": by_class}, "exclusive": {"by_class": by_class}}
    text = outline(render(facts(evaluation=evaluation(gallery=gallery)))).text
    assert "0.4321" in text
    assert "precision@100" in text


@pytest.mark.parametrize(("seconds", "shown"), [(59.4, "59 s"), (60.0, "1 min 0 s"), (3700.0, "1 h 1 min")])
def test_durations(seconds: float, shown: str) -> None:
    assert shown in outline(render(facts(training={"seconds": seconds}))).text
