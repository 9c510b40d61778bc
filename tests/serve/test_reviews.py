from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis.config import load_config
from aegis.data.records import write_jsonl
from aegis.data.stage import collect
from aegis.protocol.decisions import Decision
from aegis.serve.escalations import CaseQueue, NoCaseError, ResolvedError
from aegis.serve.reviews import (
    CLAIM_S,
    UNDO_S,
    ClaimedError,
    Review,
    ReviewDesk,
    Reviewer,
    TooLateError,
    reviewed_records,
)
from tests.serve.fakes import FakeAudit

MAI, KEN = Reviewer("Mai T", "1" * 32), Reviewer("ken", "2" * 32)
DENIED = Review(Decision.DENY, "Not here.", "needs a doctor")
CHANCES = (0.2, 0.5, 0.2, 0.1)


class Desk(ReviewDesk):
    """One whose clock is turned by hand."""

    def __init__(self, path: Path) -> None:
        self.now, self.audit = 1000.0, FakeAudit()
        super().__init__(CaseQueue(path), self.audit.append, clock=lambda: self.now)

    def acts(self) -> list[str]:
        return [entry.outcome.removeprefix("review: ") for entry in self.audit.entries]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "escalations.db")
    with contextlib.closing(made.cases):
        yield made


def ask(cases: CaseQueue, number: int, query: str = "May I?") -> str:
    id = f"{number:032x}"
    cases.open(id, owner="", user="", query=query, probabilities=CHANCES)
    return id


def test_each_reviewer_has_a_case_of_their_own_the_oldest_first(desk: Desk) -> None:
    first, second = ask(desk.cases, 1), ask(desk.cases, 2)
    for _ in range(2):  # asking again gives no other
        for reviewer, id in ((MAI, first), (KEN, second)):
            case = desk.claim_next(reviewer)
            assert case is not None
            assert case.id == id
            assert desk.held(reviewer) == case
    assert desk.claim_next(Reviewer("mai", "3" * 32)) is None
    assert desk.acts() == ["claimed", "claimed"]


def test_a_claim_ends_by_itself_and_what_was_written_is_taken_while_nobody_else_has_it(
    desk: Desk,
) -> None:
    id = ask(desk.cases, 1)
    desk.claim_next(MAI)
    desk.now += CLAIM_S + 1
    assert desk.held(MAI) is None
    assert desk.decide(id, DENIED, MAI).answer == "Not here."

    other = ask(desk.cases, 2)
    desk.claim_next(MAI)
    desk.now += CLAIM_S + 1
    desk.claim_next(KEN)
    with pytest.raises(ClaimedError, match="ken has this case"):
        desk.decide(other, DENIED, MAI)
    desk.decide(other, DENIED, KEN)
    with pytest.raises(ResolvedError, match="ken answered"):
        desk.decide(other, DENIED, MAI)


def test_what_is_passed_on_comes_last(desk: Desk) -> None:
    ids = [ask(desk.cases, n) for n in (1, 2, 3)]
    seen = [desk.claim_next(MAI)]
    for _ in range(3):
        assert seen[-1] is not None
        seen.append(desk.pass_on(seen[-1].id, MAI))
    assert [case and case.id for case in seen] == [*ids, ids[0]]
    assert desk.acts()[:3] == ["claimed", "passed on", "claimed"]


def test_an_answer_is_undone_by_its_own_reviewer_within_a_minute(desk: Desk) -> None:
    id = ask(desk.cases, 1)
    desk.claim_next(MAI)
    desk.decide(id, DENIED, MAI)
    with pytest.raises(TooLateError):
        desk.undo(id, KEN)
    desk.now += UNDO_S
    assert desk.undo(id, MAI).resolved is None
    held = desk.held(MAI)
    assert held is not None
    assert held.id == id
    assert list(reviewed_records(desk.cases)) == []
    desk.decide(id, DENIED, MAI)
    desk.now += UNDO_S + 1
    with pytest.raises(TooLateError):
        desk.undo(id, MAI)
    assert desk.acts() == ["claimed", "answered", "undone", "answered"]
    with pytest.raises(NoCaseError):
        desk.decide("f" * 32, DENIED, MAI)


def test_what_the_audit_log_does_not_take_did_not_happen(desk: Desk) -> None:
    id = ask(desk.cases, 1)
    desk.audit.broken = True
    with pytest.raises(OSError, match="disk"):
        desk.claim_next(MAI)
    assert desk.held(MAI) is None
    with pytest.raises(OSError, match="disk"):
        desk.decide(id, DENIED, MAI)
    assert desk.cases.get(id).resolved is None
    desk.audit.broken = False
    desk.decide(id, DENIED, MAI)
    desk.audit.broken = True
    with pytest.raises(OSError, match="disk"):
        desk.undo(id, MAI)
    assert desk.cases.get(id).answer == "Not here."


def test_many_reviewers_answer_every_case_once(tmp_path: Path) -> None:
    path, count = tmp_path / "escalations.db", 200
    with contextlib.closing(CaseQueue(path)) as cases:
        for number in range(count):
            ask(cases, number)
    answered, passing = list[str](), itertools.cycle((True, False, False))

    def work(reviewer: Reviewer) -> None:
        desk = Desk(path)  # a connection each, as two servers would have
        with contextlib.closing(desk.cases):
            while case := desk.claim_next(reviewer):
                if next(passing):
                    case = desk.pass_on(case.id, reviewer)
                if case:
                    desk.decide(case.id, DENIED, reviewer)
                    answered.append(case.id)

    threads = [
        threading.Thread(target=work, args=(Reviewer(str(n), f"{n:032x}"),)) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(answered) == {f"{number:032x}": 1 for number in range(count)}
    with contextlib.closing(CaseQueue(path)) as cases:
        assert cases.waiting() == 0
        assert len(list(reviewed_records(cases))) == count


def test_decisions_become_records_without_personal_data_that_a_config_takes(
    desk: Desk, tmp_path: Path
) -> None:
    ask(desk.cases, 1, "Write to mai@example.com, may I stop my pills?")
    ask(desk.cases, 2, "薬をやめてもいいですか？")
    desk.cases.open("f" * 32, owner="", user="", query="Only answered", probabilities=CHANCES)
    for number, note in ((1, "ask ken@example.com"), (2, "")):
        desk.decide(f"{number:032x}", Review(Decision.DENY, "No.", note), MAI)
    desk.cases.resolve("f" * 32, "No.", reviewer="ken")
    records = list(reviewed_records(desk.cases))
    assert [record.language for record in records] == ["en", "ja"]
    assert records[0].rationale == "ask [EMAIL]"
    assert records[1].rationale is None
    write_jsonl(tmp_path / "records.jsonl", records)
    text = (tmp_path / "records.jsonl").read_text(encoding="utf-8")
    assert "example.com" not in text
    assert MAI.name not in text
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{seed_records: false, records: ['{tmp_path}/records.jsonl']}}\n")
    loaded, *_ = collect(load_config(config).data)
    assert [record for record in loaded if record.source == "review"] == records


def test_a_queue_of_an_older_version_is_read_and_gets_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "escalations.db"
    with contextlib.closing(CaseQueue(path)) as cases:
        ask(cases, 1)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript("DROP TABLE claims; DROP TABLE reviews")
    with contextlib.closing(CaseQueue(path, writable=False)) as cases:
        assert list(reviewed_records(cases)) == []
    desk = Desk(path)
    with contextlib.closing(desk.cases):
        assert desk.claim_next(MAI) is not None
