"""Learning curve and α picture, drawn beside the adapter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from aegis.train.loop import StepLog


def smooth(values: Sequence[float], *, weight: float = 0.9) -> list[float]:
    """Return the bias-corrected exponential moving average."""
    average, correction, result = 0.0, 1.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        correction *= weight
        result.append(average / (1 - correction))
    return result


def draw_learning_curve(
    path: Path, history: Sequence[StepLog], validation: Sequence[dict[str, float]]
) -> None:
    """Draw the decision's loss per step, on validation too, and apart from it the tokens' and the
    rest, which only batches with thinking have."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes, others = figure.subplots(2, sharex=True)
    for name in dict.fromkeys(part for log in history for part in log.parts):
        logs = [log for log in history if name in log.parts]
        panel = axes if name == "decision" else others
        losses = smooth([log.parts[name] for log in logs])
        panel.plot([log.step for log in logs], losses, label=name)
    if validation:
        steps = [check["step"] for check in validation]
        losses = [check["validation_loss"] for check in validation]
        axes.plot(steps, losses, "o", label="decision, validation")
    axes.set(ylabel="loss (smoothed)", title="Learning curve: the decision")
    others.set(xlabel="step", ylabel="loss (smoothed)", title="Tokens of thinking and answer")
    for panel in (axes, others):
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend()
    figure.savefig(path, dpi=110)


def draw_alpha(path: Path, history: Sequence[StepLog]) -> None:
    """Draw α and the opening g = σ(α) per step, the steepest ascent marked."""
    logs = [log for log in history if "alpha" in log.extra]
    if len(logs) < 2:
        return
    steps, alphas = [log.step for log in logs], [log.extra["alpha"] for log in logs]
    rises = [after - before for before, after in itertools.pairwise(alphas)]
    steepest = steps[rises.index(max(rises)) + 1]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, alphas, color="tab:blue", label="α")
    axes.axvline(steepest, color="grey", linestyle=":", label=f"steepest at step {steepest}")
    axes.set(xlabel="step", ylabel="α", title="Opening of the SO(8) gates")
    right = axes.twinx()
    right.plot(steps, [log.extra["g"] for log in logs], color="tab:orange", label="g = σ(α)")
    right.set(ylabel="g", ylim=(0, 1))
    figure.legend(loc="outside lower center", ncols=3)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_reward(path: Path, history: Sequence[StepLog], *, held_out: float | None) -> None:
    """Draw the reward model's loss and accuracy per step; `held_out`: on pairs it did not see."""
    steps = [log.step for log in history]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, smooth([log.loss for log in history]), color="tab:red", label="loss")
    axes.set(xlabel="step", ylabel="loss (smoothed)", title="Learning curve of the reward model")
    right = axes.twinx()
    accuracy = smooth([log.parts["accuracy"] for log in history])
    right.plot(steps, accuracy, color="tab:blue", label="accuracy")
    if held_out is not None:
        label = f"accuracy on held-out pairs {held_out:.2f}"
        right.axhline(held_out, color="tab:blue", linestyle=":", label=label)
    right.set(ylabel="share of pairs in order (smoothed)", ylim=(0, 1.02))
    figure.legend(loc="outside lower center", ncols=3)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_ppo(path: Path, logs: Sequence[dict[str, Any]]) -> None:
    """Draw reward and its terms, KL, entropy and clip fraction per update."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    updates = [log["update"] for log in logs]
    axes[0, 0].errorbar(
        updates, [log["reward"] for log in logs], [log["reward_std"] for log in logs], capsize=2
    )
    axes[0, 0].set(title="Reward (mean ± standard deviation)")
    for name in [key for key in logs[0] if key.startswith("reward/")]:
        axes[0, 1].plot(updates, [log[name] for log in logs], label=name.removeprefix("reward/"))
    axes[0, 1].set(title="Terms of the reward")
    axes[0, 1].legend()
    axes[1, 0].plot(updates, [log["kl"] for log in logs])
    axes[1, 0].set(title="KL to the reference, nats a response", xlabel="update")
    for name in ("entropy", "clip_fraction", "ended"):
        axes[1, 1].plot(updates, [log[name] for log in logs], label=name)
    axes[1, 1].set(title="Policy", xlabel="update")
    axes[1, 1].legend()
    for row in axes:
        for panel in row:
            panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
