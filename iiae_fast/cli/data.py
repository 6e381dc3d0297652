"""``iiae data``: what a data set holds."""

from __future__ import annotations

__all__ = ["Data"]

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import tyro

from iiae_fast import presets
from iiae_fast.cli.output import print_json, table
from iiae_fast.config import DataConfig, DataKind
from iiae_fast.errors import ConfigError


@dataclass(frozen=True)
class Data:
    """Describe the splits of a data set and draw a contact sheet of its training pairs.

    Attributes:
        name: A kind of data (digits-cdcb, mnist-cdcb, side-by-side, two-folders, views, features), or a preset.
        root: Folder or file; by default the preset's, or the environment variable IIAE_DATA.
        image_size: Side to which images are brought.
        swap: Exchange the two domains.
        seed: Of splits and colours.
        count: Pairs on the contact sheet.
        out: The sheet's file; by default NAME.png, and nothing for features.
        json: Print JSON.
    """

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="KIND|PRESET")]]
    root: str | None = None
    image_size: int | None = None
    swap: bool = False
    seed: int | None = None
    count: int = 32
    out: Path | None = None
    json: bool = False

    def run(self) -> int:
        """Load, describe, draw."""
        from iiae_fast import data
        from iiae_fast.reports.grids import save_png

        if self.count < 1:
            raise ConfigError(f"--count {self.count}: accepted is a whole number of at least 1")
        config = self._config()
        splits = data.load(config)
        rows = data.describe(splits)
        sheet = None
        if config.kind != "features":
            sheet = save_png(self.out or Path(f"{self.name}.png"), data.contact_sheet(splits.train, self.count))
        elif self.out is not None:
            raise ConfigError("--out: features have no picture")
        if self.json:
            print_json({"splits": [row._asdict() for row in rows], "contact_sheet": None if sheet is None else str(sheet)})
            return 0
        body = [(row.split, f"{row.pairs:,}", row.x, row.y, str(row.classes or "–")) for row in rows]
        table(f"{self.name} (seed {config.seed})", ("split", ">pairs", "x", "y", ">classes"), body)
        if sheet is not None:
            print(f"contact sheet of {min(self.count, len(splits.train))} training pairs, x above y: {sheet}")
        return 0

    def _config(self) -> DataConfig:
        kinds = get_args(DataKind)
        if self.name in presets.names():
            config = presets.get(self.name).data
        elif self.name in kinds:
            config = DataConfig(self.name)  # type: ignore[arg-type]
        else:
            accepted = ", ".join(dict.fromkeys([*kinds, *presets.names()]))
            raise ConfigError(f"unknown data {self.name!r}; accepted are {accepted}")
        return dataclasses.replace(
            config,
            root=config.root if self.root is None else self.root,
            image_size=config.image_size if self.image_size is None else self.image_size,
            seed=config.seed if self.seed is None else self.seed,
            swap=config.swap or self.swap,
        )
