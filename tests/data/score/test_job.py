"""One process or two, the scores are the same; every item that comes in comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aegis.data.formats import read_items
from aegis.data.records import Item, Rejected
from aegis.data.score import job
from aegis.data.score.job import Scoring, score_items, score_set, write_scored
from aegis.data.seed import seed_pairs, seed_records
from aegis.errors import DataError
from aegis.protocol.thinking import Thinking


@contextlib.contextmanager
def silent(_: str, __: int) -> Iterator[Callable[..., None]]:
    yield lambda *_: None


def items(count: int = 40) -> list[Item | Rejected]:
    thinking = [record for record in seed_records() if record.thinking][:count]
    return [*thinking, *seed_records()[:3], *seed_pairs()[:2], Rejected("x:1", "broken")]


def test_two_processes_give_the_scores_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_SHARD", 8)
    records = [record for record in seed_records() if record.thinking][:24]
    assert score_set(records, workers=2) == score_set(records)


@pytest.mark.parametrize(
    "scoring", [Scoring(), Scoring(least=0.9), Scoring(sizes=(20, 30)), Scoring(sizes=(90,))]
)
def test_nothing_vanishes(tmp_path: Path, scoring: Scoring) -> None:
    given = items()
    scored = score_items(given, scoring, progress=silent)
    write_scored(tmp_path / "out", scored, scoring, inputs=[])
    out = list(read_items([tmp_path / "out"]))
    assert len(out) + len(scored.rejected) == len(given)
    assert all(each.reason for each in scored.rejected)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"records.jsonl", "rejected.jsonl", "scores.jsonl", "score.json", "log.jsonl"} <= names
    extras = [each.extra for each in out if not isinstance(each, Rejected)]
    kept = [extra["score"]["overall"] for extra in extras if "score" in extra]
    assert len(kept) == len(scored.kept)
    assert all(value >= scoring.least - 1e-4 for value in kept)
    assert scored.summary["scored"] >= len(kept)
    lines = (tmp_path / "out" / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 40, "what was set aside has its parts and reasons, too"


def test_reasons_that_are_shown_quote_nothing_of_the_thinking() -> None:
    (record,) = [each for each in seed_records() if each.thinking][:1]
    assert record.thinking
    bodies = {name: text.reveal() for name, text in record.thinking.bodies().items()}
    bodies["task"] += " 4711 + 1 = 4713."
    thinking = Thinking.from_bodies(bodies, record.thinking.public, where="x")
    spoilt = [replace(record, thinking=thinking)]
    scored = score_items(spoilt, Scoring(least=1), progress=silent)
    assert "4711" in scored.scores[0].parts["soundness"].reason
    assert "4711" not in scored.rejected[0].reason + str(scored.summary)


def test_a_set_without_thinking_is_an_error() -> None:
    with pytest.raises(DataError, match="no record has thinking"):
        score_items(seed_records()[:3], Scoring(), progress=silent)
