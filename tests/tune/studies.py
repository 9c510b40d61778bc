"""A study whose trials take no time: a training's record is computed from its settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aegis.config import Config, parse_config
from aegis.runs.events import Metrics

STUDY = """
settings: {train.algorithm: sft}
space:
  train.lr: {float: [1e-4, 1e-2], log: true}
  model.lora.rank: {choices: [4, 8, 16]}
objective: {normalised_loss: 10, stability: 2, failed: 0.1}
pruner: none
"""


def write_study(folder: Path, text: str = STUDY, name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def config_in(folder: Path, **changes: Any) -> Config:
    return parse_config({"runs": str(folder / "runs"), **changes}, where="test")


def quick_run(
    folder: Path,
    config: Config,
    until: str,
    limits: Any,
    *,
    check: Callable[[], None],
    on_metrics: Any,
) -> Path:
    """What `run_trial` does, without a model: the loss is lowest at lr 1e-3."""
    check()
    off = abs(config.train.lr - 1e-3) / config.train.lr
    on_metrics(
        Metrics(training="sft", step=5, steps=10, values={"validation_loss": off}),
    )
    adapter = folder / "session" / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    rows = [{"loss": 2.0 - step / 10, "alpha": step - 5.0} for step in range(10)]
    truth = [
        {"decision": i % 4, "logits": [(3.0 - off) * (i % 4 == j) for j in range(4)]}
        for i in range(40)
    ]
    for name, lines in (("history", rows), ("validation", truth)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (adapter / f"{name}.jsonl").write_text(text)
    return folder / "session"
