"""Evaluate a judge on labelled records: metrics, every item, and pictures, in one results
folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from aegis import __version__
from aegis.data.records import Record
from aegis.engine.judge import Judge
from aegis.evaluate.metrics import decision_metrics
from aegis.model.calibration import probabilities
from aegis.protocol.decisions import NAMES
from aegis.runs.reporter import bar
from aegis.storage.files import to_json


def evaluate_decisions(
    judge: Judge, records: Sequence[Record], *, confidence: float = 0.95, label: str = "judging"
) -> dict[str, Any]:
    """Metrics over all records, per language, and one line an item."""
    with bar(label, len(records)) as advance:
        names = [record.id for record in records]
        logits, times = judge.logits(
            [record.prompt for record in records], names=names, on_batch=advance
        )
    probability = probabilities(logits)
    truth = np.array([int(record.decision) for record in records])
    languages = sorted({record.language for record in records})
    per_language = {
        language: decision_metrics(truth[chosen], probability[chosen], confidence=confidence)
        for language in languages
        if (chosen := np.array([record.language == language for record in records])).any()
    }
    return {
        "schema": 1,
        "task": "decisions",
        "aegis_version": __version__,
        "judge": "decision head" if judge.head else "likelihood of a letter",
        "calibration": asdict(judge.calibration),
        "ms_per_prompt": float(times.mean()),
        **decision_metrics(truth, probability, confidence=confidence),
        "per_language": per_language,
        "items": [
            {
                "id": record.id,
                "truth": record.decision.name,
                "predicted": NAMES[int(row.argmax())],
                "probabilities": [round(float(p), 6) for p in row],
            }
            for record, row in zip(records, probability, strict=True)
        ],
    }


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `metrics.json` (without the items) and `items.jsonl` into a folder that exists."""
    metrics = {key: value for key, value in results.items() if key != "items"}
    (folder / "metrics.json").write_text(to_json(metrics), encoding="utf-8")
    lines = [json.dumps(item, ensure_ascii=False) for item in results["items"]]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
