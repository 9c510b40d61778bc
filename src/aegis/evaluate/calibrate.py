"""Choose τ, the least P(ALLOW) of what is allowed, so that a bound on the miss rate holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import beta

from aegis.data.records import Record
from aegis.data.split import contrast_groups
from aegis.errors import DataError
from aegis.evaluate.metrics import Judged, decision_metrics
from aegis.model.calibration import CALIBRATION_FILE, Calibration, Threshold, decide
from aegis.protocol.decisions import UNSAFE, Decision
from aegis.runs.reporter import bar
from aegis.storage.artifact import MANIFEST, revise
from aegis.storage.files import write_text
from aegis.storage.journal import Remember, compute_anew

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from aegis.engine.judge import Judge

RATES = ("miss_rate", "over_refusal_rate", "escalation_rate")


def needed_groups(max_miss_rate: float, confidence: float) -> int:
    """Return how many unsafe groups without an error show this miss rate: (1 - ε)^n <= δ."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - max_miss_rate))


def reachable_rate(groups: int, confidence: float) -> float:
    """Return the least miss rate that so many unsafe groups can show, rounded up to 0.001."""
    return math.ceil(1000 * (1 - (1 - confidence) ** (1 / groups))) / 1000


def upper_bound(misses: int, n: int, confidence: float) -> float:
    """Return the exact one-sided upper bound on a share, of which `misses` in n were seen.

    Source:
        Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case of the
        binomial, 1934.
    """
    return 1.0 if misses >= n else float(beta.ppf(confidence, misses + 1, n - misses))


def unsafe_groups(records: Sequence[Record]) -> np.ndarray:
    """Return the number of each record's contrast group, -1 where the record is not unsafe."""
    groups = enumerate(contrast_groups(records))
    group_of = {record.id: number for number, group in groups for record in group}
    return np.array([group_of[r.id] if r.decision in UNSAFE else -1 for r in records])


def require_calibration_data(
    records: Sequence[Record], *, max_miss_rate: float, confidence: float, where: object
) -> None:
    """Check, before anything is judged, that these records can show the bound.

    Raises:
        DataError: if they are too few, or none of them is harmless or none unsafe.
    """
    if len(records) < 2:
        raise DataError(f"{where}: calibration needs 2 records or more, got {len(records)}")
    groups = len({group for group in unsafe_groups(records).tolist() if group >= 0})
    if not groups:
        raise DataError(
            f"{where}: holds no unsafe record (DENY or REFUSE), and they are what a miss rate is "
            "counted on; give some"
        )
    if all(record.decision != Decision.ALLOW for record in records):
        raise DataError(
            f"{where}: holds no harmless record (ALLOW); give some, too, or what the threshold "
            "costs them stays unknown"
        )
    if groups < (needed := needed_groups(max_miss_rate, confidence)):
        raise DataError(
            f"{where}: a miss rate of at most {max_miss_rate:g} with {confidence:g} confidence "
            f"needs {needed} unsafe records without a miss, got {groups} (a contrast group is "
            f"one); give more, or a limit of {reachable_rate(groups, confidence):g}"
        )


def calibrated(
    judge: Judge,
    records: Sequence[Record],
    *,
    max_miss_rate: float,
    confidence: float,
    data_sha256: str,
    remember: Remember = compute_anew,
) -> tuple[Threshold, dict[str, Any]]:
    """Judge the records; return τ, and miss, over-refusal and escalation rate under it.

    Args:
        remember: gives the batches that were judged before.

    Raises:
        DataError: if no τ up to 1 keeps the limit.
    """
    with bar("judging", len(records)) as advance:
        prompts, names = [item.prompt for item in records], [item.id for item in records]
        verdicts = judge.judge(prompts, names=names, on_batch=advance, remember=remember)
    judged, limits = Judged.of(records, verdicts), (max_miss_rate, confidence)
    chosen = choose_threshold(judged, unsafe_groups(records), *limits, data_sha256=data_sha256)
    metrics = decision_metrics(under(judged, chosen), confidence=confidence)
    return chosen, {name: metrics[name] for name in RATES}


def choose_threshold(
    judged: Judged,
    groups: np.ndarray,
    max_miss_rate: float,
    confidence: float,
    *,
    data_sha256: str = "",
) -> Threshold:
    """Return the smallest τ at which the exact bound on the miss rate is at most `max_miss_rate`.

    The thresholds are tested one after the other, from the strictest down, each at level 1 -
    confidence, and the first that fails ends it. The risk falls as τ rises, so whichever true
    threshold is the first unsafe one, it has to pass its own test before a smaller one is reached:
    P(miss rate at the τ chosen > max_miss_rate) <= 1 - confidence, however many are tried.

    Prompts of one contrast group are alike, and a binomial counts what is independent. A group is
    therefore one draw, missed if any of its unsafe prompts is. The share of groups missed is never
    below the share of prompts missed, each group weighing the same.

    Args:
        groups: (n,) as `unsafe_groups` returns it.

    Source:
        Angelopoulos et al., Learn then Test, 2021, fixed-sequence testing; Bates et al.,
        Distribution-free, risk-controlling prediction sets, 2021, for risks that are monotone.

    Raises:
        DataError: if no τ up to 1 does.
    """
    chances = judged.probability
    allowing = chances.argmax(axis=1) == Decision.ALLOW
    scores = np.where(allowing, chances[:, Decision.ALLOW], 0.0)
    highest = np.zeros(groups.max(initial=-1) + 1)
    np.maximum.at(highest, groups[groups >= 0], scores[groups >= 0])
    units = np.sort(highest[np.unique(groups[groups >= 0])])[::-1]
    n = len(units)
    bounds = beta.ppf(confidence, np.arange(n) + 1, n - np.arange(n))  # rising, one a miss more
    passing = int((bounds <= max_miss_rate).sum())
    if not passing or units[passing - 1] >= 1:
        raise DataError(
            f"no threshold keeps a miss rate of at most {max_miss_rate:g} with {confidence:g} "
            f"confidence on {n} unsafe records; give more, or a higher limit"
        )
    floor = float(units[passing - 1])  # the first group that must not pass
    allow = _shortest_between(floor, min(scores[scores > floor], default=1.0)) if floor else 0.0
    misses = int((units >= allow).sum()) if allow else int((units > 0).sum())
    bound = upper_bound(misses, n, confidence)
    return Threshold(allow, max_miss_rate, confidence, n, misses, bound, data_sha256)


def _shortest_between(low: float, high: float) -> float:
    """Return the number in (low, high] with the fewest decimals: it says what a longer one does."""
    for digits in range(1, 16):
        short = round((math.floor(low * 10**digits) + 1) / 10**digits, digits)
        if low < short <= high:
            return short
    return float(high)


def miss_bound(judged: Judged, groups: np.ndarray, confidence: float) -> dict[str, Any]:
    """Return how many unsafe groups were allowed, and the upper bound on their share."""
    unsafe = groups >= 0
    n = len(np.unique(groups[unsafe]))
    misses = len(np.unique(groups[unsafe & (judged.predicted == Decision.ALLOW)]))
    bound = upper_bound(misses, n, confidence) if n else None
    return {"value": bound, "misses": misses, "n": n, "confidence": confidence}


def under(judged: Judged, threshold: Threshold) -> Judged:
    """Return the same records as the threshold decides about them."""
    return replace(judged, predicted=decide(judged.probability, threshold.allow))


def save_threshold(folder: Path, calibration: Calibration) -> list[Path]:
    """Write calibration.json of a model folder and of the GGUF files in it; return where.

    Each is whole with the old content or the new one, and the folders stay the artifacts they are.
    """
    places = [folder / name for name in ("", "gguf")]
    written = [path / CALIBRATION_FILE for path in places if path == folder or _has_one(path)]
    for path in written:
        if (path.parent / MANIFEST).is_file():
            revise(path.parent, CALIBRATION_FILE, calibration.text())
        else:
            write_text(path, calibration.text())
    return written


def _has_one(folder: Path) -> bool:
    return (folder / CALIBRATION_FILE).is_file()
