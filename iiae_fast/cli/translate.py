"""``iiae translate``: samples of one domain carried into the other."""

from __future__ import annotations

__all__ = ["Translate"]

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from iiae_fast.cli.output import save_npy, spans
from iiae_fast.cli.sources import Source, Split, check_seed, open_source, split_source
from iiae_fast.errors import InputError

if TYPE_CHECKING:
    import torch

    from iiae_fast.model import IIAE

_BATCH = 64


@dataclass(frozen=True)
class Translate:
    """Translate samples of one domain into the other: the shared code of the source, an exclusive code of the target.

    Attributes:
        run_dir: A run directory.
        samples: Images, folders of images, a .npy or a .npz file; none: the first pairs of a split.
        split: Which split, where no files are given.
        count: How many of its pairs.
        to: The target domain.
        style: prior (the exclusive code is drawn from N(0, I)), or an image (a .npy file of one row for features) of the
            target domain whose exclusive code is used.
        draws: Translations of each sample, for the prior.
        seed: Of the prior's draws.
        out: A .png file (one sheet: source, translations, true partner where it is known), or a directory that gets one file
            for each translation. For features a .npy file. By default a sheet (or file) in the run directory.
        device: auto, cpu, cuda, cuda:1, …
        threads: CPU threads; by default all cores.
    """

    run_dir: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    samples: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[PATH ...]")]] = ()
    split: Split = "test"
    count: int = 8
    to: Literal["y", "x"] = "y"
    style: str = "prior"
    draws: int = 1
    seed: int = 0
    out: Path | None = None
    device: str = "auto"
    threads: int | None = None

    def run(self) -> int:
        """Translate and write."""
        import torch

        from iiae_fast.cli.runs import open_model

        for name in ("count", "draws"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: accepted is a whole number of at least 1")
        check_seed(self.seed)
        if self.style != "prior" and self.draws > 1:
            raise InputError(f"--draws {self.draws}: a style reference gives one translation of each sample")
        model = open_model(self.run_dir, self.device, self.threads)
        features = model.config.family == "feature"
        out = self.out or self.run_dir / (f"translated_to_{self.to}" + (".npy" if features else ".png"))
        if features != (out.suffix == ".npy") or (features and self.draws > 1):
            wanted = "one .npy file, of one draw" if features else "a .png file or a directory"
            raise InputError(f"--out {out}: translated {'features' if features else 'images'} are written as {wanted}")

        source_domain = "x" if self.to == "y" else "y"
        source = self._source(model, source_domain)
        style = self._style(model)
        generator = torch.Generator(next(model.parameters()).device).manual_seed(self.seed)
        sources, partners, translated = [], [], []
        for span in spans(len(source), _BATCH, "translating"):
            batch = source.fetch(span)
            sources.append(batch[source_domain])
            partners += [batch[self.to]] if self.to in batch else []
            names = [source.names[row] for row in span]
            draws = [_translate(model, batch[source_domain], names, style, self.to, generator) for _ in range(self.draws)]
            translated.append(np.stack(draws, axis=1))  # (B, draws, …)
        results = np.concatenate(translated)
        if features:
            save_npy(out, results[:, 0])
        elif out.suffix.lower() == ".png":
            self._save_sheet(out, np.concatenate(sources), results, np.concatenate(partners) if partners else None, style)
        else:
            self._save_images(out, source, results)
        print(f"{len(results):,} samples translated to {self.to}: {out}")
        return 0

    def _source(self, model: IIAE, domain: str) -> Source:
        if self.samples:
            return open_source(self.samples, (domain,), model.config)
        from iiae_fast import data
        from iiae_fast.cli.runs import open_preset

        config = open_preset(self.run_dir).data
        return split_source(getattr(data.load(config), self.split), config, self.split, self.count)

    def _style(self, model: IIAE) -> np.ndarray | None:
        if self.style == "prior":
            return None
        source = open_source([Path(self.style)], (self.to,), model.config)
        if len(source) != 1:
            raise InputError(f"--style {self.style}: holds {len(source)} samples, accepted is one")
        return source.fetch(np.arange(1))[self.to]

    def _save_sheet(
        self, out: Path, sources: np.ndarray, results: np.ndarray, partners: np.ndarray | None, style: np.ndarray | None
    ) -> None:
        from iiae_fast.reports.grids import Tile, compose, save_png

        rows: list[list[Tile | None]] = [[Tile(source), *map(Tile, draws)] for source, draws in zip(sources, results)]
        labels = ["y" if self.to == "x" else "x"]
        labels += [f"to {self.to}"] if results.shape[1] == 1 else [f"draw {number + 1}" for number in range(results.shape[1])]
        if partners is not None:
            rows = [[*row, Tile(partner)] for row, partner in zip(rows, partners)]
            labels.append(f"true {self.to}")
        if style is not None:
            rows = [[*row, Tile(style[0]) if index == 0 else None] for index, row in enumerate(rows)]
            labels.append("style")
        save_png(out, compose(rows, column_labels=labels))

    def _save_images(self, out: Path, source: Source, results: np.ndarray) -> None:
        from iiae_fast.reports.grids import save_png

        if len(set(source.names)) < len(source.names):
            twice = next(name for name in source.names if list(source.names).count(name) > 1)
            raise InputError(f"two samples are named {twice}: their translations would overwrite each other in {out}")
        for name, draws in zip(source.names, results):
            for number, image in enumerate(draws, start=1):
                suffix = f"_{number}" if len(draws) > 1 else ""
                image = np.ascontiguousarray(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0))
                save_png(out / f"{name}_to_{self.to}{suffix}.png", image)


def _translate(
    model: IIAE,
    batch: np.ndarray,
    names: list[str],
    style: np.ndarray | None,
    to: Literal["x", "y"],
    generator: torch.Generator,
) -> np.ndarray:
    import torch

    from iiae_fast.reports.grids import to_images

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(generator.device)

    source = "x" if to == "y" else "y"
    reference = None if style is None else tensor(style)
    with torch.inference_mode():
        values = model.translate(**{source: tensor(batch)}, style=reference, to=to, generator=generator)
    finite = torch.isfinite(values).flatten(1).all(1)
    if not finite.all():
        raise InputError(f"the model's translation of sample {names[int(finite.int().argmin())]} to {to} is not finite")
    if model.config.family != "feature":
        return to_images(values)
    features: np.ndarray = values.float().cpu().numpy()
    return features
