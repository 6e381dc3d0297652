"""A run under way: steps, validations and checkpoints, in the order in which they can be broken off and taken up again."""

from __future__ import annotations

__all__ = ["Run", "TrainingResult", "noise_seed", "rank"]

import dataclasses
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from iiae_fast import data, objectives
from iiae_fast.config import Preset, TrainingOptions
from iiae_fast.data import Splits, draws
from iiae_fast.errors import NonFiniteLossError, OutOfMemoryError
from iiae_fast.model import IIAE
from iiae_fast.storage import save_json
from iiae_fast.training import setup
from iiae_fast.training.checkpoint import CHECKPOINT_FILE, Checkpoint, RunState, gather, restore, save_checkpoint
from iiae_fast.training.clock import Clock
from iiae_fast.training.costs import Room, free_memory, is_out_of_memory
from iiae_fast.training.evaluation import Validation, validate
from iiae_fast.training.graph import GraphedStep
from iiae_fast.training.interrupts import Interrupts
from iiae_fast.training.log import RunLog
from iiae_fast.training.losses import LossBuffer, first_non_finite
from iiae_fast.training.prefetch import DeviceBatch, prefetch
from iiae_fast.training.progress import ProgressDisplay
from iiae_fast.training.resident import make_resident
from iiae_fast.training.step import TrainingStep, learning_rate


@dataclass(frozen=True)
class TrainingResult:
    """How a call of ``train`` ended.

    Attributes:
        run_dir: Where everything lies.
        step: Optimizer steps taken, over all sessions.
        epoch: Passes completed.
        finished: Whether the whole run is done.
        interrupted: Whether SIGINT or SIGTERM ended this call.
        seconds: Wall-clock seconds of the run, over all sessions.
        cpu_seconds: Processor seconds of the process, alike.
        pairs_per_second: Pairs trained on per second, validation and checkpoints left out.
        best: The best validation, None before the first: ``metric`` (``"recall@1"``, or ``"loss"`` where the objective does not
            train r(z_s|x) and r(z_s|y)), its ``value``, ``loss``, ``step``.
    """

    run_dir: Path
    step: int
    epoch: int
    finished: bool
    interrupted: bool
    seconds: float
    cpu_seconds: float
    pairs_per_second: float
    best: dict[str, Any] | None


def noise_seed(seed: int, step: int) -> int:
    """Seed of the latents' noise in the step that follows ``step`` others: 63 bits, a pure function."""
    return int(draws.bits(seed, "noise", None, np.array([step]), 1)[0, 0]) >> 1


def rank(best: dict[str, Any]) -> tuple[float, float]:
    """Order of validations, greater is better: by R@1, then by loss; or by loss alone. See ``train``."""
    return (best["value"] if best["metric"] == "recall@1" else 0.0, -best["loss"])


class Run:
    """A model in training: its data, optimizer, place, log and clock."""

    def __init__(
        self,
        preset: Preset,
        run_dir: Path,
        splits: Splits,
        device: torch.device,
        checkpoint: Checkpoint | None,
        log_every: int,
        backend: str,
        options: TrainingOptions,
    ) -> None:
        optim = preset.optim
        self.preset, self.run_dir, self.splits, self.device, self.options = preset, run_dir, splits, device, options
        self.log_every = log_every
        self.sampler = data.sampler_for(splits.train, optim, preset.data)
        batches, size = self.sampler.batches(0).shape
        self.epoch_steps, self.batch_size = setup.steps_of_epoch(batches, options.accumulate), size * options.accumulate
        self.steps = self.epoch_steps * optim.epochs
        self.validation_interval = setup.validation_interval(self.epoch_steps, self.batch_size, len(splits.valid))

        free = free_memory(device)
        torch.manual_seed(optim.seed)
        self.model = setup.make_model(preset, options, device, backend)
        step = TrainingStep(self.model, preset.objective, optim, options, len(splits.train))
        self.optimizer = step.optimizer
        self.average = self._average(step) if options.ema_decay else None
        self.take_step = GraphedStep(step) if options.cuda_graph else step
        self.room = Room(preset, options, size, free)
        self.resident = make_resident(splits.train, device, options.resident)
        self.facts = {
            "train_pairs": len(splits.train),
            "threads": torch.get_num_threads(),
            "options": dataclasses.asdict(options),
        }
        if checkpoint is None:
            self.state, self.losses = RunState(), LossBuffer(log_every)
            self.saved_step: int | None = None
        else:
            restore(checkpoint, self.model, self.optimizer, device, self.average)
            self.state, self.losses = checkpoint.state, LossBuffer(log_every, checkpoint.loss_names, checkpoint.loss_rows)
            self.saved_step = checkpoint.state.step

    def open(self) -> None:
        """Begin to write into the run directory."""
        setup.remove_leftovers(self.run_dir)
        self._write_description()
        self.log = RunLog(self.run_dir, self.state.step, self.state.validated)
        self.clock = Clock(self.state)

    def loop(
        self,
        display: ProgressDisplay,
        interrupts: Interrupts,
        checkpoint_seconds: float,
        stop_after: float | None,
        enough: Callable[[IIAE], bool] | None = None,
    ) -> None:
        """Steps, validations and checkpoints until the end, a signal, the time allowed, or ``enough`` says so."""
        if not self.log.has_tensorboard:
            display.say("TensorBoard is not installed: curves go to log.jsonl alone (pip install 'iiae_fast[train]')")
        display.say(f"{self.options.precision} on {self.device}; {self.room}")
        state, clock = self.state, self.clock

        def stop() -> bool:
            return interrupts.announce() or (stop_after is not None and clock.session() >= stop_after)

        next_save = clock.session() + checkpoint_seconds
        # Consumed in the background, so it looks at nothing that a step changes.
        plan = setup.plan(self.sampler, self.options.accumulate, self.preset.optim.epochs, state.epoch, state.position)
        batches = prefetch(self.splits.train, plan, self.device) if self.resident is None else self.resident.batches(plan)
        with closing(batches):
            while True:
                if self._validation_is_due() and not stop():
                    self._validate(display, stop)
                    if enough is not None and not self._validation_is_due() and enough(self._result()):
                        break
                if state.step == self.steps or stop():
                    break
                if clock.session() >= next_save:
                    self._save()
                    next_save = clock.session() + checkpoint_seconds
                self._step(next(batches))
                if state.step % self.log_every == 0:
                    self._write_losses(display)
                rate = clock.steps_per_second() * self.batch_size
                display.update(state.step, state.epoch, rate, clock.seconds_left(self.steps))
        self._save()
        if state.best is None:
            self._save_model()

    def result(self, interrupted: bool) -> TrainingResult:
        """What ``train`` returns."""
        state = self.state
        active = state.seconds - state.pause_seconds
        return TrainingResult(
            run_dir=self.run_dir,
            step=state.step,
            epoch=state.epoch,
            finished=state.step == self.steps and not self._validation_is_due(),
            interrupted=interrupted,
            seconds=state.seconds,
            cpu_seconds=state.cpu_seconds,
            pairs_per_second=state.step * self.batch_size / active if active > 0 else 0.0,
            best=state.best,
        )

    def _step(self, batch: DeviceBatch) -> None:
        """One optimizer step, over one batch or several. Nothing waits for the device: losses stay there."""
        state, count = self.state, self.options.accumulate
        seeds = [noise_seed(self.preset.optim.seed, state.step * count + number) for number in range(count)]
        try:
            terms = self.take_step(batch, seeds, state.step, self._learning_rate(state.step))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(f"out of memory in step {state.step + 1}: {self.room}; {self.room.advice()}") from error
        self.losses.append(terms)
        state.step += 1
        state.epoch, state.position = divmod(state.step, self.epoch_steps)

    def _learning_rate(self, step: int) -> float:
        return learning_rate(self.preset.optim, self.options, self.batch_size, step, self.steps)

    def _average(self, step: TrainingStep) -> IIAE:
        """A second model whose weights follow the first one's."""
        average = setup.make_model(self.preset, self.options, self.device, self.model.backend)
        average.load_state_dict(self.model.state_dict())
        step.set_averages([parameter.detach() for parameter in average.parameters()])
        return average

    def _result(self) -> IIAE:
        """The model that is validated and saved."""
        if self.average is None:
            return self.model
        for ours, theirs in zip(self.average.buffers(), self.model.buffers()):
            ours.copy_(theirs)  # BatchNorm's statistics are moving averages already
        return self.average

    def _write_losses(self, display: ProgressDisplay) -> None:
        """One log line of the interval's means; the only place where steps are waited for."""
        self._require_finite_losses()
        means = self.losses.means()
        self.losses.clear()
        rate = self.clock.interval_steps_per_second() * self.batch_size
        last = self.state.step - 1
        annealing = float(objectives.kl_annealing(last, self.preset.objective.kl_annealing_steps))
        line = {**self._place(), **means, "lr": self._learning_rate(last), "kl_annealing": annealing}
        self.log.write({**line, "pairs_per_second": rate})
        display.loss(means["total"])

    def _place(self) -> dict[str, float]:
        self.clock.stamp()
        epoch = self.state.step / self.epoch_steps
        return {"step": self.state.step, "epoch": round(epoch, 4), "seconds": round(self.state.seconds, 3)}

    def _validation_is_due(self) -> bool:
        step, interval = self.state.step, self.validation_interval
        if interval is None or step == self.state.validated:
            return False
        return step % interval == 0 or step == self.steps

    def _validate(self, display: ProgressDisplay, stop: Callable[[], bool]) -> None:
        if self.saved_step is None:
            self._save()  # no model of a run without a checkpoint to go on from
        with self.clock.pause():
            self._require_finite()
            found = validate(self._result(), self.splits.valid, self.preset.objective, len(self.splits.train), stop)
            if found is None:
                return  # the checkpoint that follows knows that this validation is still to come
            for name, value in sorted(found.losses.items(), key=lambda loss: loss[0] == "total"):  # a term before their sum
                if not math.isfinite(value):
                    self._fail(f"{name} of the validation pairs", value, self.state.step)
            self.state.validated = self.state.step
            best = self._is_best(found)
            if best:
                self._save_model()
            recalls = {**found.shared, **{f"exclusive_{direction}": value for direction, value in found.exclusive.items()}}
            self.log.write({**self._place(), "event": "validation", **recalls, **found.losses, "best": best})
        percent = " / ".join(f"{100 * value:.2f}" for value in found.shared.values())
        display.say(
            f"step {self.state.step}: validation R@1 {percent} %, loss {found.losses['total']:.4g}{', best' if best else ''}"
        )

    def _is_best(self, found: Validation) -> bool:
        """Compare a validation with the best one so far, and note it if it is better."""
        objective, loss = self.preset.objective, found.losses["total"]
        trains_r = objective.name == "iiae" and objective.interaction_weight > 0
        metric, value = ("recall@1", found.recall) if trains_r else ("loss", loss)
        candidate = {"metric": metric, "value": value, "loss": loss, "step": self.state.step}
        if self.state.best is not None and not rank(candidate) > rank(self.state.best):
            return False
        self.state.best = candidate
        return True

    def _save_model(self) -> None:
        """Write the model as the run's result."""
        training = {"step": self.state.step, "epoch": self.state.step / self.epoch_steps, "best": self.state.best}
        self._result().save(self.run_dir, preset=self.preset.to_dict(), training=training)

    def _save(self) -> None:
        with self.clock.pause():
            tensors = self._require_finite()
            self.clock.stamp()
            self.log.sync()
            losses = self.losses
            save_checkpoint(
                self.run_dir / CHECKPOINT_FILE,
                tensors,
                self.state,
                self.preset,
                self.facts,
                losses.names,
                losses.rows(),
                self.device,
            )
            self.saved_step = self.state.step

    def _require_finite(self) -> dict[str, torch.Tensor]:
        """The tensors a checkpoint holds, if all of them, and all losses not yet looked at, are finite."""
        self._require_finite_losses()
        tensors = gather(self.model, self.optimizer, self.average)
        name = first_non_finite(tensors)
        if name is not None:
            self._fail(name, math.nan, self.state.step)
        return tensors

    def _require_finite_losses(self) -> None:
        bad = self.losses.first_non_finite()
        if bad is not None:
            name, value, ago = bad
            self._fail(name, value, self.state.step - ago)

    def _fail(self, name: str, value: float, step: int) -> NoReturn:
        path = self.run_dir / CHECKPOINT_FILE
        if self.saved_step is None:
            rest = f"No checkpoint was written yet. Start anew with a lower optim.lr (it is {self.preset.optim.lr:g})."
        else:
            rest = (
                f"The last good checkpoint is {path} (step {self.saved_step}): resume from it, or, if the same happens again, "
                f"start anew with a lower optim.lr (it is {self.preset.optim.lr:g})."
            )
        what = "is not finite" if math.isnan(value) and "/" in name else f"became {value}"
        raise NonFiniteLossError(f"{name} {what} at step {step} of {self.steps}. {rest}")

    def _write_description(self) -> None:
        facts = {
            **self.facts,
            "valid_pairs": len(self.splits.valid),
            "batch_size": self.batch_size,
            "epoch_steps": self.epoch_steps,
            "steps": self.steps,
            "validation_interval": self.validation_interval,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "log_every": self.log_every,
        }
        save_json(self.run_dir / setup.RUN_FILE, setup.describe(self.preset, self.device, **facts))
