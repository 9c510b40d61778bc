"""Score a whole set, in one process or several, and sum it up."""

from __future__ import annotations

import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aegis.data.folder import StepOutcome, writing_data
from aegis.data.records import Item, Record, Rejected, write_jsonl
from aegis.data.report import reason_kind
from aegis.data.score.diversity import distinct, self_bleu
from aegis.data.score.grow import grow, in_order, with_diversity
from aegis.data.score.record import VERSION, RecordScore, score_record
from aegis.errors import DataError
from aegis.storage.files import fingerprint, to_json

_SHARD = 256
_BINS = 10


@dataclass(frozen=True)
class Scoring:
    """What is asked of a scoring.

    Args:
        sizes: at which the set grows; empty for no stages.
        least: records below it are set aside.
        margin: by which the mean of what a stage adds may be lower.
    """

    sizes: Sequence[int] = ()
    least: float = 0.0
    margin: float = 0.02
    seed: int = 0
    workers: int = 1


@dataclass(frozen=True)
class Scored:
    """A scored set.

    Args:
        seen: every item that came in.
        kept: what stays, in the order in which the set grows, if it grows.
        others: what has no thinking, and stays.
        scores: of all that has thinking, what was set aside included.
    """

    seen: list[Item]
    kept: list[tuple[Record, RecordScore]]
    others: list[Item]
    rejected: list[Rejected]
    scores: list[RecordScore]
    summary: dict[str, Any]


def score_items(
    items: Iterable[Item | Rejected],
    scoring: Scoring,
    *,
    progress: Callable[[str, int], AbstractContextManager[Callable[..., None]]],
) -> Scored:
    """Score what has thinking; the other items stay as they are.

    Raises:
        DataError: if nothing has thinking.
    """
    items = list(items)
    rejected = [item for item in items if isinstance(item, Rejected)]
    seen = [item for item in items if not isinstance(item, Rejected)]
    records = [item for item in seen if isinstance(item, Record) and item.thinking]
    others = [item for item in seen if not (isinstance(item, Record) and item.thinking)]
    if not records:
        raise DataError("no record has thinking to score; give records with thinking and final")
    if scoring.sizes:
        records = in_order(records, seed=scoring.seed)
    with progress("scoring", len(records)) as advance:
        scores = score_set(records, workers=scoring.workers, on_scored=advance)
    stages = grow(records, scores, scoring.sizes, margin=scoring.margin)
    size = max((stage.size for stage in stages if stage.kept), default=0)
    end = size if scoring.sizes else len(records)
    scores = [*with_diversity(records[:end], scores[:end]), *scores[end:]]
    beyond = f"beyond the last size that is kept, {size}"
    reasons: Counter[str] = Counter()
    kept: list[tuple[Record, RecordScore]] = []
    for number, (record, score) in enumerate(zip(records, scores, strict=True)):
        if number >= end:
            reason = beyond
        elif score.overall < scoring.least:
            reason = f"score below {scoring.least:g}"
        else:
            kept.append((record, score))
            continue
        reasons[reason] += 1
        rejected.append(Rejected.item(record, _told(reason, score)))
    summed = summary(records[:end], scores[:end], seed=scoring.seed)
    summed |= {
        "not_scored": len(others),
        "stages": [stage.to_json() for stage in stages],
        "set_aside": dict(reasons),
    }
    return Scored(seen, kept, others, rejected, scores, summed)


def write_scored(target: Path, scored: Scored, scoring: Scoring, *, inputs: Sequence[Path]) -> None:
    """Write a data folder with `scores.jsonl` (each part and its reason) and `score.json` beside
    the records, which carry the overall score and the parts as the field `score`."""
    made_of = fingerprint("score", VERSION, str(scoring), *map(str, inputs))
    with writing_data(target, made_of) as writer:
        for item in scored.seen:
            writer.saw(item)
        for record, score in scored.kept:
            writer.add(replace(record, extra={**record.extra, "score": score.values()}))
        for item in (*scored.others, *scored.rejected):
            writer.add(item)
        total = len(scored.kept) + len(scored.others) + len(scored.rejected)
        unread = len(scored.rejected) - sum(scored.summary["set_aside"].values())
        reasons = {**scored.summary["set_aside"], **({"not usable": unread} if unread else {})}
        out = total - len(scored.rejected)
        writer.log(StepOutcome("score", VERSION, total, out, reasons))
        write_jsonl(writer.folder / "scores.jsonl", (score.to_json() for score in scored.scores))
        (writer.folder / "score.json").write_text(to_json(scored.summary), encoding="utf-8")


def score_set(
    records: Sequence[Record],
    *,
    workers: int = 1,
    on_scored: Callable[[int], object] = lambda _: None,
) -> list[RecordScore]:
    """Return the score of each record, in their order, diversity within the set included.

    The result is the same whatever the number of processes.

    Args:
        records: each with thinking.
        on_scored: called with how many more are scored.
    """
    shards = [records[start : start + _SHARD] for start in range(0, len(records), _SHARD)]
    scores: list[RecordScore] = []
    for part in _mapped(shards, workers):
        scores += part
        on_scored(len(part))
    return with_diversity(records, scores)


def summary(
    records: Sequence[Record], scores: Sequence[RecordScore], *, seed: int
) -> dict[str, Any]:
    """Return means by part, by language and by decision, a histogram, the commonest faults, and how
    varied the set is."""
    groups: dict[str, dict[str, list[float]]] = {
        "language": defaultdict(list),
        "decision": defaultdict(list),
    }
    for record, score in zip(records, scores, strict=True):
        groups["language"][record.language].append(score.overall)
        groups["decision"][record.decision.name].append(score.overall)
    names = list(scores[0].parts) if scores else []
    faults = Counter(
        f"{name}: {reason_kind(part.reason)}"
        for score in scores
        for name, part in score.parts.items()
        if part.value < 0.5
    )
    histogram = Counter(min(_BINS - 1, int(score.overall * _BINS)) for score in scores)
    return {
        "scored": len(scores),
        "mean": _mean([score.overall for score in scores]),
        "parts": {name: _mean([score.parts[name].value for score in scores]) for name in names},
        **{
            kind: {name: [len(values), _mean(values)] for name, values in sorted(group.items())}
            for kind, group in groups.items()
        },
        "histogram": [histogram[number] for number in range(_BINS)],
        "faults": dict(faults.most_common(10)),
        "distinct_2": round(distinct(records, 2), 4),
        "distinct_3": round(distinct(records, 3), 4),
        "self_bleu": round(self_bleu(records, seed=seed), 4),
    }


def _mapped(shards: Sequence[Sequence[Record]], workers: int) -> Iterator[list[RecordScore]]:
    if workers <= 1 or len(shards) < 2:
        yield from map(_score_shard, shards)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(shards)), mp_context=context) as pool:
        yield from pool.map(_score_shard, shards)


def _score_shard(records: Sequence[Record]) -> list[RecordScore]:
    return [score_record(record) for record in records]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0


def _told(reason: str, score: RecordScore) -> str:
    """Return the reason with the part that is worst, where a score is the reason; a report shows
    it, so that it quotes nothing of the thinking."""
    if not reason.startswith("score"):
        return reason
    name, part = min(score.parts.items(), key=lambda each: each[1].value)
    return f"{reason} ({score.overall:.2f}): {name}: {reason_kind(part.reason)}"
