"""``iiae train``."""

from __future__ import annotations

__all__ = ["Train"]

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from iiae_fast import presets
from iiae_fast.cli.output import percent, print_json, table
from iiae_fast.cli.runs import record_command
from iiae_fast.config import DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, Preset, TrainingOptions
from iiae_fast.errors import ConfigError


@dataclass(frozen=True)
class Train:
    """Train a preset.

    Attributes:
        model: The networks.
        objective: The loss.
        optim: Adam and the schedule.
        data: Where pairs come from.
        name: The preset's.
        options: How steps are computed.
        image_size: Side of the images, of model and data; at 64 and below, defaults are those for small machines.
        data_root: Folder or file of the data: the same as --data.root.
        run_dir: Where checkpoints, the log and the best model go; by default runs/PRESET.
        resume: Go on from the last checkpoint of the run directory.
        device: auto, cpu, cuda, cuda:1, …
        threads: CPU threads; by default all cores.
        checkpoint_seconds: Time between two checkpoints.
        log_every: Steps between two lines of the log.
        backend: Kernels of the latents and losses.
        profile: Do not train: profile so many steps, print where their time goes, write trace.json into the run directory.
        quiet: No progress bar.
        json: Print the outcome as JSON.
    """

    model: ModelConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    data: DataConfig
    name: tyro.conf.Suppress[str]
    options: Annotated[TrainingOptions, tyro.conf.arg(name="")] = field(default_factory=TrainingOptions)
    image_size: int | None = None
    data_root: str | None = None
    run_dir: Path | None = None
    resume: bool = False
    device: str = "auto"
    threads: int | None = None
    checkpoint_seconds: float = 60.0
    log_every: int = 20
    backend: Literal["auto", "reference", "triton"] = "auto"
    profile: int | None = None
    quiet: bool = False
    json: bool = False

    @classmethod
    def of(cls, name: str, image_size: int | None = None) -> Train:
        """The command with a preset's settings at an image size as they are; presets of features have none."""
        preset = presets.get(name)
        if preset.model.family != "feature":
            preset = presets.get(name, image_size)
        return cls(preset.model, preset.objective, preset.optim, preset.data, name)

    def preset(self) -> Preset:
        """The settings that were asked for.

        Raises:
            ConfigError: Two options contradict each other.
        """
        model, data = self.model, self.data
        if self.image_size is not None:
            if model.family == "feature":
                raise ConfigError(f"--image-size {self.image_size}: {self.name} has features, no images")
            for option, given in (("--model.image-size", model.image_size), ("--data.image-size", data.image_size)):
                if given != self.image_size:
                    raise ConfigError(f"--image-size {self.image_size} and {option} {given} contradict each other")
        if model.family != "feature" and model.image_size != data.image_size:
            sizes = f"the model takes images of {model.image_size} pixels, the data have {data.image_size}"
            raise ConfigError(f"{sizes}: set both with --image-size")
        if self.data_root is not None:
            if data.root not in (presets.get(self.name).data.root, self.data_root):
                raise ConfigError(f"--data-root {self.data_root} and --data.root {data.root} contradict each other")
            data = dataclasses.replace(data, root=self.data_root)
        return Preset(self.name, model, self.objective, self.optim, data)

    def run(self) -> int:
        """Train; 130 when it was interrupted (after saving)."""
        from iiae_fast import training

        preset = self.preset()
        run_dir = self.run_dir or Path("runs", self.name)
        if self.profile is not None:
            return self._profile(preset, run_dir / "trace.json", self.profile)
        result = training.train(
            preset,
            run_dir,
            resume=self.resume,
            device=self.device,
            threads=self.threads,
            checkpoint_seconds=self.checkpoint_seconds,
            log_every=self.log_every,
            progress=not self.quiet,
            backend=self.backend,
            options=self.options,
        )
        record_command(run_dir)
        if self.json:
            print_json({**dataclasses.asdict(result), "run_dir": str(run_dir)})
        elif result.interrupted:
            again = "the same command" if self.resume else "the same command with --resume"
            print(f"interrupted after step {result.step:,}; {again} goes on from there")
        else:
            rate = f"{result.seconds:.0f} s, {result.pairs_per_second:,.0f} pairs/s"
            print(f"{result.step:,} steps, {result.epoch} epochs ({rate}); next: iiae evaluate {run_dir}")
        return 130 if result.interrupted else 0

    def _profile(self, preset: Preset, trace: Path, steps: int) -> int:
        from iiae_fast import training

        found = training.profile(
            preset, steps, trace, device=self.device, threads=self.threads, backend=self.backend, options=self.options
        )
        if self.json:
            print_json({**dataclasses.asdict(found), "achieved": found.achieved, "trace": str(trace)})
            return 0
        rows = [(part, f"{1e3 * share * found.seconds:.2f}", percent(share)) for part, share in found.parts.items()]
        rows.append(("a step", f"{1e3 * found.seconds:.2f}", f"{found.pairs / found.seconds:,.1f} pairs/s"))
        table(f"{found.steps} steps of {found.pairs} pairs, {found.options.precision}", ("", ">ms", ">share"), rows)
        facts = [
            ("operators a step", f"{found.operators:,}" if found.operators else "one graph"),
            ("kernel launches a step", f"{found.launches:,.0f}" if found.launches else "none, on a CPU"),
            ("counted, convolutions and dense layers", f"{found.flops / 1e9:,.2f} GFLOP"),
            ("achieved", f"{found.achieved / 1e9:,.1f} GFLOP/s"),
            ("read and written by operators, uncached", f"{found.bytes / 1e9:,.2f} GB"),
        ]
        table("", ("", ">"), facts)
        print(f"trace: {found.trace} (open it in ui.perfetto.dev)")
        return 0
