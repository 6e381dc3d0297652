"""The report of a run: one HTML page that holds everything it shows."""

from __future__ import annotations

__all__ = ["RunFacts", "render"]

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from iiae_fast.config import Preset
from iiae_fast.errors import require
from iiae_fast.reports.curves import COLOURS, Chart
from iiae_fast.reports.figures import Group
from iiae_fast.reports.leak import leak
from iiae_fast.version import __version__

_DIRECTIONS = (("x_to_y", "x → y"), ("y_to_x", "y → x"))
_CODES = (("shared", "shared z_s"), ("exclusive", "exclusive z_x, z_y"))


@dataclass(frozen=True)
class RunFacts:
    """What a report says.

    Attributes:
        run_dir: As the user names it.
        preset: The run's settings.
        parameters: Trainable ones.
        training: ``steps``, ``epochs``, ``pairs``, ``best_step``, ``seconds``, ``pairs_per_second``; any may be absent.
        evaluation: What ``iiae_fast.training.evaluate`` gave on the test pairs.
        metric: It was measured with.
        groups: Pictures.
        charts: Of the training log.
        parity: What ``iiae export`` kept: ``graphs`` and perhaps ``retrieval``; None before an export.
        environment: From ``iiae_fast.reports.environment``.
        commands: Command lines, one a line.
    """

    run_dir: str
    preset: Preset
    parameters: int
    evaluation: Mapping[str, Any]
    metric: str
    environment: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    groups: Sequence[Group] = ()
    charts: Sequence[Chart] = ()
    parity: Mapping[str, Any] | None = None
    commands: str = ""


def render(facts: RunFacts) -> str:
    """The page as HTML text.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    jinja2 = require("jinja2", "train")
    markup = require("markupsafe", "train").Markup
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    source = files("iiae_fast.reports").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page: str = environment.from_string(source).render(
        title=f"{facts.preset.name}: what the two domains share",
        subtitle=_subtitle(facts),
        tiles=_tiles(facts),
        retrieval=_retrieval(facts),
        groups=facts.groups,
        charts=[{"name": chart.name, "svg": markup(chart.svg), "logarithmic": chart.logarithmic} for chart in facts.charts],
        keys=list(COLOURS.items()),
        parity=None if facts.parity is None else facts.parity["graphs"],
        parity_note=_parity_note(facts.parity),
        environment=_environment(facts),
        commands=facts.commands or f"iiae report {facts.run_dir}",
        settings=json.dumps(facts.preset.to_dict(), indent=2),
        run_dir=facts.run_dir,
        version=__version__,
    )
    return page


def _subtitle(facts: RunFacts) -> str:
    model, training = facts.preset.model, facts.training
    size = f"{model.feature_dim} features" if model.family == "feature" else f"{model.image_size}×{model.image_size} images"
    parts = [f"IIAE of the {model.family} family, {size}, {facts.parameters:,} parameters"]
    if "steps" in training:
        pairs = f" over {training['pairs']:,} pairs" if "pairs" in training else ""
        parts.append(f"{training['epochs']:g} epochs{pairs} ({training['steps']:,} steps)")
    if "best_step" in training:
        parts.append(f"the best model on validation is that of step {training['best_step']:,}")
    return "; ".join(parts) + "."


def _tiles(facts: RunFacts) -> list[dict[str, str]]:
    evaluation, tiles = facts.evaluation, []
    pairs = evaluation["pairs"]
    for name, label in _DIRECTIONS:
        recall = evaluation["shared"][name]
        tiles.append(_tile(f"R@1, {label}", _percent(recall), f"{round(recall * pairs):,} of {pairs:,} queries"))
    leaked = " / ".join(f"{100 * evaluation['exclusive'][name]:.2f}" for name, _ in _DIRECTIONS)
    tiles.append(_tile("R@1, exclusive codes", f"{leaked} %", f"chance is {_percent(evaluation['chance'])}"))
    if facts.parity is not None:
        error = max(row["max_relative_error"] for row in facts.parity["graphs"])
        tiles.append(_tile("ONNX against model", f"{error:.0e}", "largest relative error"))
        if "retrieval" in facts.parity:
            share = facts.parity["retrieval"]["top1_agreement"]
            tiles.append(_tile("ONNX: same hit 1", _percent(share), f"of {facts.parity['retrieval']['queries']:,} queries"))
    if "seconds" in facts.training:
        rate = facts.training.get("pairs_per_second")
        note = "" if rate is None else f"{rate:,.0f} pairs a second"
        tiles.append(_tile("training time", _duration(facts.training["seconds"]), note))
    return tiles


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _retrieval(facts: RunFacts) -> dict[str, Any]:
    evaluation = facts.evaluation
    pairs, chance = evaluation["pairs"], evaluation["chance"]
    cutoffs = sorted({int(name.split("@")[1]) for name in evaluation["shared"] if name.startswith("x_to_y@")})
    rows = []
    for code, code_label in _CODES:
        for direction, label in _DIRECTIONS:
            measured = evaluation[code]
            values = [_percent(measured[direction]), *(_percent(measured[f"{direction}@{k}"]) for k in cutoffs)]
            if code == "shared":
                verdict, verdict_class = f"{measured[direction] / chance:,.0f} × chance", ""
            else:
                judged = leak(measured[direction], pairs)
                verdict, verdict_class = judged.statement, "good" if judged.within_noise else "bad"
            rows.append(
                {"code": code_label, "direction": label, "cells": values, "verdict": verdict, "verdict_class": verdict_class}
            )
    by_class = evaluation.get("gallery", evaluation)
    classes = [
        {
            "code": code_label,
            "direction": label,
            "cells": [f"{value:.4f}" for value in by_class[code]["by_class"][direction].values()],
        }
        for code, code_label in _CODES
        for direction, label in _DIRECTIONS
        if "by_class" in by_class[code]
    ]
    columns = list(by_class["shared"]["by_class"]["x_to_y"]) if classes else []
    explanation = (
        f"Row i of one domain belongs to row i of the other; each of {pairs:,} test queries ranks all {pairs:,} rows of the "
        f"other domain by {facts.metric} distance of codes. Chance is 1/{pairs:,} = {_percent(chance)}. The exclusive codes "
        "are the leak report: they should know nothing of the pair, so they should stay at chance."
    )
    return {
        "explanation": explanation,
        "columns": ["R@1", *(f"R@{k}" for k in cutoffs)],
        "rows": rows,
        "classes": classes,
        "class_columns": columns,
    }


def _parity_note(parity: Mapping[str, Any] | None) -> str:
    if parity is None or "retrieval" not in parity:
        return ""
    found = parity["retrieval"]
    agreement, recalls = _percent(found["top1_agreement"]), [_percent(found[name]) for name, _ in _DIRECTIONS]
    return (
        f"Retrieval repeated with codes from ONNX Runtime finds the same nearest row as the model's codes for {agreement} of "
        f"{found['queries']:,} queries, both directions together; R@1 is {recalls[0]} and {recalls[1]}."
    )


def _environment(facts: RunFacts) -> list[tuple[str, str]]:
    found = facts.environment
    rows = [("processor", found["cpu"]), ("cores", str(found["cores"]))]
    rows += [(name, str(found[name])) for name in ("threads", "accelerator", "platform") if name in found]
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())))
    rows.append(("seeds", f"{facts.preset.optim.seed} (training), {facts.preset.data.seed} (data)"))
    return rows


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
