"""``iiae evaluate``: retrieval across the domains, and the leak report."""

from __future__ import annotations

__all__ = ["Evaluate", "default_metric", "measure"]

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from iiae_fast.cli.output import percent, print_json, table
from iiae_fast.cli.sources import Split
from iiae_fast.config import ModelConfig
from iiae_fast.errors import InputError

if TYPE_CHECKING:
    from iiae_fast.data import Splits
    from iiae_fast.model import IIAE

Metric = Literal["auto", "sqeuclidean", "euclidean", "cosine", "inner_product"]


@dataclass(frozen=True)
class Evaluate:
    """Retrieve each sample's partner in the other domain: by shared codes, and by exclusive ones, which should fail.

    Attributes:
        run_dir: A run directory.
        split: Which pairs.
        metric: Distance of codes; auto is sqeuclidean for images and cosine for features.
        ks: Cut-offs of recall.
        data_root: Folder or file of the data, where they have moved.
        device: auto, cpu, cuda, cuda:1, …
        threads: CPU threads; by default all cores.
        json: Print JSON.
    """

    run_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    split: Split = "test"
    metric: Metric = "auto"
    ks: tuple[int, ...] = (1, 5, 10)
    data_root: str | None = None
    device: str = "auto"
    threads: int | None = None
    json: bool = False

    def run(self) -> int:
        """Encode, search, print."""
        from iiae_fast import data
        from iiae_fast.cli.runs import open_model, open_preset

        if not self.ks or min(self.ks) < 1:
            raise InputError(f"--ks {' '.join(map(str, self.ks))}: accepted are whole numbers of at least 1")
        model, preset = open_model(self.run_dir, self.device, self.threads), open_preset(self.run_dir)
        config = preset.data if self.data_root is None else dataclasses.replace(preset.data, root=self.data_root)
        metric = default_metric(model.config) if self.metric == "auto" else self.metric
        measured = measure(model, data.load(config), self.split, metric, self.ks)
        if self.json:
            print_json({"run": str(self.run_dir), "split": self.split, "metric": metric, "retrieval": measured})
        else:
            show(f"{self.run_dir}, {measured['pairs']:,} {self.split} pairs, {metric}", measured)
        return 0


def default_metric(config: ModelConfig) -> str:
    """How the published experiments compare codes."""
    return "cosine" if config.family == "feature" else "sqeuclidean"


def measure(model: IIAE, splits: Splits, split: Split, metric: str, ks: tuple[int, ...]) -> dict[str, Any]:
    """What ``training.evaluate`` says of a split, with ``"gallery"`` beside it where the test set has one, and ``"leak"``.

    ``leak`` holds by direction ``hits``, ``p_value`` and ``within_noise`` of the exclusive codes (``reports.leak``).
    """
    from iiae_fast import training
    from iiae_fast.reports.leak import leak

    measured = training.evaluate(model, getattr(splits, split), metric=metric, ks=ks)
    if split == "test" and splits.gallery is not None:
        measured["gallery"] = training.evaluate(model, splits.gallery, metric=metric)
    judged = {direction: leak(measured["exclusive"][direction], measured["pairs"]) for direction in ("x_to_y", "y_to_x")}
    measured["leak"] = {
        direction: {"hits": found.hits, "p_value": found.p_value, "within_noise": found.within_noise}
        for direction, found in judged.items()
    }
    return measured


def show(title: str, measured: dict[str, Any]) -> None:
    """Print a measurement as tables."""
    from iiae_fast.reports.leak import leak

    cutoffs = sorted({int(name.split("@")[1]) for name in measured["shared"] if name.startswith("x_to_y@")})
    rows = []
    for code in ("shared", "exclusive"):
        for direction, label in (("x_to_y", "x → y"), ("y_to_x", "y → x")):
            found = measured[code]
            rows.append((code, label, percent(found[direction]), *(percent(found[f"{direction}@{k}"]) for k in cutoffs)))
    table(title, ("codes", "direction", ">R@1", *(f">R@{k}" for k in cutoffs)), rows)
    for direction, label in (("x_to_y", "x → y"), ("y_to_x", "y → x")):
        print(f"leak {label}: {leak(measured['exclusive'][direction], measured['pairs']).statement}")
    by_class = measured.get("gallery", measured)
    if "by_class" in by_class["shared"]:
        names = list(by_class["shared"]["by_class"]["x_to_y"])
        rows = [
            (code, label, *(f"{by_class[code]['by_class'][direction][name]:.4f}" for name in names))
            for code in ("shared", "exclusive")
            for direction, label in (("x_to_y", "x → y"), ("y_to_x", "y → x"))
        ]
        table("by class", ("codes", "direction", *(f">{name}" for name in names)), rows)
