"""TRL's trainers on our terms: our parameters, our order of data, our snapshots, no pickles, and
nothing sent anywhere.

TRL's trainers are transformers' `Trainer`, which knows the PEFT model alone. Gates and decision
head hang beside it, so the optimizer is made here, and gradients are clipped and cleared here. The
trainer always runs from its own step 0: resumed, it gets the rest of the plan, and everything else
that an unfinished training is comes out of the snapshot.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from aegis.errors import AegisError, StoppedError
from aegis.model.adapted import Adapted, parameters_by_kind
from aegis.runs.events import Metrics, TrainingBegun
from aegis.runs.reporter import Advance, bar
from aegis.train.services import TrainServices
from aegis.train.state import ModuleState, OptimizerState, Part, RandomState, SchedulerState, Values

# The trainer's own clock and counters start anew with it; a resumed log would differ from an uninterrupted one.
_NOT_LOGGED = ("epoch", "step_time", "num_tokens", "rewards/reward/mean", "rewards/reward/std")

Log = dict[str, Any]


def train_policy_only(adapted: Adapted) -> None:
    """LoRA and gates train; neither what the reference shares nor α nor the decision head, which
    stay as SFT left them."""
    adapted.train_only("default")
    adapted.head.requires_grad_(False)
    if adapted.rows:
        adapted.rows.requires_grad_(False)
    for gate in adapted.all_gates():
        gate.alpha.requires_grad_(False)


def make_policy_optimizer(adapted: Adapted, *, lr: float, gate_lr: float) -> torch.optim.AdamW:
    """AdamW over what `train_policy_only` left to train."""
    kinds = parameters_by_kind(adapted)
    rates = {"lora": lr, "gates": gate_lr}
    return torch.optim.AdamW(
        [
            {"params": kinds[kind], "lr": rate, "weight_decay": 0.0}
            for kind, rate in rates.items()
            if kinds[kind]
        ]
    )


class Ledger:
    """What a training is besides TRL's trainer, and its snapshots.

    Args:
        name: of the training, for people.
        setting: what to lower when a gradient is not finite.
        steps: optimizer steps of the whole training.
        samples: in a step; None where its log counts pairs.
    """

    def __init__(
        self,
        adapted: Adapted,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        *,
        name: str,
        setting: str,
        steps: int,
        seed: int,
        clip_norm: float,
        samples: int | None = None,
        services: TrainServices | None = None,
    ) -> None:
        self.adapted, self.optimizer, self.scheduler = adapted, optimizer, scheduler
        self.name, self.setting, self.steps, self.seed = name, setting, steps, seed % 2**32
        services = services or TrainServices()
        self.clip_norm, self.checkpoints, self.reporter = (
            clip_norm,
            services.snapshots,
            services.reporter,
        )
        self.samples = samples
        self.parameters: list[nn.Parameter] = [
            p for group in optimizer.param_groups for p in group["params"]
        ]
        self.logs: list[Log] = []
        self.stopped: StoppedError | None = None
        self.parts: dict[str, Part] = {
            "adapted": ModuleState(adapted, buffers_of=("head",)),
            "optimizer": OptimizerState(optimizer),
            "scheduler": SchedulerState(scheduler),
            "random": RandomState(),
            "steps": Values(
                lambda: self.logs, lambda rows: self.logs.__setitem__(slice(None), rows)
            ),
        }
        if self.checkpoints is None or self.checkpoints.restore(self.parts) is None:
            set_seed(self.seed)
            if self.checkpoints:
                self.checkpoints.begin(self.parts)
        self.random = RandomState().capture()
        self.advance: Advance = lambda *_, **__: None

    @property
    def done(self) -> int:
        """Optimizer steps that are behind."""
        return len(self.logs)

    def add(self, log: Log) -> None:
        """A step is over: log it, and save if it is time.

        Raises:
            StoppedError: if a stop was asked for; the state is saved.
        """
        self.logs.append(log)
        self.advance(note=f"loss {log['loss']:.3f}")
        self.reporter.emit(self.metrics(log))
        if self.checkpoints:
            self.checkpoints.step_done(self.done, self.parts, last=self.done == self.steps)

    def metrics(self, log: Log) -> Metrics:
        samples = self.samples or round(log["pairs"])
        tokens = round(log["tokens"] * (self.samples or 1))
        values = {key: value for key, value in log.items() if key != "step"}
        return Metrics(
            training=self.name.lower(),
            step=log["step"],
            steps=self.steps,
            samples=samples,
            tokens=tokens,
            values=values,
        )

    def sampling(self) -> None:
        """A sign of life within a step.

        Raises:
            StoppedError: if a stop was asked for; nothing is saved yet.
        """
        self.advance(0, note="sampling")
        if self.checkpoints:
            self.checkpoints.check()

    def run(self, make: Callable[[dict[str, Any]], Trainer], *, accumulation: int = 1) -> list[Log]:
        """Take the steps that are still to be done; return the log of all.

        Args:
            make: the trainer, from keyword arguments for its TrainingArguments.
            accumulation: backward passes a step.

        Raises:
            StoppedError: if a stop was asked for; the state is saved.
            AegisError: if a gradient is not finite; nothing is stepped then, and the last good
                snapshot stays.
        """
        begun = TrainingBegun(
            training=self.name.lower(),
            done=self.done,
            steps=self.steps,
            history=[self.metrics(log) for log in self.logs],
        )
        self.reporter.emit(begun)
        if self.done == self.steps:
            return self.logs
        with tempfile.TemporaryDirectory(
            prefix="aegis-trl-"
        ) as folder:  # nothing is written there, but it must exist
            weights = [parameter.data for parameter in self.parameters]
            trainer = make(self._arguments(folder, accumulation))
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.data = (
                    weight  # TRL casts LoRA on a quantised base; the snapshots keep it as it was
                )
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(_Bookkeeper(self))
            with bar(self.name, self.steps, done=self.done, stoppable=False) as advance:
                self.advance = advance
                try:
                    trainer.train()
                finally:
                    self.optimizer.zero_grad(set_to_none=True)
        self.adapted.eval()
        if self.stopped:
            raise self.stopped
        return self.logs

    def _arguments(self, folder: str, accumulation: int) -> dict[str, Any]:
        return {
            "output_dir": folder,
            "max_steps": self.steps - self.done,
            "gradient_accumulation_steps": accumulation,
            "seed": self.seed,
            "use_cpu": self.adapted.device.type == "cpu",
            "bf16": False,  # weights are in the precision that they were loaded in
            "gradient_checkpointing": False,
            "max_grad_norm": self.clip_norm,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "remove_unused_columns": False,
        }


class _Bookkeeper(TrainerCallback):
    """Keeps the ledger while the trainer runs."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.begun = ledger, time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        RandomState().restore(self.ledger.random)  # making a trainer seeds every generator

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ledger.optimizer.zero_grad(
            set_to_none=True
        )  # the trainer clears the PEFT model's gradients alone

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Log | None = None, **kwargs: Any
    ) -> None:
        if logs is None or "train_runtime" in logs:  # the trainer's own summary
            return
        found = {key: value for key, value in logs.items() if key not in _NOT_LOGGED}
        seconds = time.perf_counter() - self.begun
        try:
            self.ledger.add({"step": self.ledger.done + 1, **found, "seconds": seconds})
        except StoppedError as stop:
            self.ledger.stopped, control.should_training_stop = stop, True


class Durable:
    """Mixed into a TRL trainer: its data, clipping and silence. `ledger` and `batches` are set
    before training begins.

    `batches`: what each backward pass that is still to be done reads, in order.
    """

    ledger: Ledger
    batches: Sequence[Any]

    def get_train_dataloader(self) -> DataLoader[Any]:
        # A generator of its own: a loader would otherwise draw from torch's, once a training and once a resumption.
        data = cast("Dataset[Any]", self.batches)
        return DataLoader(data, batch_size=None, collate_fn=_as_it_is, generator=torch.Generator())

    def _clip_grad_norm(self, model: Any) -> float:
        ledger = self.ledger
        norm = float(nn.utils.clip_grad_norm_(ledger.parameters, ledger.clip_norm))
        if not math.isfinite(norm):
            raise AegisError(
                f"{ledger.name} step {ledger.done + 1}: the gradient norm {norm} must be finite; the last good snapshot is "
                f"kept. Lower {ledger.setting} and run again"
            )
        return norm

    def _send_telemetry(self) -> None:
        """TRL would tell its makers of every training."""


def _as_it_is(batch: Any) -> Any:
    return batch


def forget_forward(module: nn.Module) -> None:
    """Undo what a trainer did to one module's `forward`."""
    module.__dict__.pop("forward", None)
