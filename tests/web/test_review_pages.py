from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from aegis.audit import AuditKeys
from aegis.audit.keystore import default_keys_folder
from aegis.audit.verify import verify
from aegis.protocol.decisions import Decision
from aegis.protocol.fixed_texts import fixed_text
from aegis.serve.escalations import CaseQueue
from aegis.serve.reviews import ReviewDesk
from aegis.web.app import build_ui
from aegis.web.review_pages import audit_recorder
from tests.serve.fakes import FakeAudit
from tests.serve.test_reviews import ask

ORIGIN = "http://127.0.0.1:8080"
HOSTILE = "</pre><script>alert(1)</script>\u202e\x1b" + "x" * 20_000


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[ReviewDesk]:
    with contextlib.closing(CaseQueue(tmp_path / "escalations.db")) as cases:
        yield ReviewDesk(cases, FakeAudit().append)


def reviewer(desk: ReviewDesk | None, runs: Path) -> TestClient:
    return TestClient(build_ui(runs, desk), base_url=ORIGIN, headers={"origin": ORIGIN})


def test_a_case_is_taken_answered_undone_and_answered_again(desk: ReviewDesk, runs: Path) -> None:
    id = ask(desk.cases, 1, HOSTILE)
    mai = reviewer(desk, runs)
    assert "1 cases wait" in mai.get("/ui/review").text
    taken = mai.post("/ui/review/next", data={"name": "Mai <b>\u202e"}).text
    assert "&lt;script&gt;" in taken
    assert not any(mark in taken for mark in ("<script>alert", "\u202e", "\x1b"))
    assert "0.50" in taken
    form = {"decision": "ALLOW", "answer": "You may.", "note": "harmless"}
    answered = mai.post(f"/ui/review/{id}/answer", data=form)
    assert str(answered.url).endswith(f"/ui/review?answered={id}")
    case = desk.cases.get(id)
    assert (case.answer, case.reviewer) == ("You may.", "Mai <b>")
    assert "/undo" in answered.text
    mai.post(f"/ui/review/{id}/undo")
    assert desk.cases.get(id).answer is None
    mai.post(f"/ui/review/{id}/answer", data={"decision": "DENY"})
    assert desk.cases.get(id).answer == fixed_text(Decision.DENY, "en")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"answer": "typed"}, "choose one of the four"),
        ({"decision": "MAYBE", "answer": "typed"}, "choose one of the four"),
        ({"decision": "ALLOW", "note": "typed"}, "write an answer"),
        ({"decision": "DENY", "answer": "typed" + "x" * 32_000}, "32000 characters"),
    ],
)
def test_a_form_that_cannot_be_taken_says_why_and_keeps_what_was_typed(
    desk: ReviewDesk, runs: Path, form: dict[str, str], words: str
) -> None:
    id, mai = ask(desk.cases, 1), reviewer(desk, runs)
    mai.post("/ui/review/next")
    shown = mai.post(f"/ui/review/{id}/answer", data=form)
    assert (shown.status_code, words in shown.text, "typed" in shown.text) == (400, True, True)
    assert desk.cases.get(id).resolved is None


def test_who_comes_too_late_keeps_the_text(desk: ReviewDesk, runs: Path) -> None:
    id, mai, ken = ask(desk.cases, 1), reviewer(desk, runs), reviewer(desk, runs)
    mai.post("/ui/review/next")
    assert "take the next" in ken.post("/ui/review/next", data={"name": "ken"}).text.lower()
    form = {"decision": "DENY", "answer": "what I wrote"}
    late = ken.post(f"/ui/review/{id}/answer", data=form)
    assert (late.status_code, "what I wrote" in late.text) == (409, True)
    mai.post(f"/ui/review/{id}/answer", data={"decision": "REFUSE"})
    assert ken.post(f"/ui/review/{id}/answer", data=form).status_code == 409
    assert ken.post(f"/ui/review/{id}/undo").status_code == 409
    assert mai.post("/ui/review/nothing/answer", data=form).status_code == 400
    assert mai.post(f"/ui/review/{id}/burn").status_code == 400


@pytest.mark.parametrize("origin", [None, "null", "http://elsewhere.example", "http://127.0.0.1"])
def test_another_pages_form_is_turned_away(
    desk: ReviewDesk, runs: Path, origin: str | None
) -> None:
    ask(desk.cases, 1)
    headers = {"origin": origin} if origin else {}
    stranger = TestClient(build_ui(runs, desk), base_url=ORIGIN, headers=headers)
    answer = stranger.post("/ui/review/next")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "wrong_origin")
    assert "Take the next case" in reviewer(desk, runs).get("/ui/review").text


def test_without_a_queue_the_page_says_so(browser: TestClient, runs: Path) -> None:
    assert "no queue here" in browser.get("/ui/review").text
    assert reviewer(None, runs).post("/ui/review/next").status_code == 404


def test_acts_enter_the_log_beside_the_queue(tmp_path: Path, runs: Path) -> None:
    audit = tmp_path / "audit"
    AuditKeys.create(default_keys_folder(audit))
    with contextlib.closing(CaseQueue(tmp_path / "escalations.db")) as cases:
        mai = reviewer(ReviewDesk(cases, audit_recorder(audit)), runs)
        id = ask(cases, 1)
        mai.post("/ui/review/next")
        mai.post(f"/ui/review/{id}/answer", data={"decision": "DENY"})
    report = verify(audit, keys=AuditKeys.load(default_keys_folder(audit)))
    assert report.sound
    assert report.records == 2


def test_a_log_without_keys_takes_no_act_and_the_page_says_why(tmp_path: Path, runs: Path) -> None:
    with contextlib.closing(CaseQueue(tmp_path / "escalations.db")) as cases:
        desk = ReviewDesk(cases, audit_recorder(tmp_path / "audit"))
        ask(cases, 1)
        shown = reviewer(desk, runs).post("/ui/review/next")
        assert "aegis audit key new" in shown.text
