from __future__ import annotations

import contextlib
import json
from pathlib import Path

from aegis.data.records import parse_record
from aegis.protocol.decisions import Decision
from aegis.serve.escalations import CaseQueue
from aegis.serve.reviews import Review, ReviewDesk, Reviewer
from tests.cli.test_serve import called
from tests.serve.test_reviews import ask


def test_a_question_cannot_move_the_reviewers_cursor(tmp_path: Path) -> None:
    with contextlib.closing(CaseQueue(tmp_path / "cases.db")) as cases:
        cases.open(
            "ab" * 16,
            owner="",
            user="",
            query="hi\x1b[2Jgone\u202e",
            probabilities=(0.1, 0.7, 0.1, 0.1),
        )
    shown = called("review", "show", "ab", "--cases", str(tmp_path / "cases.db"))
    assert "\x1b" not in shown.stdout
    assert "\u202e" not in shown.stdout
    listed = called("review", "list", "--cases", str(tmp_path / "cases.db"))
    assert "\x1b[2J" not in listed.stdout
    assert "no such queue" in str(
        called("review", "list", "--cases", str(tmp_path / "other.db")).exception
    )


def test_decisions_are_exported_as_records(tmp_path: Path) -> None:
    queue, output = tmp_path / "cases.db", tmp_path / "records.jsonl"
    command = ("review", "export", "--cases", str(queue), "-o", str(output))
    with contextlib.closing(CaseQueue(queue)) as cases:
        ask(cases, 1, "May I?")
        assert "nobody has decided" in str(called(*command).exception)
        assert not output.exists()
        desk = ReviewDesk(cases, lambda entry: None)
        desk.decide(f"{1:032x}", Review(Decision.DENY, "No."), Reviewer("mai", "a" * 32))
    assert called(*command).exit_code == 0
    (line,) = output.read_text(encoding="utf-8").splitlines()
    record = parse_record(json.loads(line), where="line 1")
    assert (record.prompt, record.decision, record.source) == ("May I?", Decision.DENY, "review")
