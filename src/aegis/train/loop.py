"""The one loop under every training: batches, a loss, an optimizer step, a log, a snapshot."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from aegis.errors import AegisError, StoppedError
from aegis.runs.events import Metrics, TrainingBegun
from aegis.runs.reporter import Advance, bar
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.state import OptimizerState, Part, RandomState, Values

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class Loss:
    """What an objective makes of one batch.

    Args:
        total: the scalar to minimise.
        parts: scalars for the log, without gradients.
        tokens: how many were read; a scalar.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    tokens: Tensor | int


@dataclass(frozen=True)
class StepLog:
    """One finished step. Times in seconds; `gradient_norm` before clipping.

    Args:
        extra: what the objective set or measured before the step.
    """

    step: int
    loss: float
    parts: dict[str, float]
    tokens: int
    seconds: float
    gradient_norm: float
    learning_rate: float
    extra: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return one flat line of history.jsonl."""
        flat = asdict(self)
        return {
            **{key: flat[key] for key in flat if key not in ("parts", "extra")},
            **self.parts,
            **self.extra,
        }

    def scalars(self) -> dict[str, float]:
        """Return the step's curves by name."""
        return {
            "loss": self.loss,
            **{f"parts/{name}": value for name, value in self.parts.items()},
            "gradient_norm": self.gradient_norm,
            "learning_rate": self.learning_rate,
            "tokens_per_second": self.tokens / self.seconds,
            **self.extra,
        }


class Objective(ABC, Generic[BatchT]):
    """What a training minimises.

    Steps are numbered from 0: the step is the whole data state, so that a training resumed at one
    reads what an uninterrupted one reads there.

    Args:
        name: sft, reward, ppo, dpo, grpo or rloo.
        label: of the progress bar.
        remedy: what to do when a loss is not finite.
        steps: of the whole training.
        optimizer: over everything that trains, each group with its highest learning rate.
        epoch_ends: numbers of steps after which an epoch is over, in order; empty for none.
    """

    name: str
    label: str
    remedy: str
    steps: int
    optimizer: torch.optim.Optimizer
    epoch_ends: Sequence[int] = ()

    @abstractmethod
    def parts(self) -> dict[str, Part]:
        """Return what a snapshot must hold besides optimizer, random generators and step logs."""

    @abstractmethod
    def batches(self, step: int) -> Sequence[BatchT]:
        """Return the batches whose gradients make this step; none to skip it."""

    @abstractmethod
    def loss(self, batch: BatchT, step: int) -> Loss:
        """Compute one batch's share of the step's loss, on tensors alone."""

    @abstractmethod
    def rate(self, step: int) -> float:
        """Return the share of each learning rate that this step takes."""

    def begin(self) -> None:
        """Do what comes once, before the first step of a new training."""

    def prepare(self, step: int, on_token: Callable[[], None]) -> dict[str, float]:
        """Set what depends on the step, sample what it needs; return numbers for its log.

        Args:
            on_token: to be called while sampling; it raises StoppedError to stop.
        """
        return {}

    def finish(self, step: int, log: StepLog | None) -> Iterable[Metrics]:
        """Do what comes after the step and yield what it measured; `log` is None if skipped."""
        if log:
            yield self.metrics(log)

    def metrics(self, log: StepLog) -> Metrics:
        """Return a step as an event."""
        return Metrics(
            training=self.name,
            step=log.step,
            steps=self.steps,
            epoch=self.epoch(log.step),
            samples=self.samples(log.step - 1),
            tokens=log.tokens,
            values=log.scalars(),
        )

    def history(self, logs: Sequence[StepLog]) -> list[Metrics]:
        """Return everything that was measured in the steps done, oldest first."""
        return [self.metrics(log) for log in logs]

    def measurements(self, done: int) -> int:
        """Return how many measurements so many steps make, where not each makes one."""
        return done

    def epoch(self, done: int) -> int | None:
        """Return the epoch, from 1, in which the last of so many steps lies."""
        return bisect_left(self.epoch_ends, done) + 1 if self.epoch_ends else None

    def samples(self, step: int) -> int | None:
        """Return how many examples or responses the step reads."""
        return None

    def note(self, log: StepLog | None) -> str:
        """Return what stands beside the progress bar."""
        return f"loss {log.loss:.3f}" if log else ""

    def place(self, step: int) -> str:
        """Return what the number of a step leaves open, for an error: ", update 2"."""
        return ""


class TrainLoop:
    """Takes an objective's steps, from the first or from where the newest snapshot stands."""

    def __init__(
        self, objective: Objective[Any], settings: LoopSettings, services: TrainServices
    ) -> None:
        self.objective, self.settings, self.services = objective, settings, services
        groups = objective.optimizer.param_groups
        self.rates = [group["lr"] for group in groups]
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.done = 0
        self.logs: list[StepLog] = []
        self.parts: dict[str, Part] = {
            **objective.parts(),
            "optimizer": OptimizerState(objective.optimizer),
            "random": RandomState(),
            "steps": Values(self._capture, self._restore),
        }

    def run(self) -> list[StepLog]:
        """Take every step that is still to be done; return the logs of all that were not skipped.

        Raises:
            StoppedError: if a stop was asked for; the state is saved.
            AegisError: if a loss or gradient is not finite; nothing is stepped then, and the last
                good snapshot stays.
        """
        objective, services = self.objective, self.services
        snapshots, reporter = services.snapshots, services.reporter
        if snapshots is None or snapshots.restore(self.parts) is None:
            torch.manual_seed(self.settings.seed)
            objective.begin()
            if snapshots:
                snapshots.begin(self.parts)
        begun = TrainingBegun(
            training=objective.name,
            done=objective.measurements(self.done),
            steps=objective.measurements(objective.steps),
            history=objective.history(self.logs),
        )
        reporter.emit(begun)
        with bar(objective.label, objective.steps, done=self.done, stoppable=False) as advance:
            while self.done < objective.steps:
                extra = self._prepare(advance)
                log = self._step(extra)
                self.done += 1
                if log:
                    self.logs.append(log)
                advance(note=objective.note(log))
                for event in objective.finish(self.done - 1, log):
                    reporter.emit(event)
                if snapshots:
                    ends = self.done in objective.epoch_ends
                    epoch = objective.epoch(self.done) if ends else None
                    last = self.done == objective.steps
                    snapshots.step_done(self.done, self.parts, epoch=epoch, last=last)
        return self.logs

    def _prepare(self, advance: Advance) -> dict[str, float]:
        """Let the objective sample; a stop within saves the state from before the first token."""
        snapshots, random_before = self.services.snapshots, RandomState().capture()

        def on_token() -> None:
            advance(0, note="sampling")
            if snapshots:
                snapshots.check()

        try:
            return self.objective.prepare(self.done, on_token)
        except StoppedError:
            RandomState().restore(random_before)
            if snapshots:
                snapshots.step_done(self.done, self.parts)
            raise

    def _step(self, extra: dict[str, float]) -> StepLog | None:
        """Take one optimizer step, unless the objective has no batch for it."""
        objective, optimizer, begun = self.objective, self.objective.optimizer, time.perf_counter()
        losses: list[Loss] = []
        for batch in objective.batches(self.done):
            losses.append(objective.loss(batch, self.done))
            losses[-1].total.backward()
        if not losses:
            return None
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm))
        value = sum(float(loss.total.detach()) for loss in losses)
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise AegisError(
                f"{objective.name.upper()} step {self.done + 1}{objective.place(self.done)}: loss "
                f"{value} and gradient norm {norm} must be finite; the last good snapshot is kept. "
                f"{objective.remedy} and run again"
            )
        share = objective.rate(self.done)
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return StepLog(
            step=self.done + 1,
            loss=value,
            parts=_means([loss.parts for loss in losses]),
            tokens=sum(int(loss.tokens) for loss in losses),
            seconds=time.perf_counter() - begun,
            gradient_norm=norm,
            learning_rate=optimizer.param_groups[0]["lr"],
            extra=extra,
        )

    def _capture(self) -> dict[str, Any]:
        return {"done": self.done, "logs": [vars(log) for log in self.logs]}

    def _restore(self, values: dict[str, Any]) -> None:
        self.done = int(values["done"])
        self.logs[:] = [StepLog(**row) for row in values["logs"]]


def _means(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    return {name: sum(float(row[name]) for row in rows) / len(rows) for name in rows[0]}


def detached(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same scalars without gradients."""
    return {name: part.detach() for name, part in parts.items()}


def cosine_share(step: int, steps: int, *, warmup: float) -> float:
    """Return the share of a learning rate that rises over `warmup` of the steps, then falls to 0.

    Args:
        warmup: share of the steps.
    """
    rise = round(warmup * steps)
    if step < rise:
        return step / max(1, rise)
    progress = (step - rise) / max(1, steps - rise)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
