"""Evaluate a judge on labelled records: metrics and every item, in one results folder."""

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
from aegis.model.calibration import Calibration, probabilities
from aegis.protocol.decisions import NAMES
from aegis.runs.reporter import bar
from aegis.storage.files import to_json
from aegis.storage.journal import Remember, compute_anew


def evaluate_decisions(
    judge: Judge,
    records: Sequence[Record],
    *,
    confidence: float = 0.95,
    label: str = "judging",
    remember: Remember = compute_anew,
) -> dict[str, Any]:
    """Return metrics over all records and per language, and every item.

    Args:
        remember: gives the batches that were judged before.
    """
    with bar(label, len(records)) as advance:
        prompts, names = [item.prompt for item in records], [item.id for item in records]
        logits, times = judge.logits(prompts, names=names, on_batch=advance, remember=remember)
    calibration = judge.head.calibration if judge.head else Calibration()
    probability = probabilities(logits)
    truth = np.array([int(record.decision) for record in records])
    languages = np.array([record.language for record in records])
    per_language = {
        str(language): decision_metrics(
            truth[languages == language], probability[languages == language], confidence=confidence
        )
        for language in np.unique(languages)
    }
    return {
        "schema": 1,
        "task": "decisions",
        "aegis_version": __version__,
        "judge": "decision head" if judge.head else "likelihood of a letter",
        "calibration": asdict(calibration),
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
