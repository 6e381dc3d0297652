"""``iiae report``: the page about a run."""

from __future__ import annotations

__all__ = ["Report", "write_report"]

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from iiae_fast.cli.evaluate import default_metric, measure
from iiae_fast.cli.sources import check_seed
from iiae_fast.config import Preset
from iiae_fast.errors import InputError
from iiae_fast.storage import load_json

if TYPE_CHECKING:
    from iiae_fast.data import Splits
    from iiae_fast.model import IIAE

KS = (1, 5, 10)
# The log's terms, in the order of their charts; a term that is not named here follows under its own name.
_TERMS = {
    "total": "Loss",
    "rec_x": "Reconstruction of x",
    "rec_y": "Reconstruction of y",
    "kl_x": "KL(q(z_x|x) ‖ p)",
    "kl_y": "KL(q(z_y|y) ‖ p)",
    "kl_s": "KL(q(z_s|x,y) ‖ p)",
    "kl_s_rx": "KL(q(z_s|x,y) ‖ r(z_s|x))",
    "kl_s_ry": "KL(q(z_s|x,y) ‖ r(z_s|y))",
    "x_to_y": "Validation R@1, x → y",
    "y_to_x": "Validation R@1, y → x",
    "exclusive_x_to_y": "Validation R@1, exclusive codes, x → y",
    "exclusive_y_to_x": "Validation R@1, exclusive codes, y → x",
    "kl_annealing": "KL annealing a_t",
    "lr": "Learning rate",
    "pairs_per_second": "Pairs a second",
}


@dataclass(frozen=True)
class Report:
    """Write one self-contained HTML page about a run: retrieval and leak, neighbours, translations, curves, parity.

    Attributes:
        run_dir: A run directory.
        out: File to write; by default RUN/report.html.
        neighbours: Queries on each contact sheet, failed ones first.
        seed: Of the translations' prior samples.
        device: auto, cpu, cuda, cuda:1, …
        threads: CPU threads; by default all cores.
    """

    run_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    out: Path | None = None
    neighbours: int = 12
    seed: int = 0
    device: str = "auto"
    threads: int | None = None

    def run(self) -> int:
        """Measure, draw, write."""
        from iiae_fast import data
        from iiae_fast.cli.runs import open_model, open_preset

        if self.neighbours < 1:
            raise InputError(f"--neighbours {self.neighbours}: accepted is a whole number of at least 1")
        check_seed(self.seed)
        model, preset = open_model(self.run_dir, self.device, self.threads), open_preset(self.run_dir)
        splits = data.load(preset.data)
        measured = measure(model, splits, "test", default_metric(model.config), KS)
        out = self.out or self.run_dir / "report.html"
        write_report(out, self.run_dir, model, preset, splits, measured, neighbours=self.neighbours, seed=self.seed)
        print(f"report: {out}")
        return 0


def write_report(
    out: Path,
    run_dir: Path,
    model: IIAE,
    preset: Preset,
    splits: Splits,
    measured: dict[str, Any],
    neighbours: int = 12,
    seed: int = 0,
) -> None:
    """Draw everything, write the page, and beside it each grid as ``figures/NAME.png``.

    Args:
        out: The file.
        run_dir: Of the log, the exported graphs and the commands.
        model: In evaluation mode.
        preset: Its settings.
        splits: Its data.
        measured: From ``measure`` on the test split, with ``default_metric``.
        neighbours: Queries on each contact sheet.
        seed: Of the prior samples.
    """
    from iiae_fast import training
    from iiae_fast.cli.deploy import ONNX_DIRECTORY, read_parity
    from iiae_fast.cli.runs import commands
    from iiae_fast.reports import curves, environment, figures, grids, html
    from iiae_fast.storage import write_atomic

    metric = default_metric(model.config)
    groups = []
    if model.config.family != "feature":
        groups = [figures.neighbour_figures(splits.test, training.encode(model, splits.test), metric, neighbours)]
        groups += figures.picture_groups(model, splits.test, seed)
    log_file = run_dir / "log.jsonl"
    log = curves.read_log(log_file) if log_file.exists() else {}
    facts = html.RunFacts(
        run_dir=str(run_dir),
        preset=preset,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        training={**_training_facts(run_dir, log), "pairs": len(splits.train)},
        evaluation=measured,
        metric=metric,
        groups=groups,
        charts=curves.charts(log, _TERMS),
        parity=read_parity(run_dir / ONNX_DIRECTORY),
        environment=environment.describe(),
        commands=commands(run_dir),
    )
    for group in groups:
        for figure in group.figures:
            grids.save_png(out.parent / "figures" / f"{figure.name}.png", figure.sheet)
    write_atomic(out, html.render(facts).encode())


def _training_facts(run_dir: Path, log: Mapping[str, Mapping[str, list[tuple[float, float]]]]) -> dict[str, Any]:
    """What the run directory says of its training: from the log, and from the best model's own notes."""
    from iiae_fast.cli.runs import CONFIG_FILE

    facts: dict[str, Any] = {}
    if "seconds" in log:
        last = max(points[-1] for points in log["seconds"].values())
        facts |= {"steps": int(last[0]), "seconds": last[1]}
        facts["epochs"] = max(points[-1] for points in log["epoch"].values())[1]
    if "pairs_per_second" in log:
        facts["pairs_per_second"] = statistics.median(rate for _, rate in log["pairs_per_second"]["training"])
    best = load_json(run_dir / CONFIG_FILE).get("training", {}).get("best")
    if best is not None:
        facts["best_step"] = best["step"]
    return facts
