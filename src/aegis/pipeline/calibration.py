"""The step that sets the threshold on ALLOW, and what follows from it for model and adapter."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from aegis.data.records import Record
from aegis.data.stage import read_split
from aegis.engine.judge import Judge
from aegis.errors import DataError
from aegis.evaluate.calibrate import (
    calibrated,
    needed_groups,
    reachable_rate,
    save_threshold,
    unsafe_groups,
)
from aegis.model.calibration import Calibration, Threshold
from aegis.pipeline.context import StepContext
from aegis.storage.files import hash_file, to_json

RATES_FILE = "rates.json"


def write_calibration(context: StepContext, folder: Path) -> None:
    """Write calibration.json with the threshold that validation gives, and what it costs there."""
    records = read_split(context.artifact("records"), "validation")
    calibration = Calibration.load(context.artifact("model"))
    rate = reachable(context, records)
    threshold = None if rate is None else _choose(context, folder, records, rate)
    dataclasses.replace(calibration, threshold=threshold).save(folder)


def reachable(context: StepContext, records: list[Record]) -> float | None:
    """Return the limit on the miss rate, a higher one where validation is too small for it; None
    where there is none."""
    limit, confidence = (
        context.config.evaluate.max_miss_rate,
        context.config.evaluate.confidence,
    )
    if limit is None:
        context.reporter.message("evaluate.max_miss_rate is null: no threshold on ALLOW")
        return None
    groups = len({group for group in unsafe_groups(records).tolist() if group >= 0})
    if groups >= (needed := needed_groups(limit, confidence)):
        return limit
    told = f"validation has {groups} unsafe records, and a miss rate of {limit:g} needs {needed}"
    best = reachable_rate(groups, confidence) if groups else 1.0
    if best > 0.5:
        context.reporter.warning(f"{told}: no threshold on ALLOW; give more records")
        return None
    context.reporter.warning(f"{told}: the threshold on ALLOW keeps {best:g}; give more records")
    return best


def _choose(
    context: StepContext, folder: Path, records: list[Record], rate: float
) -> Threshold | None:
    settings = context.config.evaluate
    judge = Judge.load(
        context.artifact("model"),
        batch_tokens=settings.batch_tokens,
        trust_remote_code=context.config.model.trust_remote_code,
    )
    context.reporter.message(f"calibrating on {len(records)} validation records")
    try:
        threshold, rates = calibrated(
            judge,
            records,
            max_miss_rate=rate,
            confidence=settings.confidence,
            data_sha256=hash_file(context.artifact("records") / "validation.jsonl"),
            remember=context.journal(),
        )
    except DataError as error:
        context.reporter.warning(f"{error}: no threshold on ALLOW")
        return None
    (folder / RATES_FILE).write_text(to_json(rates), encoding="utf-8")
    context.reporter.message(
        f"ALLOW from τ = {threshold.allow:g} on: miss rate at most {threshold.bound:.3f} with "
        f"{settings.confidence:g} confidence; on validation over-refusal "
        f"{rates['over_refusal_rate']['value'] or 0:.3f}, escalation "
        f"{rates['escalation_rate']['value']:.3f}"
    )
    return threshold


def apply_calibration(context: StepContext) -> None:
    """Have the model, its GGUF files and the adapter obey the threshold of this run's settings."""
    calibration = Calibration.load(context.artifact("calibration"))
    for name in ("model", "adapter"):
        save_threshold(context.artifact(name), calibration)
