from __future__ import annotations

import contextlib
from pathlib import Path

from aegis.serve.escalations import CaseQueue
from tests.cli.test_serve import called


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
