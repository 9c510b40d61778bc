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
from aegis.engine.verdict import Verdict
from aegis.evaluate.calibrate import RATES, miss_bound, unsafe_groups
from aegis.evaluate.metrics import Judged, decision_metrics, unsafe_auc
from aegis.evaluate.reliability import details
from aegis.model.calibration import Calibration
from aegis.runs.reporter import bar
from aegis.storage.files import fingerprint, to_json
from aegis.storage.journal import Remember, compute_anew

UNCALIBRATED = Calibration()


def evaluate_decisions(
    judge: Judge,
    records: Sequence[Record],
    *,
    confidence: float = 0.95,
    label: str = "judging",
    remember: Remember = compute_anew,
) -> dict[str, Any]:
    """Judge the records; return metrics over all and per language, and every item.

    Args:
        remember: gives the batches that were judged before.
    """
    with bar(label, len(records)) as advance:
        prompts, names = [item.prompt for item in records], [item.id for item in records]
        verdicts = judge.judge(prompts, names=names, on_batch=advance, remember=remember)
    name = "decision head" if judge.head else "likelihood of a letter"
    calibration = judge.head.calibration if judge.head else Calibration()
    return decision_results(records, verdicts, name, calibration, confidence=confidence)


def decision_results(
    records: Sequence[Record],
    verdicts: Sequence[Verdict],
    judge: str,
    calibration: Calibration = UNCALIBRATED,
    *,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Return the same of verdicts that are there.

    Args:
        judge: what decided, in words.
        calibration: that the verdicts obey.
    """
    judged = Judged.of(records, verdicts)
    languages = np.array([record.language for record in records])
    per_language = {
        str(language): decision_metrics(judged.only(languages == language), confidence=confidence)
        for language in np.unique(languages)
    }
    return {
        "schema": 1,
        "task": "decisions",
        "aegis_version": __version__,
        "judge": judge,
        "calibration": asdict(calibration),
        "ms_per_prompt": float(np.mean([verdict.ms for verdict in verdicts])),
        **decision_metrics(judged, confidence=confidence),
        **details(records, judged, confidence=confidence),
        "unsafe_auc": unsafe_auc(judged, confidence),
        "miss_bound": miss_bound(judged, unsafe_groups(records), confidence),
        "most_probable": _rates_without_threshold(judged, calibration, confidence),
        "per_language": per_language,
        "items": [
            {
                "id": record.id,
                "prompt_hash": fingerprint(record.prompt)[:16],
                **({"contrast_of": record.contrast_of} if record.contrast_of else {}),
                "language": record.language,
                "truth": record.decision.name,
                "predicted": verdict.decision.name,
                "rule": verdict.rule,
                "probabilities": [round(p, 6) for p in verdict.probabilities],
            }
            for record, verdict in zip(records, verdicts, strict=True)
        ],
    }


def _rates_without_threshold(
    judged: Judged, calibration: Calibration, confidence: float
) -> dict[str, Any] | None:
    """Return what the most probable decisions come to; None where it is they that stand."""
    if not calibration.allow_from:
        return None
    likeliest = Judged.likeliest(judged.truth, judged.probability)
    metrics = decision_metrics(likeliest, confidence=confidence)
    return {name: metrics[name] for name in (*RATES, "accuracy", "macro_f1")}


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `metrics.json` (without the items) and `items.jsonl` into a folder that exists."""
    metrics = {key: value for key, value in results.items() if key != "items"}
    (folder / "metrics.json").write_text(to_json(metrics), encoding="utf-8")
    lines = [json.dumps(item, ensure_ascii=False) for item in results["items"]]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
